"""DoRA (Liu et al. 2024, arXiv 2402.09353): length and direction of every row of the weight apart.

W' = m (W + s B A) / ||W + s B A||, the norm over each output's row and taken as a constant by the gradient; m starts as
the rows' lengths, so that W' = W. A bias stays as it is. A row of zeros has no direction and stays one. An embedding is
a Linear that reads one-hot tokens: its outputs are the places of the width, each with a row as long as the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dougong.parts.embedding import EmbeddingLayer
from dougong.parts.grouped import Groups
from dougong.parts.shapes import Float
from dougong.tune.lora import LowRank, LowRankPlugin, add_product, dropped, initial
from dougong.tune.method import experts_of, matrix
from dougong.tune.places import Site
from dougong.tune.tuning import Tuning


@dataclass(frozen=True)
class DoRA(LowRank):
    """LoRA on the direction and a trained length for every output."""

    tagged: ClassVar[bool] = True

    def plug(self, path: str, site: Site, tuning: Tuning, generator: torch.Generator) -> DoRAPlugin:
        rank = self.rank_of(path)
        a, b = initial(site, rank, generator)
        return DoRAPlugin(tuning, a, b, self.scale_of(path, rank), self.dropout, lengths(matrix(site)))


_LEAST = 1e-12  # length of a row; what is shorter is nothing


def lengths(weight: Float[Tensor, "*E o i"]) -> Float[Tensor, "*E o"]:
    return torch.linalg.vector_norm(weight, dim=-1)


class DoRAPlugin(LowRankPlugin):
    """bias + m / ||W + s B A|| (W x + s B A x). m: (o) or (E, o)."""

    def __init__(self, tuning: Tuning, a: Tensor, b: Tensor, scale: float, dropout: float, magnitude: Tensor):
        super().__init__(tuning, a, b, scale, dropout)
        self.magnitude = nn.Parameter(magnitude)
        self.squares: tuple[tuple[int, int], Tensor] | None = None  # |w|^2 of a weight and its version

    @torch.no_grad()
    def _lengths(self, weight: Tensor, turned: bool = False) -> Float[Tensor, "*E o"]:
        """||W + s B A|| by rows, without making B A: |w|^2 + 2 s b.(A w) + s^2 b.(A A^T b) for each row w and its b.
        weight: (*E, o, i), or (i, o) where `turned`."""
        a, b = self.a.float(), self.b.float()
        key = (weight.data_ptr(), weight._version) if isinstance(weight, nn.Parameter) else (0, 0)
        weight = weight.float().mT if turned else weight.float()
        if self.squares is None or self.squares[0] != key or key == (0, 0):
            self.squares = (key, weight.square().sum(-1))
        inner = (b * (weight @ a.mT)).sum(-1)
        own = (b * (b @ (a @ a.mT))).sum(-1)
        return (self.squares[1] + 2 * self.scale * inner + self.scale**2 * own).clamp(min=0).sqrt()

    def change(self, layer: Any, x: Tensor, y: Tensor, groups: Groups | None = None) -> Tensor:
        on_embedding = isinstance(layer, EmbeddingLayer)
        found = self._lengths(layer.weight, on_embedding).to(self.magnitude.dtype)
        factor, bias = self.magnitude / found.clamp(min=_LEAST), None if on_embedding else layer.bias
        if groups is not None:
            expert, inside = experts_of(groups, len(x))
            factor, bias = factor[expert], None if bias is None else bias[expert] * inside
        if bias is None:
            return (factor * add_product(self.scale, self.a, self.b, dropped(self, x), y, groups)).to(y.dtype)
        product = add_product(self.scale, self.a, self.b, dropped(self, x), y - bias, groups)
        return (bias + factor * product).to(y.dtype)

    def merged(self, weight: Tensor, bias: Tensor | None, base: Tensor) -> tuple[Tensor, Tensor | None]:
        factor = self.magnitude / lengths(base + self.delta()).clamp(min=_LEAST)
        return factor[..., None] * (weight + self.delta()), bias
