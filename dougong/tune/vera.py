"""VeRA (Kopiczko et al. 2023, arXiv 2310.11454): y + b * (B (d * (A x))), A and B drawn once and shared by all layers.

Trained are d (r), 0.1 at the start, and b (out), 0. A (r, largest input) and B (largest output, r) are the same for all
modules, each of which takes the part of its own size; kaiming uniform with gain sqrt 2, A drawn first, as PEFT draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dougong.parts.grouped import GroupedLinear, Groups
from dougong.parts.linear import Linear
from dougong.parts.shapes import Float, Int
from dougong.tune.method import Method, at_least, experts_of, kind, sizes
from dougong.tune.places import Site
from dougong.tune.tuning import Plugin, Tuning

if TYPE_CHECKING:
    from dougong.model import Model


@dataclass(frozen=True)
class VeRA(Method):
    """projection_seed: of the shared matrices, which a file may leave out. d_initial: the start of d."""

    tagged: ClassVar[bool] = True
    kinds: ClassVar[tuple[type, ...]] = (Linear, GroupedLinear)

    rank: int = 256
    dropout: float = 0.0
    projection_seed: int = 0
    d_initial: float = 0.1

    def __post_init__(self) -> None:
        at_least(self, rank=1, dropout=0.0)

    def install(self, model: Model, places: list[tuple[str, Site]], tuning: Tuning, generator: torch.Generator) -> None:
        inputs = max(sizes(site)[1] for _, site in places)
        outputs = max(sizes(site)[2] for _, site in places)
        device = places[0][1].storage.dense().device
        own = torch.Generator().manual_seed(self.projection_seed)
        tuning.shared["a"] = kaiming((self.rank, inputs), own).to(device)
        tuning.shared["b"] = kaiming((outputs, self.rank), own).to(device)
        super().install(model, places, tuning, generator)

    def plug(self, path: str, site: Site, tuning: Tuning, generator: torch.Generator) -> VeRAPlugin:
        experts, _, outputs = sizes(site)
        like = {"dtype": kind(site.storage.dense()), "device": site.storage.dense().device}
        d = torch.full((*experts, self.rank), self.d_initial, **like)
        return VeRAPlugin(tuning, d, torch.zeros(*experts, outputs, **like), self.dropout)


def kaiming(shape: tuple[int, int], generator: torch.Generator) -> Float[Tensor, "o i"]:
    """Uniform within +- sqrt(2) sqrt(3 / inputs)."""
    bound = math.sqrt(3.0) * math.sqrt(2) / math.sqrt(shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


class VeRAPlugin(Plugin):
    """d: (r) or (E, r); b: (o) or (E, o). rows: which rows of the shared B are this module's (None: the first)."""

    def __init__(self, tuning: Tuning, d: Tensor, b: Tensor, dropout: float, rows: Int[Tensor, " o"] | None = None):
        super().__init__(tuning)
        self.d, self.b = nn.Parameter(d), nn.Parameter(b)
        self.dropout, self.rows = dropout, rows

    def shared(self, inputs: int) -> tuple[Float[Tensor, "r i"], Float[Tensor, "o r"]]:
        """This module's part of the shared matrices."""
        a, b = (self.tuning.shared[name].to(self.d.device, self.d.dtype) for name in "ab")
        return a[:, :inputs], b[: self.b.shape[-1]] if self.rows is None else b[self.rows.to(b.device)]

    def change(self, layer: Any, x: Tensor, y: Tensor, groups: Groups | None = None) -> Tensor:
        a, b = self.shared(x.shape[-1])
        d, out = self.d, self.b
        if groups is not None:
            expert, inside = experts_of(groups, len(x))
            d, out = d[expert], out[expert] * inside
        x = F.dropout(x, self.dropout) if self.dropout and self.training else x
        x = x if torch.is_autocast_enabled(x.device.type) else x.to(a.dtype)
        return y + (out * F.linear(d * F.linear(x, a), b)).to(y.dtype)

    def merged(self, weight: Tensor, bias: Tensor | None, base: Tensor) -> tuple[Tensor, Tensor | None]:
        a, b = self.shared(weight.shape[-1])
        return weight + (self.b[..., None] * b) @ (self.d[..., None] * a), bias
