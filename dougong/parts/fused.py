"""Linears that read the same input, multiplied in one product: q, k and v; gate and up.

The Linears stay where they are, with their names, biases and adapters; only their weights move into one matrix, of
which each holds some rows. So what walks over Linears sees nothing new, and a product less is a product less.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from dougong.parts.linear import Linear, Storage
from dougong.parts.shapes import Float, Int


@runtime_checkable
class Fusable(Protocol):
    """A module with Linears that read the same input, and that asks for their products by `together`."""

    def siblings(self) -> Sequence[tuple[Linear, ...]]: ...


class Whole(nn.Module):
    """The matrix of several Linears, and their biases side by side (zeros for one that has none)."""

    def __init__(self, storage: Storage, linears: Sequence[Linear]):
        super().__init__()
        self.storage = storage
        self.sizes = [each.out_features for each in linears]
        # What each Linear was given, to notice when something is replaced.
        self.members = tuple((each, Part(self, number), each.bias) for number, each in enumerate(linears))
        given = [each.bias for each in linears if each.bias is not None]
        parts = [given[0].new_zeros(each.out_features) if each.bias is None else each.bias for each in linears if given]
        self.bias: Tensor | None
        self.register_buffer("bias", torch.cat(parts).detach() if given else None)

    def take_over(self) -> None:
        """Give the Linears their rows of the one matrix in place of their own."""
        for linear, part, _ in self.members:
            linear.storage = part

    def serves(self, linears: Sequence[Linear]) -> bool:
        """Whether these are the Linears whose rows it holds, with nothing replaced since. Asked at every step of every
        layer, so it looks where a module keeps things instead of asking the module, which takes ten times as long."""
        if len(linears) != len(self.members):
            return False
        for linear, (own, part, bias) in zip(linears, self.members, strict=True):
            same = linear is own and linear._modules["storage"] is part and linear._parameters.get("bias") is bias
            if not same or linear.placement is not None:
                return False
        return True


class Part(Storage):
    """The rows of a `Whole` that belong to its Linear number `number`."""

    def __init__(self, whole: Whole, number: int):
        super().__init__()
        self.whole = whole
        self.number = number
        self.start = sum(whole.sizes[:number])
        self.stop = self.start + whole.sizes[number]

    def matmul(self, x: Float[Tensor, "*N i"], bias: Tensor | None) -> Float[Tensor, "*N o"]:
        y = self.whole.storage.matmul(x, None)[..., self.start : self.stop]
        return y if bias is None else y + bias

    def rows(self, ids: Int[Tensor, "*N"]) -> Float[Tensor, "*N i"]:
        return self.whole.storage.rows(ids + self.start)

    def dense(self) -> Float[Tensor, "o i"]:
        return self.whole.storage.dense()[self.start : self.stop]


def together(x: Float[Tensor, "*N i"], *linears: Linear) -> tuple[Float[Tensor, "*N _"], ...]:
    """Each Linear's product with x, in one product where their weights were fused."""
    first = linears[0]._modules["storage"]
    if not isinstance(first, Part) or not (whole := first.whole).serves(linears):
        return tuple(each(x) for each in linears)
    products = whole.storage.matmul(x, whole.bias).split(whole.sizes, -1)
    return tuple(_adapted(each, x, y) if each.adapters else y for each, y in zip(linears, products, strict=True))


def _adapted(linear: Linear, x: Tensor, y: Tensor) -> Tensor:
    for adapter in linear.adapters.values():
        y = adapter(linear, x, y)
    return y
