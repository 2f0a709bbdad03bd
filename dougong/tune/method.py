"""What every fine-tuning method says of itself: where it goes, its plug-in, and its side of the optimizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from dougong.base import DougongError
from dougong.parts.embedding import EmbeddingLayer
from dougong.parts.grouped import GroupedLinear, Groups
from dougong.parts.linear import Linear
from dougong.parts.shapes import Bool, Float, Int
from dougong.tune.places import Patterns, Site
from dougong.tune.tuning import Plugin, Tuning

if TYPE_CHECKING:
    from dougong.model import Model

# Projections inside the layers; routers and indexers choose, and a small change to them chooses otherwise.
PROJECTIONS = "*layers.* !*.router.* !*.indexer.*"


class Side(ABC):
    """What a method does around each update of the optimizer. A checkpoint keeps its state."""

    @abstractmethod
    def before(self, scale: Float[Tensor, ""]) -> None:
        """Gradients are there; `scale` times them is what the optimizer will take."""

    @abstractmethod
    def after(self) -> None:
        """The parameters have moved; their gradients are still there."""

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        return None


class Method(ABC):
    """A fine-tuning method and its options, as data: a frozen dataclass.

    default  patterns of the modules that it goes on where none are given
    kinds    modules that it can go on
    """

    default: ClassVar[str] = PROJECTIONS
    kinds: ClassVar[tuple[type, ...]] = (Linear, GroupedLinear)
    whole: ClassVar[bool] = False  # trains the model's own weights, which an adapter's file does not hold

    def install(self, model: Model, places: list[tuple[str, Site]], tuning: Tuning, generator: torch.Generator) -> None:
        """Put the plug-ins on the chosen modules, in their order."""
        for path, site in places:
            tuning.plugs[path] = self.plug(path, site, tuning, generator)

    @abstractmethod
    def plug(self, path: str, site: Site, tuning: Tuning, generator: torch.Generator) -> Plugin:
        """The plug-in for one module, as it starts: it changes nothing."""

    def places(self, model: Model, match: Patterns | None) -> list[tuple[str, Site]]:
        """The modules that it goes on. Raises DougongError where there are none."""
        from dougong.tune.places import chosen

        return chosen(model, self.default if match is None else match, self.kinds)

    def rates(self, tuning: Tuning) -> dict[nn.Parameter, float]:
        """Parameters whose learning rate is not the optimizer's own, with the factor."""
        return {}

    def side(self, tuning: Tuning, steps: int) -> Side | None:
        """What it does around each of `steps` updates; None: nothing."""
        return None


def sizes(site: Site) -> tuple[tuple[int, ...], int, int]:
    """((E,) for experts or (), inputs, outputs). An embedding is a Linear that reads one-hot tokens."""
    if isinstance(site, EmbeddingLayer):
        return (), site.vocab, site.storage.dense().shape[1]
    return ((site.experts,) if isinstance(site, GroupedLinear) else ()), site.in_features, site.out_features


def matrix(site: Site) -> Float[Tensor, "*E o i"]:
    """The base weight, float32 at least; an embedding's table (vocabulary, width) turned to (width, vocabulary)."""
    weight = site.storage.dense().detach()
    weight = weight.mT if isinstance(site, EmbeddingLayer) else weight
    return weight.to(kind(weight))


def kind(weight: Tensor) -> torch.dtype:
    """The type of an adapter's numbers beside such a weight: float32, or float64 where that is the weight's."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def experts_of(groups: Groups, rows: int) -> tuple[Int[Tensor, " P"], Bool[Tensor, "P 1"]]:
    """The expert of each of P rows, and which rows have one: those past the last expert's are given the last."""
    place = torch.arange(rows, device=groups.ends.device)
    expert = torch.searchsorted(groups.ends, place, right=True).clamp(max=len(groups.ends) - 1)
    return expert, (place < groups.ends[-1])[:, None]


def at_least(method: Any, **least: float) -> None:
    """Raise DougongError for the first of the named options that is below its least value."""
    for name, value in least.items():
        if getattr(method, name) < value:
            raise DougongError(f"{type(method).__name__}.{name} is {getattr(method, name)}; expected at least {value}")
