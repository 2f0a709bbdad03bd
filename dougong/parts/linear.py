"""The one Linear, with logical axes and three plug-ins that do not know each other.

`storage` says how the weight is kept (dense here; int8, int4, nf4, fp8 by quantization), `adapters` what is added to
the product (LoRA and its kin), `placement` what happens around it when the weight is sharded. So `lora()`,
`quantize()`, `shard()` and `fuse()` are each one walk over the Linears of a model, work on every family, and compose.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from dougong.parts.matmul import linear
from dougong.parts.shapes import Float, Int


class Storage(nn.Module, ABC):
    """How a weight matrix (out, in) is kept. Two modules that share one storage are tied, whatever its form."""

    @abstractmethod
    def matmul(self, x: Float[Tensor, "*N i"], bias: Tensor | None) -> Float[Tensor, "*N o"]:
        """x W^T + bias."""

    @abstractmethod
    def rows(self, ids: Int[Tensor, "*N"]) -> Float[Tensor, "*N i"]:
        """Rows of the matrix, as an embedding table gives them."""

    @abstractmethod
    def dense(self) -> Float[Tensor, "o i"]:
        """The matrix itself, as floats."""


class Dense(Storage):
    """The matrix as a parameter in floating point."""

    def __init__(self, out_features: int, in_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))

    def matmul(self, x: Float[Tensor, "*N i"], bias: Tensor | None) -> Float[Tensor, "*N o"]:
        return linear(x, self.weight, bias)

    def rows(self, ids: Int[Tensor, "*N"]) -> Float[Tensor, "*N i"]:
        return nn.functional.embedding(ids, self.weight)

    def dense(self) -> Float[Tensor, "o i"]:
        return self.weight


@runtime_checkable
class Adapter(Protocol):
    """A change to a Linear's product: `y` is the product so far.

    An adapter may also have `whole(layer, x)`: the Linear's own product and the change to it at once, where that is
    sooner, or None where it is not.
    """

    def __call__(self, layer: Linear, x: Tensor, y: Tensor) -> Tensor: ...


@runtime_checkable
class Placement(Protocol):
    """What surrounds the product of a sharded weight: gather or copy before it, reduce after it."""

    def before(self, x: Tensor) -> Tensor: ...

    def after(self, y: Tensor) -> Tensor: ...


class Linear(nn.Module):
    """y = x W^T + b over the last dimension.

    axes: the logical names of (input, output), such as ("embed", "heads"); sharding derives column or row from them.
    Names in use: embed, heads, kv_heads, ffn, vocab.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = False, axes: tuple[str, str] = ("embed", "embed")
    ):
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.axes = axes
        self.storage: Storage = Dense(out_features, in_features)
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.adapters = nn.ModuleDict()
        self.placement: Placement | None = None

    def forward(self, x: Float[Tensor, "*N i"]) -> Float[Tensor, "*N o"]:
        if self.placement is not None:
            x = self.placement.before(x)
        adapters: list[Any] = list(self.adapters.values())
        at_once = getattr(adapters[0], "whole", None) if adapters else None
        y = None if at_once is None else at_once(self, x)
        if y is None:
            y = self.storage.matmul(x, self.bias)
        else:
            adapters = adapters[1:]
        for adapter in adapters:
            y = adapter(self, x, y)
        return y if self.placement is None else self.placement.after(y)

    @property
    def by_row(self) -> bool:
        """Whether some adapter serves only some rows of the batch at hand."""
        return any(getattr(adapter, "by_row", False) for adapter in self.adapters.values())

    @property
    def weight(self) -> Float[Tensor, "o i"]:
        """The matrix as floats; for dense storage the parameter itself."""
        return self.storage.dense()

    def extra_repr(self) -> str:
        return f"{self.axes[0]} {self.in_features} -> {self.axes[1]} {self.out_features}, bias={self.bias is not None}"
