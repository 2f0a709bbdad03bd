"""E matrices side by side, each applied to its own rows: the linear algebra of a mixture of experts.

Rows come sorted by expert, so each matrix meets one contiguous piece and no expert masks or copies the whole batch.
`GroupedLinear` has the three slots of `Linear` (storage, adapters, placement), which do not know each other either.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dougong.parts.linear import Placement
from dougong.parts.matmul import linear, product
from dougong.parts.shapes import Float, Int


@dataclass(frozen=True)
class Groups:
    """How P rows, sorted by expert, fall to E experts. Rows past the last one belong to none; their product is 0.

    tokens: the token that each row comes from, among the `total` of the step; adapters that differ by row ask for it.
    """

    counts: Int[Tensor, " E"]
    tokens: Int[Tensor, " P"] | None = None
    total: int = 0

    @cached_property
    def sizes(self) -> list[int]:
        """The counts on the host: on a GPU this waits for them, so it is asked for once, and only where needed."""
        return self.counts.tolist()

    @cached_property
    def ends(self) -> Int[Tensor, " E"]:
        """One past the last row of each expert, int32."""
        return self.counts.cumsum(0).to(torch.int32)


def grouped(
    x: Float[Tensor, "P i"], weight: Float[Tensor, "E o i"], groups: Groups, bias: Float[Tensor, "E o"] | None = None
) -> Float[Tensor, "P o"]:
    """y_p = W_e x_p + b_e for the expert e that row p belongs to, with gradients."""
    kind = "cpu" if x.is_meta else x.device.type
    if torch.is_autocast_enabled(kind):
        to = torch.get_autocast_dtype(kind)
        x, weight, bias = x.to(to), weight.to(to), None if bias is None else bias.to(to)
    if torch.compiler.is_compiling():
        return _compiled_grouped(x, weight, bias, groups.counts)
    if _one_kernel(x, weight):
        return _by_kernel(x, weight, groups, bias)
    y = (
        _Grouped.apply(x, weight, bias, groups.sizes)
        if torch.is_grad_enabled()
        else _pieces(x, weight, bias, groups.sizes)
    )
    assert isinstance(y, Tensor)
    return y


def _by_kernel(x: Tensor, weight: Tensor, groups: Groups, bias: Tensor | None) -> Tensor:
    """PyTorch's kernel, which neither adds a bias nor writes the rows past the last expert's, forward or backward."""
    row = torch.arange(len(x), device=x.device)
    inside = (row < groups.ends[-1])[:, None]
    y = F.grouped_mm(torch.where(inside, x, 0), weight.transpose(1, 2), offs=groups.ends)
    if bias is not None:
        y = y + bias[torch.searchsorted(groups.ends, row, right=True).clamp(max=len(weight) - 1)]
    return torch.where(inside, y, 0)


def _one_kernel(x: Tensor, weight: Tensor) -> bool:
    """Whether PyTorch's grouped kernel takes the case: on a GPU, where it never waits for the counts. On a CPU it is
    a loop as well, over MKL's products, which are slower than `product`'s (docs/log.md)."""
    aligned = x.shape[1] % 8 == 0 and weight.shape[1] % 8 == 0
    return hasattr(F, "grouped_mm") and x.is_cuda and x.dtype == weight.dtype == torch.bfloat16 and aligned


def _pieces(x: Tensor, weight: Tensor, bias: Tensor | None, sizes: list[int]) -> Tensor:
    y = x.new_empty(x.shape[0], weight.shape[1])
    start = 0
    for expert, size in enumerate(sizes):
        if size:
            rows = slice(start, start + size)
            y[rows] = product(x[rows], weight[expert], None if bias is None else bias[expert])
            start += size
    y[start:].zero_()
    return y


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, sizes: list[int], needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias, those that are needed."""
    grad = grad.contiguous()
    dx = torch.empty_like(x) if needs[0] else None
    dw = torch.empty_like(weight) if needs[1] else None
    db = weight.new_zeros(weight.shape[:2]) if needs[2] else None
    start = 0
    for expert, size in enumerate(sizes):
        piece, rows = grad[start : start + size], slice(start, start + size)
        if dw is not None and size:
            torch.mm(piece.t(), x[rows], out=dw[expert])
        elif dw is not None:
            dw[expert].zero_()
        if db is not None and size:
            db[expert] = piece.sum(0)
        if dx is not None and size:
            dx[rows] = product(piece, weight[expert].t())  # oneDNN reads the turned view as it is
        start += size
    if dx is not None:
        dx[start:].zero_()
    return dx, dw, db


