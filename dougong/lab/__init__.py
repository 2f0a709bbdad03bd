"""The lab: claims about language models, each an experiment of one command, several seeds, intervals and plain words.

An experiment trains small models of one text or task and changes one thing. What is small here may be otherwise at
scale: every report says how small.
"""

from __future__ import annotations

from importlib import import_module

from dougong.base import DougongError, nearest
from dougong.lab.experiment import Experiment, Study

EXPERIMENTS = {
    "positions": "positions inside and beyond the training length",
    "norms": "where the norm stands, and which, by depth",
    "heads": "MHA, GQA, MQA and MLA at equal parameters",
    "experts": "dense against mixture of experts at equal operations a token",
    "mixers": "attention and recurrences: recall, and speed by length",
    "tuning": "every way to fine-tune one model, and the claims on LoRA and its kin",
    "retrieval": "a model that reads what was found, against one that remembers more; kNN-LM",
    "rlhf": "a learned reward, PPO and GRPO against DPO at equal generated tokens",
}


def experiment(name: str) -> Study:
    """The experiment of that name. Raises DougongError for an unknown one."""
    if name not in EXPERIMENTS:
        raise DougongError(f"no experiment {name!r}{nearest(name, EXPERIMENTS)}")
    return import_module(f"dougong.lab.{name}").EXPERIMENT


__all__ = ["EXPERIMENTS", "Experiment", "Study", "experiment"]
