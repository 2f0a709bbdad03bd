"""Training the model's own weights: all of them, all but the first layers, the head alone, the biases alone.

Full and Frozen change the model in place. LinearProbe and BitFit train copies, so that the model itself stays, their
file holds the copies alone, and detaching brings the model back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from dougong.base import DougongError
from dougong.tune.method import Method, at_least
from dougong.tune.places import Patterns, Site
from dougong.tune.swap import parameter_names, swap_in
from dougong.tune.tuning import Plugin, Tuning

if TYPE_CHECKING:
    from dougong.model import Model


class _OwnWeights(Method):
    def places(self, model: Model, match: Patterns | None) -> list[tuple[str, Site]]:
        if match is not None:
            raise DougongError(f"{type(self).__name__} takes no match: it says itself which weights are trained")
        return []

    def plug(self, path: str, site: Site, tuning: Tuning, generator: torch.Generator) -> Plugin:
        raise AssertionError("goes on no module")


@dataclass(frozen=True)
class Full(_OwnWeights):
    """Every weight is trained."""

    tagged: ClassVar[bool] = True
    whole: ClassVar[bool] = True

    def install(self, model: Model, places: list[tuple[str, Site]], tuning: Tuning, generator: torch.Generator) -> None:
        thaw(tuning, tuning.frozen)


@dataclass(frozen=True)
class Frozen(_OwnWeights):
    """The first `layers` layers, and with them the embedding, stay as they are. A head that is tied to the embedding
    stays too."""

    tagged: ClassVar[bool] = True
    whole: ClassVar[bool] = True

    layers: int = 1

    def __post_init__(self) -> None:
        at_least(self, layers=0)

    def install(self, model: Model, places: list[tuple[str, Site]], tuning: Tuning, generator: torch.Generator) -> None:
        if self.layers > len(model.layers):
            raise DougongError(f"Frozen.layers is {self.layers}, but the model has {len(model.layers)}")
        cold = {id(parameter) for layer in model.layers[: self.layers] for parameter in layer.parameters()}
        cold |= {id(parameter) for parameter in model.embedding.parameters()} if self.layers else set()
        thaw(tuning, [parameter for parameter in tuning.frozen if id(parameter) not in cold])


@dataclass(frozen=True)
class LinearProbe(_OwnWeights):
    """The head alone is trained, or the heads. One that is tied to the embedding gets a weight of its own."""

    tagged: ClassVar[bool] = True

    def install(self, model: Model, places: list[tuple[str, Site]], tuning: Tuning, generator: torch.Generator) -> None:
        names = [name for name in parameter_names(model) if name.startswith(("head.", "task."))]
        if not names:
            raise DougongError("this model has no head to train")
        swap_in(model, tuning, names)


@dataclass(frozen=True)
class BitFit(_OwnWeights):
    """The biases alone (Ben Zaken et al. 2021, arXiv 2106.10199), of projections, norms and convolutions."""

    tagged: ClassVar[bool] = True

    def install(self, model: Model, places: list[tuple[str, Site]], tuning: Tuning, generator: torch.Generator) -> None:
        names = [name for name in parameter_names(model) if name.rpartition(".")[2].endswith("bias")]
        if not names:
            raise DougongError("this model has no biases for BitFit to train; choose LoRA or IA3")
        swap_in(model, tuning, names)


def thaw(tuning: Tuning, parameters: list[nn.Parameter]) -> None:
    """Let gradients train them again."""
    for parameter in parameters:
        parameter.requires_grad_(True)
