"""Prefix tuning (Li & Liang 2021, arXiv 2101.00190): trained keys and values that every token of a text may attend to.

Without a network between it is P-tuning v2 (Liu et al. 2021, arXiv 2110.07602), with one Li and Liang's first form. The
keys and values stand for those of virtual tokens (`prompt`), in every layer, before they are turned to their positions:
whatever runs the model keeps them in its state like any others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from dougong.base import DougongError
from dougong.parts.embedding import EmbeddingLayer
from dougong.parts.grouped import Groups
from dougong.parts.linear import Linear
from dougong.parts.shapes import Float
from dougong.tune.insert import prompted
from dougong.tune.method import Method, at_least, kind, sizes
from dougong.tune.places import Patterns, Site, chosen
from dougong.tune.prompt import embedding_of, reader, refill, reserve
from dougong.tune.tuning import Plugin, Tuning, tunings

if TYPE_CHECKING:
    from dougong.model import Model


@dataclass(frozen=True)
class PrefixTuning(Method):
    """tokens: length of the prefix. hidden: width of the network that makes it from one table; 0: none (P-tuning v2).
    start: deviation of the numbers it starts from."""

    tagged: ClassVar[bool] = True
    kinds: ClassVar[tuple[type, ...]] = (Linear,)
    default: ClassVar[str] = "layers.*.mixer.k layers.*.mixer.v layers.*.mixer.kv_down"

    tokens: int = 20
    hidden: int = 0
    start: float = 0.02

    def __post_init__(self) -> None:
        at_least(self, tokens=1, hidden=0, start=0.0)

    def places(self, model: Model, match: Patterns | None) -> list[tuple[str, Site]]:
        if match is None and model.encoder is not None:
            match = [f"encoder.{each}" for each in self.default.split()]
        return chosen(model, self.default if match is None else match, self.kinds)

    def install(self, model: Model, places: list[tuple[str, Site]], tuning: Tuning, generator: torch.Generator) -> None:
        reserve(model, tuning, self.tokens)
        path, embedding = embedding_of(model)
        widths = [sizes(site)[2] for _, site in places]
        source = PrefixSource(tuning, embedding, self, sum(widths), generator)
        tuning.plugs[path] = source
        start = 0
        for (where, site), width in zip(places, widths, strict=True):
            if not isinstance(site, Linear):
                raise DougongError(f"{where} makes no keys or values; PrefixTuning goes on Linears")
            tuning.plugs[where] = PrefixPlugin(tuning, source, slice(start, start + width))
            start += width
        tuning.undo += prompted(reader(model), tunings(model))

    def plug(self, path: str, site: Site, tuning: Tuning, generator: torch.Generator) -> Plugin:
        raise AssertionError("the prefix of all layers is made at once")


class PrefixSource(Plugin):
    """On the embedding: holds the prefix of all layers side by side (n, sum of widths), and notes which tokens of a
    step are virtual."""

    def __init__(
        self, tuning: Tuning, site: EmbeddingLayer, method: PrefixTuning, width: int, generator: torch.Generator
    ):
        super().__init__(tuning)
        like = site.storage.dense()
        inner = like.shape[1] if method.hidden else width
        drawn = torch.empty(method.tokens, inner).normal_(0.0, method.start, generator=generator)
        self.prefix = nn.Parameter(drawn.to(like.device, kind(like)))
        self.step: tuple[Tensor, Tensor] | None = None  # of the running step: which virtual token each is, the prefix
        self.network: nn.Sequential | None = None
        if method.hidden:
            self.network = nn.Sequential(nn.Linear(inner, method.hidden), nn.Tanh(), nn.Linear(method.hidden, width))
            self.network.to(like.device, kind(like))
            refill(self.network, generator)

    def made(self) -> Float[Tensor, "n W"]:
        return self.prefix if self.network is None else self.network(self.prefix)

    def change(self, layer: Any, x: Tensor, y: Tensor, groups: Groups | None = None) -> Tensor:
        ids = self.tuning.ids
        own = (x >= ids.start) & (x < ids.stop)
        self.step = (torch.where(own, x - ids.start, -1).flatten(), self.made()) if bool(own.any()) else None
        return y

    def forward(self, layer: Any, x: Tensor, y: Tensor, groups: Groups | None = None) -> Tensor:
        return self.change(layer, x, y)


class PrefixPlugin(Plugin):
    """On a projection to keys or values: the prefix at virtual tokens."""

    def __init__(self, tuning: Tuning, source: PrefixSource, columns: slice):
        super().__init__(tuning)
        self.source = (source,)  # in a tuple: its parameters are those of the plug-in on the embedding
        self.columns = columns

    def forward(self, layer: Any, x: Tensor, y: Tensor, groups: Groups | None = None) -> Tensor:
        return y if self.source[0].step is None else self.change(layer, x, y)

    def change(self, layer: Any, x: Tensor, y: Tensor, groups: Groups | None = None) -> Tensor:
        step = self.source[0].step
        assert step is not None
        virtual, prefix = step
        flat = y.flatten(0, -2)
        made = prefix[:, self.columns][virtual.clamp(min=0)].to(y.dtype)
        return torch.where((virtual >= 0)[:, None], made, flat).view(y.shape)
