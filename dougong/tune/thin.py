"""s B A x for thin A and B, forward and backward, with the long operands never turned around: added to a product that
is there already (`add_thin`), or with the product of the weight itself (`thin_linear`).

Beside a matrix of a few rows, BLAS libraries are up to ten times slower when it is the long operand (N, i) that must
be transposed on the way. So everything here is made as (r, N) instead of (N, r): A x^T, B^T dy^T, and of them the
gradients of A and of B^T, whose products read x and dy as they lie in memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dougong.parts.matmul import product
from dougong.parts.shapes import Float


class _Thin(torch.autograd.Function):
    """Keeps x for A's gradient alone, and r numbers a row for B's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        low = a @ x.t()  # (r, N)
        ctx.scale = scale
        need_x, _, need_a, need_b = ctx.needs_input_grad[:4]
        ctx.save_for_backward(
            x if need_a else None, low if need_b else None, a if need_x else None, b if need_x or need_a else None
        )
        return torch.addmm(y, low.t(), b.t(), alpha=scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, low, a, b = ctx.saved_tensors
        grad = grads[0]
        dx = da = db = None
        if b is not None:
            dual = (b.t() @ grad.t()).mul_(ctx.scale)  # (r, N): the gradient of A x
            dx = None if a is None else dual.t() @ a
            da = None if x is None else dual @ x
        if low is not None:
            db = (low @ grad).mul_(ctx.scale).t()
        return dx, grad if ctx.needs_input_grad[1] else None, da, db, None


class _ThinLinear(torch.autograd.Function):
    """Multiplies by W + s B A, which is made for each product and dropped: two passes over a matrix instead of two over
    the tokens. Keeps what `_Thin` keeps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        ctx.scale, (need_a, need_b) = scale, ctx.needs_input_grad[3:5]
        ctx.save_for_backward(x if need_a else None, a @ x.t() if need_b else None, weight, a, b)
        return product(x, torch.addmm(weight, b, a, alpha=scale), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, low, weight, a, b = ctx.saved_tensors
        grad = grads[0].contiguous()
        dx = d_bias = da = db = None
        if ctx.needs_input_grad[0]:
            dx = product(grad, torch.addmm(weight, b, a, alpha=ctx.scale).t())
        if ctx.needs_input_grad[2]:
            d_bias = grad.sum(0)
        if x is not None:
            da = (b.t() @ grad.t()).mul_(ctx.scale) @ x
        if low is not None:
            db = (low @ grad).mul_(ctx.scale).t()
        return dx, None, d_bias, da, db, None


def thin_linear(
    scale: float,
    a: Float[Tensor, "r i"],
    b: Float[Tensor, "o r"],
    x: Float[Tensor, "*N i"],
    weight: Float[Tensor, "o i"],
    bias: Float[Tensor, " o"] | None = None,
) -> Float[Tensor, "*N o"]:
    """x (W + scale B A)^T + bias with gradients to all but the weight, which is taken as a constant; all of one type,
    outside autocast. Sooner than `add_thin` after a product where `pays` says so."""
    flat = _ThinLinear.apply(x.reshape(-1, x.shape[-1]), weight, bias, a, b, scale)
    assert isinstance(flat, Tensor)
    return flat.view(*x.shape[:-1], weight.shape[0])


def pays(rows: int, inputs: int, outputs: int) -> bool:
    """Whether W + s B A, made once forward and once backward, is less work than B and A^T times so many rows."""
    return rows * (inputs + outputs) > 2 * inputs * outputs


def add_thin(
    scale: float, a: Float[Tensor, "r i"], b: Float[Tensor, "o r"], x: Float[Tensor, "*N i"], y: Float[Tensor, "*N o"]
) -> Float[Tensor, "*N o"]:
    """y + scale B A x with gradients to all four; all of one type, outside autocast."""
    flat = _Thin.apply(x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1]), a, b, scale)
    assert isinstance(flat, Tensor)
    return flat.view(y.shape)
