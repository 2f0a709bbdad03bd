"""Positions, as objects with three hooks, each doing nothing unless a kind of position needs it.

Rotary positions are in rope.py; here are those that add: to the embeddings, or to the attention scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.parts.context import Context
from dougong.parts.shapes import Float, Int


@dataclass(frozen=True)
class Position:
    """No position at all, and the three places where a kind of position may act."""

    def embed(
        self, x: Float[Tensor, "B T D"], ctx: Context, rows: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "B T D"]:
        """Change the token embeddings; `rows` looks positions up in the table that belongs to this position."""
        return x

    def table(self) -> int:
        """Rows of that table; 0 for none."""
        return 0

    def rotate(
        self, q: Float[Tensor, "B T H d"], k: Float[Tensor, "B T K d"], ctx: Context
    ) -> tuple[Float[Tensor, "B H T d"], Float[Tensor, "B K T d"]]:
        """Turn queries and keys to their places, and move heads before tokens."""
        return q.transpose(1, 2), k.transpose(1, 2)

    def bias(self, ctx: Context, heads: int) -> Float[Tensor, "#B H T S"] | None:
        """What is added to the attention scores of `heads` heads."""
        return None


NOWHERE = Position()


@dataclass(frozen=True)
class Learned(Position):
    """A trained vector for each of `size` positions, added to the token's embedding (Radford et al. 2019)."""

    tagged: ClassVar[bool] = True

    size: int
    offset: int = 0  # rows before the one of position 0 (BART and its kin keep 2)

    def table(self) -> int:
        return self.size + self.offset

    def embed(
        self, x: Float[Tensor, "B T D"], ctx: Context, rows: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "B T D"]:
        last = int(ctx.positions.max())
        if last >= self.size:
            raise DougongError(
                f"the text has {last + 1} tokens, but the model has learned {self.size} positions; shorten it"
            )
        return x + rows(ctx.positions + self.offset)


@dataclass(frozen=True)
class Sinusoidal(Position):
    """Fixed waves added to the embedding (Vaswani et al. 2017): position t, pair i has sin and cos of t theta^(-2i/D).

    apart: all sines before all cosines, instead of in turn.
    """

    tagged: ClassVar[bool] = True

    theta: float = 10000.0
    apart: bool = False

    def embed(
        self, x: Float[Tensor, "B T D"], ctx: Context, rows: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "B T D"]:
        width = x.shape[-1]
        pairs = torch.arange(0, width, 2, device=x.device).float() / width
        angle = ctx.positions[..., None].float() * self.theta**-pairs
        waves = torch.cat((angle.sin(), angle.cos()), -1) if self.apart else torch.stack((angle.sin(), angle.cos()), -1)
        return x + waves.reshape(*angle.shape[:-1], -1)[..., :width].to(x.dtype)


@dataclass(frozen=True)
class Alibi(Position):
    """-slope * distance added to each head's scores (ALiBi, Press et al. 2022).

    Of n = 2^j heads, head h (from 1) has the slope 2^(-strongest h / n). Other counts take the slopes of the power of
    two below and fill up with every other one of the power above. All are multiplied by `factor`.

    rounded: slope * key position is added instead, which differs by a constant a query, slopes and products rounded to
    bfloat16 before `factor`: what Falcon-RW was trained with.
    """

    tagged: ClassVar[bool] = True

    strongest: float = 8.0
    factor: float = 1.0
    rounded: bool = False

    def slopes(self, heads: int) -> list[float]:
        below = 2 ** math.floor(math.log2(heads))
        first = [2 ** (-self.strongest * (head + 1) / below) for head in range(below)]
        between = [2 ** (-self.strongest * (head + 0.5) / below) for head in range(heads - below)]
        return [(1.0 if self.rounded else self.factor) * slope for slope in first + between]

    def bias(self, ctx: Context, heads: int) -> Float[Tensor, "#B H T S"]:
        slopes = torch.tensor(self.slopes(heads), device=ctx.positions.device)[:, None, None]

        def make() -> Tensor:
            distance = ctx.distances()[:, None]
            if not self.rounded:
                return -slopes * distance.abs().float()
            key = ctx.positions[:, None, :, None] - distance
            return (slopes.bfloat16() * key.clamp(min=0)).float() * self.factor

        return ctx.once(("alibi", self, heads), make)


@dataclass(frozen=True)
class Relative(Position):
    """A trained number for each head and bucket of distances (T5, Raffel et al. 2020).

    Half of the buckets are single distances, the rest grow in logarithmic steps up to `reach`, and the last one has all
    distances from there on; both_ways gives the future buckets of its own. The table (buckets, heads) belongs to the
    model: all its layers share it.
    """

    tagged: ClassVar[bool] = True

    buckets: int = 32
    reach: int = 128
    both_ways: bool = False

    def __post_init__(self) -> None:
        if self.buckets < (least := 4 if self.both_ways else 2) or self.reach < 1:
            raise DougongError(
                f"relative positions in {self.buckets} buckets up to {self.reach}; expected at least {least} and 1"
            )

    def bucket(self, distance: Int[Tensor, "*N"]) -> Int[Tensor, "*N"]:
        """The bucket of query position minus key position."""
        count, first = self.buckets, torch.zeros_like(distance)
        if self.both_ways:
            count //= 2
            first = (distance < 0) * count
            distance = distance.abs()
        else:
            distance = distance.clamp(min=0)
        single = count // 2
        if self.reach <= single:  # no steps
            return first + torch.where(distance < single, distance, count - 1)
        steps = (distance.float().clamp(min=1) / single).log() / math.log(self.reach / single) * (count - single)
        far = (single + steps.long()).clamp(max=count - 1)
        return first + torch.where(distance < single, distance, far)

    def bias(self, ctx: Context, heads: int) -> Float[Tensor, "#B H T S"]:
        rows = ctx.relative
        assert rows is not None, "the model has no table of relative positions"
        return ctx.once(("relative", self), lambda: rows(self.bucket(ctx.distances())).permute(0, 3, 1, 2))
