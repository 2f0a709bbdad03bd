"""What every experiment shares: variants x seeds, trained one after another, measured, kept, told.

A trial is a run folder; finished ones are not run again, so an interrupted experiment goes on where it was.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dougong.base import DougongError, read_json, record_to, write_json
from dougong.lab.statistics import Mean, mean
from dougong.lab.tasks import Drawn, Task
from dougong.model import Model, ModelSpec, initialise
from dougong.report import Label
from dougong.train.loop import Training, train
from dougong.train.optimizers import Optimizer
from dougong.train.schedule import Schedule


@dataclass(frozen=True)
class Variant:
    """One model of an experiment. `group` sets apart variants that are compared among themselves."""

    name: str
    spec: ModelSpec
    task: Task
    group: str = ""
    rate: float = 2e-3


@dataclass(frozen=True)
class Budget:
    """How much each trial trains."""

    steps: int
    rows: int
    seeds: int = 3


@dataclass(frozen=True)
class Results:
    """Every trial's measures, values[variant][measure] one a seed; `lines` are measures along an axis, such as loss by
    position."""

    values: Mapping[str, Mapping[str, Sequence[float]]]
    lines: Mapping[str, Mapping[str, Sequence[Sequence[float]]]] = field(default_factory=dict)

    def mean(self, variant: str, measure: str) -> Mean:
        return mean(self.values[variant][measure])

    def line(self, variant: str, measure: str) -> list[Mean]:
        return [mean(at) for at in zip(*self.lines[variant][measure], strict=True)]


class Experiment(ABC):
    """A question, its variants, what is measured of a trained model, and what is said of the results."""

    title: Label
    question: Label

    @abstractmethod
    def budget(self) -> Budget:
        """The usual one, for a few minutes on two cores."""

    @abstractmethod
    def variants(self) -> list[Variant]: ...

    @abstractmethod
    def measure(self, variant: Variant, model: Model) -> dict[str, float | list[float]]:
        """Numbers, or lists of them along an axis."""

    @abstractmethod
    def figures(self, results: Results) -> list[str]:
        """Charts and tables as HTML."""

    @abstractmethod
    def verdict(self, results: Results) -> list[str]:
        """Plain sentences, which follow from the numbers and their intervals alone."""


def run_experiment(experiment: Experiment, folder: Path, budget: Budget, quiet: bool = False) -> Results:
    """Run every trial that is not in `folder` yet. Raises DougongError when the folder holds another experiment."""
    variants = experiment.variants()
    said = {
        "experiment": type(experiment).__name__,
        "budget": record_to(budget),
        "variants": {each.name: record_to(each.spec) for each in variants},
    }
    asked = folder / "experiment.json"
    if asked.is_file() and read_json(asked) != said:
        raise DougongError(f"{folder} holds another experiment or budget; choose another folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(asked, said)
    values: dict[str, dict[str, list[float]]] = {}
    lines: dict[str, dict[str, list[list[float]]]] = {}
    for seed in range(budget.seeds):
        for variant in variants:
            for name, value in _trial(experiment, variant, seed, folder, budget, quiet).items():
                if isinstance(value, list):
                    lines.setdefault(variant.name, {}).setdefault(name, []).append(value)
                else:
                    values.setdefault(variant.name, {}).setdefault(name, []).append(value)
    return Results(values, lines)


def _trial(
    experiment: Experiment, variant: Variant, seed: int, folder: Path, budget: Budget, quiet: bool
) -> dict[str, Any]:
    place = folder / variant.name.replace("/", "-").replace(" ", "_") / str(seed)
    done = place / "measured.json"
    if done.is_file():
        return read_json(done)
    model = initialise(Model(variant.spec), seed)
    training = Training(
        steps=budget.steps,
        optimizer=Optimizer(rate=variant.rate),
        schedule=Schedule("cosine", warmup=max(1, budget.steps // 10), final=0.05),
        checkpoint=0,
    )
    label = f"{variant.name} seed {seed}"
    train(model, Drawn(variant.task, budget.rows, seed), training, place, resume=True, label=label, quiet=quiet)
    model.eval()
    with torch.no_grad():
        measured = experiment.measure(variant, model)
    write_json(done, measured)
    return measured
