"""What every experiment shares: variants x seeds, tried one after another, measured, kept, told.

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
    """One model of an experiment, and what it learns and how.

    outputs  how large the matrices that write onto the residual path start, in units of fan_in^-1/2; 0, as everywhere
             else in this package: every layer starts as the identity
    """

    name: str
    spec: ModelSpec
    task: Task
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(rate=2e-3))
    outputs: float = 0.0


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


class Study(ABC):
    """A question, what is tried, what a trial measures, and what is said of the results."""

    title: Label
    question: Label

    @abstractmethod
    def budget(self) -> Budget:
        """The usual one, for a few minutes on two cores."""

    @abstractmethod
    def tried(self) -> dict[str, Any]:
        """The variants by name, each with the data that say what it is."""

    @abstractmethod
    def trial(self, name: str, seed: int, folder: Path, budget: Budget, quiet: bool) -> dict[str, Any]:
        """Numbers, or lists of them along an axis, of one variant and seed; `folder` is the experiment's."""

    @abstractmethod
    def figures(self, results: Results) -> list[str]:
        """Charts and tables as HTML."""

    @abstractmethod
    def verdict(self, results: Results) -> list[str]:
        """Plain sentences, which follow from the numbers and their intervals alone."""


class Experiment(Study, ABC):
    """A study whose variants are models that are trained from the beginning and then measured."""

    @abstractmethod
    def variants(self) -> list[Variant]: ...

    @abstractmethod
    def measure(self, variant: Variant, model: Model) -> dict[str, float | list[float]]:
        """Numbers, or lists of them along an axis."""

    def tried(self) -> dict[str, Any]:
        return {
            each.name: {
                "spec": record_to(each.spec),
                "task": repr(each.task),
                "optimizer": record_to(each.optimizer),
                "outputs": each.outputs,
            }
            for each in self.variants()
        }

    def variant(self, name: str) -> Variant:
        return next(each for each in self.variants() if each.name == name)

    def trial(self, name: str, seed: int, folder: Path, budget: Budget, quiet: bool) -> dict[str, Any]:
        variant = self.variant(name)
        model = trained(variant, seed, place(folder, name, seed), budget, f"{name} seed {seed}", quiet)
        with torch.no_grad():
            return dict(self.measure(variant, model))


def trained(variant: Variant, seed: int, run: Path, budget: Budget, label: str, quiet: bool) -> Model:
    """The variant's model after the budget's updates, ready to be measured; a run that was interrupted goes on."""
    model = initialise(Model(variant.spec), seed)
    if variant.outputs:
        fill_outputs(model, variant.outputs, seed)
    training = Training(
        steps=budget.steps,
        optimizer=variant.optimizer,
        schedule=Schedule("cosine", warmup=max(1, budget.steps // 10), final=0.05),
        checkpoint=0,
    )
    train(model, Drawn(variant.task, budget.rows, seed), training, run, resume=True, label=label, quiet=quiet)
    return model.eval()


@torch.no_grad()
def fill_outputs(model: Model, size: float, seed: int) -> None:
    """Draw the matrices that write onto the residual path from N(0, size^2 / fan_in) instead of leaving them 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, linear in model.linears():
        if name.endswith((".o", ".down")):
            deviation = size * linear.in_features**-0.5
            linear.weight.copy_(torch.empty(linear.weight.shape).normal_(0.0, deviation, generator=generator))


def place(folder: Path, name: str, seed: int | str) -> Path:
    """The folder of a trial inside the experiment's."""
    return folder / name.replace("/", "-").replace(" ", "_") / str(seed)


def run_experiment(experiment: Study, folder: Path, budget: Budget, quiet: bool = False) -> Results:
    """Run every trial that is not in `folder` yet. Raises DougongError when the folder holds another experiment."""
    tried = experiment.tried()
    said = {"experiment": type(experiment).__name__, "budget": record_to(budget), "variants": tried}
    asked = folder / "experiment.json"
    if asked.is_file() and read_json(asked) != said:
        raise DougongError(f"{folder} holds another experiment or budget; choose another folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(asked, said)
    values: dict[str, dict[str, list[float]]] = {}
    lines: dict[str, dict[str, list[list[float]]]] = {}
    for seed in range(budget.seeds):
        for name in tried:
            done = place(folder, name, seed) / "measured.json"
            if not done.is_file():
                write_json(done, experiment.trial(name, seed, folder, budget, quiet))
            for measure, value in read_json(done).items():
                if isinstance(value, list):
                    lines.setdefault(name, {}).setdefault(measure, []).append(value)
                else:
                    values.setdefault(name, {}).setdefault(measure, []).append(value)
    return Results(values, lines)
