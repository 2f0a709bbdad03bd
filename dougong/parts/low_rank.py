"""A projection, whole or through a few numbers."""

from __future__ import annotations

from torch import Tensor, nn

from dougong.parts.linear import Linear
from dougong.parts.shapes import Float


class LowRank(nn.Module):
    """b(a(x)): a projection through `rank` numbers."""

    def __init__(self, width: int, out: int, rank: int, bias: bool = False):
        super().__init__()
        self.a = Linear(width, rank, axes=("embed", "embed"))
        self.b = Linear(rank, out, bias, axes=("embed", "heads"))

    def forward(self, x: Float[Tensor, "*N D"]) -> Float[Tensor, "*N E"]:
        return self.b(self.a(x))


def projection(width: int, out: int, rank: int | None, bias: bool = False) -> Linear | LowRank:
    """From the width to heads; rank None: one matrix."""
    return Linear(width, out, bias, axes=("embed", "heads")) if rank is None else LowRank(width, out, rank, bias)


def products(width: int, out: int, rank: int | None) -> int:
    """Weights in such a projection's matrices."""
    return width * out if rank is None else rank * (width + out)
