"""Evaluations: bits per byte beside honest baselines, and accuracy by skill with intervals."""

from dougong.data.bits import bits_per_byte
from dougong.evals.accuracy import Accuracy, accuracy, wilson
from dougong.evals.baselines import Baseline, baselines
from dougong.evals.bytemodel import ByteModel

__all__ = ["Accuracy", "Baseline", "ByteModel", "accuracy", "baselines", "bits_per_byte", "wilson"]
