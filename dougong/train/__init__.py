"""Training: one loop, pure objectives, optimizers, checkpoints that resume bit for bit."""

from dougong.train.loop import Stopped, Training, next_token, train
from dougong.train.objectives import Loss, causal_lm
from dougong.train.optimizers import Optimizer
from dougong.train.schedule import Schedule

__all__ = ["Loss", "Optimizer", "Schedule", "Stopped", "Training", "causal_lm", "next_token", "train"]
