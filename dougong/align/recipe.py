"""The recipe of preference tuning, typed: everything needed to repeat a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dougong.base import DougongError
from dougong.train.loop import Training
from dougong.train.optimizers import Optimizer
from dougong.train.recipe import at_least
from dougong.train.schedule import Schedule
from dougong.tune import Tune

Method = Literal["dpo", "cdpo", "ipo", "simpo", "cpo", "orpo", "kto", "reward", "process"]
WITH_REFERENCE: tuple[Method, ...] = ("dpo", "cdpo", "ipo", "kto")
SCORING: tuple[Method, ...] = ("reward", "process")


@dataclass(frozen=True)
class PreferenceData:
    """path: files or folders of preferences (pairs, verdicts or steps, JSON or JSON lines). held_out: the share kept
    for evaluation. too_long: what happens to examples longer than a row."""

    path: tuple[Path, ...] = ()
    held_out: float = 0.05
    too_long: Literal["refuse", "truncate", "drop"] = "truncate"


@dataclass(frozen=True)
class PreferenceLoss:
    """What the losses of align/losses.py take; each method reads its own.

    - beta: strength of the pull to the reference (dpo, cdpo, ipo, kto), or scale of the margin (the others)
    - gamma: the margin that simpo asks for
    - alpha: how much the chosen answers' likelihood counts besides (None: as in the papers, cpo 1, simpo 0)
    - label_smoothing: the share of labels that cdpo, cpo and simpo think wrong
    - desirable, undesirable: kto's weights of good and bad answers
    - center: how strongly rewards are drawn to 0. margin: whether the data's margins count
    """

    beta: float = 0.1
    gamma: float = 0.5
    alpha: float | None = None
    label_smoothing: float = 0.0
    desirable: float = 1.0
    undesirable: float = 1.0
    center: float = 0.0
    margin: bool = True


def _training() -> Training:
    optimizer = Optimizer(rate=2e-5, weight_decay=0.0)
    return Training(steps=200, optimizer=optimizer, schedule=Schedule("linear", warmup=10, final=0.0))


@dataclass(frozen=True)
class Prefer:
    """Teach a model which of two answers is preferred. A recipe file may come first; flags override it.

    - method: dpo, cdpo, ipo, simpo, cpo, orpo learn from pairs; kto from single verdicts, or pairs taken apart;
      reward gives a model that scores texts, from pairs; process one that scores steps, from steps
    - reference: computed once, before training, or as needed: by the model with its adapter off, or a frozen copy
    - tune: train an adapter instead of all weights: RUN/adapter is then the result, or a model that scores with it in
    - model: the folder of the model to start from. epochs: passes over the data (0: training.steps decides)
    - batch: rows in an update. layout: packed: several pairs in a row, which do not see each other; padded: one
    --resume goes on with a run that was stopped, to the same weights as without the stop.

    examples:
      dougong prefer --model runs/sft --run runs/dpo --data.path pairs.jsonl --epochs 1
      dougong prefer recipe.yaml --method simpo --loss.beta 2 --resume
    """

    model: Path = Path("runs/sft")
    run: Path = Path("runs/prefer")
    data: PreferenceData = field(default_factory=PreferenceData)
    method: Method = "dpo"
    loss: PreferenceLoss = field(default_factory=PreferenceLoss)
    reference: Literal["once", "copy"] = "once"
    tune: Tune = field(default_factory=Tune)
    training: Training = field(default_factory=_training)
    epochs: float = 0.0
    batch: int = 16
    length: int = 1024
    layout: Literal["packed", "padded"] = "packed"
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, batch=1, length=4)
        if self.epochs < 0:
            raise DougongError(f"epochs is {self.epochs}; expected 0 or more")
        if not 0 < self.loss.beta < float("inf"):
            raise DougongError(f"loss.beta is {self.loss.beta}; expected a positive number")
        if not 0 <= self.loss.label_smoothing < 0.5:
            raise DougongError(f"loss.label_smoothing is {self.loss.label_smoothing}; expected 0 to below 0.5")
        if self.method == "cdpo" and not self.loss.label_smoothing:
            raise DougongError("cdpo without loss.label_smoothing is dpo; set the share of labels thought to be wrong")