class _Grouped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, sizes: list[int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.sizes = sizes
        return _pieces(x, weight, bias, sizes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        return *_gradients(grads[0], x, weight, ctx.sizes, ctx.needs_input_grad[:3]), None


# What torch.compile sees: two whole operators, since the loop's bounds are data.
@torch.library.custom_op(
    "dougong::grouped", mutates_args=(), schema="(Tensor x, Tensor weight, Tensor? bias, Tensor counts) -> Tensor"
)
def _compiled_grouped(x: Tensor, weight: Tensor, bias: Tensor | None, counts: Tensor) -> Tensor:
    return _pieces(x, weight, bias, counts.tolist())


@torch.library.custom_op(
    "dougong::grouped_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor weight, Tensor counts) -> (Tensor, Tensor, Tensor)",
)
def _compiled_gradients(grad: Tensor, x: Tensor, weight: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dx, dw, db = _gradients(grad, x, weight, counts.tolist(), (True, True, True))
    assert dx is not None and dw is not None and db is not None
    return dx, dw, db


@_compiled_grouped.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, counts: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@_compiled_gradients.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight), weight.new_empty(weight.shape[:2])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, counts = inputs
    ctx.save_for_backward(x, weight, counts)
    ctx.biased = bias is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
    dx, dw, db = _compiled_gradients(grad, *ctx.saved_tensors)
    return dx, dw, db if ctx.biased else None, None


_compiled_grouped.register_autograd(_backward, setup_context=_keep)


class GroupedStorage(nn.Module, ABC):
    """How E weight matrices (E, out, in) are kept."""

    @abstractmethod
    def matmul(self, x: Float[Tensor, "P i"], groups: Groups, bias: Tensor | None) -> Float[Tensor, "P o"]:
        """Each row times the matrix of its expert, plus that expert's bias."""

    @abstractmethod
    def dense(self) -> Float[Tensor, "E o i"]:
        """The matrices themselves, as floats."""


class GroupedDense(GroupedStorage):
    """The matrices as one parameter in floating point."""

    def __init__(self, experts: int, out_features: int, in_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, out_features, in_features))

    def matmul(self, x: Float[Tensor, "P i"], groups: Groups, bias: Tensor | None) -> Float[Tensor, "P o"]:
        return grouped(x, self.weight, groups, bias)

    def dense(self) -> Float[Tensor, "E o i"]:
        return self.weight


@runtime_checkable
class GroupedAdapter(Protocol):
    """A change to a GroupedLinear's product: `y` is the product so far."""

    def __call__(self, layer: GroupedLinear, x: Tensor, y: Tensor, groups: Groups) -> Tensor: ...


class GroupedLinear(nn.Module):
    """y_p = W_e x_p + b_e over rows sorted by expert.

    axes: the logical names of (expert, input, output), such as ("expert", "embed", "ffn"); sharding derives expert,
    column or row from them.
    """

    def __init__(
        self,
        experts: int,
        in_features: int,
        out_features: int,
        bias: bool = False,
        axes: tuple[str, str, str] = ("expert", "embed", "embed"),
    ):
        super().__init__()
        self.experts = experts
        self.in_features = in_features
        self.out_features = out_features
        self.axes = axes
        self.storage: GroupedStorage = GroupedDense(experts, out_features, in_features)
        self.bias = nn.Parameter(torch.empty(experts, out_features)) if bias else None
        self.adapters = nn.ModuleDict()
        self.placement: Placement | None = None

    def forward(self, x: Float[Tensor, "P i"], groups: Groups) -> Float[Tensor, "P o"]:
        if self.placement is not None:
            x = self.placement.before(x)
        y = self.storage.matmul(x, groups, self.bias)
        for adapter in self.adapters.values():
            y = adapter(self, x, y, groups)
        return y if self.placement is None else self.placement.after(y)

    def one(self, x: Float[Tensor, "P i"], expert: int) -> Float[Tensor, "P o"]:
        """The bare product of rows that all belong to one expert, without adapters or placement."""
        return linear(x, self.weight[expert], None if self.bias is None else self.bias[expert])

    def initial(self, generator: torch.Generator) -> None:
        """As for a Linear: normal with fan_in^-1/2, 0 for outputs onto the residual path; biases 0."""
        with torch.no_grad():
            if isinstance(self.storage, GroupedDense):
                deviation = 0.0 if self.axes[2] == "embed" else self.in_features**-0.5
                weight = self.storage.weight
                weight.copy_(torch.empty(weight.shape).normal_(0.0, 1.0, generator=generator) * deviation)
            if self.bias is not None:
                self.bias.zero_()

    @property
    def by_row(self) -> bool:
        """Whether some adapter serves only some rows of the batch at hand."""
        return any(getattr(adapter, "by_row", False) for adapter in self.adapters.values())

    @property
    def weight(self) -> Float[Tensor, "E o i"]:
        """The matrices as floats; for dense storage the parameter itself."""
        return self.storage.dense()

    def extra_repr(self) -> str:
        shape = f"{self.axes[1]} {self.in_features} -> {self.axes[2]} {self.out_features}"
        return f"{self.experts} experts, {shape}, bias={self.bias is not None}"
