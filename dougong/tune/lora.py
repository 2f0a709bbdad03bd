"""LoRA (Hu et al. 2021, arXiv 2106.09685): W x + s B A dropout(x), A (r, in) drawn, B (out, r) zero at the start.

s = alpha / r, or alpha / sqrt(r), which keeps the size of the change at any rank (rsLoRA, Kalajdzievski 2023, arXiv
2312.03732). On experts every one has an A and a B of its own; on an embedding A is looked up by token.
"""

from __future__ import annotations

import math
from abc import ABC
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dougong.base import DougongError
from dougong.parts.embedding import EmbeddingLayer
from dougong.parts.grouped import GroupedLinear, Groups, grouped
from dougong.parts.linear import Dense, Linear
from dougong.parts.shapes import Float
from dougong.tune.method import Method, at_least, kind, sizes
from dougong.tune.places import Site, matches
from dougong.tune.thin import add_thin, pays, thin_linear
from dougong.tune.tuning import Plugin, Tuning


@dataclass(frozen=True)
class LowRank(Method, ABC):
    """What the methods with two thin matrices share.

    rank, alpha    of all modules; `ranks` and `alphas` hold others by pattern of paths, the first that fits counting
    rslora         divide alpha by sqrt(rank) instead of rank
    """

    kinds: ClassVar[tuple[type, ...]] = (Linear, GroupedLinear, EmbeddingLayer)

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    rslora: bool = False
    ranks: dict[str, int] = field(default_factory=dict)
    alphas: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        at_least(self, rank=1, dropout=0.0)
        if self.dropout >= 1:
            raise DougongError(f"{type(self).__name__}.dropout is {self.dropout}; expected a share below 1")

    def rank_of(self, path: str) -> int:
        return next((rank for pattern, rank in self.ranks.items() if matches(path, pattern)), self.rank)

    def scale_of(self, path: str, rank: int) -> float:
        """s, what the product is multiplied by."""
        alpha = next((alpha for pattern, alpha in self.alphas.items() if matches(path, pattern)), self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def plug(self, path: str, site: Site, tuning: Tuning, generator: torch.Generator) -> LowRankPlugin:
        rank = self.rank_of(path)
        a, b = initial(site, rank, generator)
        return LowRankPlugin(tuning, a, b, self.scale_of(path, rank), self.dropout)


@dataclass(frozen=True)
class LoRA(LowRank):
    """Both matrices are trained, at one rate. bias: B has one too (PEFT's lora_bias), 0 at the start; not on embeddings
    and experts."""

    tagged: ClassVar[bool] = True

    bias: bool = False

    def plug(self, path: str, site: Site, tuning: Tuning, generator: torch.Generator) -> LowRankPlugin:
        plug = super().plug(path, site, tuning, generator)
        if not self.bias:
            return plug
        if not isinstance(site, Linear):
            raise DougongError(f"LoRA.bias is True, but {path} is no single projection; leave it out of the match")
        bias = torch.zeros_like(plug.b[:, 0])
        return BiasedPlugin(tuning, plug.a.data, plug.b.data, plug.scale, self.dropout, bias)


def initial(site: Site, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A uniform within +-1/sqrt(in) and B zero; on an embedding A zero and B normal, as PEFT has it."""
    experts, inputs, outputs = sizes(site)
    dtype, device = kind(site.storage.dense()), site.storage.dense().device
    a, b = torch.zeros(*experts, rank, inputs), torch.zeros(*experts, outputs, rank)
    if isinstance(site, EmbeddingLayer):
        b.normal_(generator=generator)
    else:
        bound = inputs**-0.5
        a.uniform_(-bound, bound, generator=generator)
    return a.to(device, dtype), b.to(device, dtype)


class LowRankPlugin(Plugin):
    """y + s B A x. a: (r, i) or (E, r, i); b: (o, r) or (E, o, r)."""

    def __init__(self, tuning: Tuning, a: Tensor, b: Tensor, scale: float, dropout: float = 0.0):
        super().__init__(tuning)
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)
        self.scale, self.dropout = scale, dropout

    def change(self, layer: Any, x: Tensor, y: Tensor, groups: Groups | None = None) -> Tensor:
        a, b = self.factors()
        return add_product(self.scale, a, b, dropped(self, x), y, groups)

    def instead(self, layer: Any, x: Tensor) -> Tensor | None:
        """x (W + s B A)^T where that takes less than W x and B A x one after the other: many rows, in training."""
        if type(self).change is not LowRankPlugin.change or not isinstance(layer.storage, Dense):
            return None
        weight, (a, b) = layer.storage.weight, self.factors()
        plain = not weight.requires_grad and torch.is_grad_enabled() and not torch.is_autocast_enabled(x.device.type)
        alike = x.dtype == weight.dtype == a.dtype == b.dtype
        if not plain or not alike or not len(a) or (self.dropout and self.training):
            return None
        if not pays(x.numel() // x.shape[-1], *weight.shape):
            return None
        return thin_linear(self.scale, a, b, x, weight, layer.bias)

    def factors(self) -> tuple[Float[Tensor, "*E r i"], Float[Tensor, "*E o r"]]:
        """A and B, without the scale."""
        return self.a, self.b

    def delta(self) -> Float[Tensor, "*E o i"]:
        """s B A."""
        a, b = self.factors()
        return self.scale * (b @ a)

    def merged(self, weight: Tensor, bias: Tensor | None, base: Tensor) -> tuple[Tensor, Tensor | None]:
        return weight + self.delta(), bias

    def extra_repr(self) -> str:
        return f"rank={self.a.shape[-2]}, scale={self.scale:.4g}"


class BiasedPlugin(LowRankPlugin):
    """y + s (B A x + bias). bias: (o)."""

    def __init__(self, tuning: Tuning, a: Tensor, b: Tensor, scale: float, dropout: float, bias: Tensor):
        super().__init__(tuning, a, b, scale, dropout)
        self.bias = nn.Parameter(bias)

    def change(self, layer: Any, x: Tensor, y: Tensor, groups: Groups | None = None) -> Tensor:
        return super().change(layer, x, y, groups) + (self.scale * self.bias).to(y.dtype)

    def merged(self, weight: Tensor, bias: Tensor | None, base: Tensor) -> tuple[Tensor, Tensor | None]:
        if bias is None:
            raise DougongError("LoRA.bias cannot be merged into a layer that has no bias; leave the adapter beside it")
        return weight + self.delta(), bias + self.scale * self.bias.to(bias.dtype)


def dropped(plug: LowRankPlugin, x: Tensor) -> Tensor:
    """The input with its dropout in training; token ids have none."""
    return F.dropout(x, plug.dropout) if plug.dropout and plug.training and x.is_floating_point() else x


def add_product(scale: float, a: Tensor, b: Tensor, x: Tensor, y: Tensor, groups: Groups | None) -> Tensor:
    """y + scale B A x, in y's type."""
    if not a.shape[-2]:  # pruned to nothing
        return y
    if not x.is_floating_point():  # token ids
        return y + (scale * F.linear(F.embedding(x, a.t()), b)).to(y.dtype)
    x = x if torch.is_autocast_enabled(x.device.type) else x.to(a.dtype)
    if groups is not None:
        return y + (scale * grouped(grouped(x, a, groups), b, groups)).to(y.dtype)
    if y.dtype == x.dtype == b.dtype and not torch.is_autocast_enabled(x.device.type):
        return add_thin(scale, a, b, x, y)
    return y + (scale * F.linear(F.linear(x, a), b)).to(y.dtype)


def plugs(tuning: Tuning) -> list[LowRankPlugin]:
    """The low-rank plug-ins of an adapter."""
    return [plug for plug in tuning.plugs.values() if isinstance(plug, LowRankPlugin)]
