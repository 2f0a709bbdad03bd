"""y = x W^T + b, as fast as the machine at hand allows, forward and backward.

On x86 CPUs PyTorch's float32 `F.linear` calls MKL; oneDNN's generated kernels for the same product are a quarter to a
third faster (docs/log.md has the table). So the product and the gradient of its input go to oneDNN, and the gradient of
the weight, for which oneDNN would have to turn both operands around, stays with MKL.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dougong.parts.shapes import Float

# Below this many multiply-adds the extra dispatch costs more than the kernel gains.
_WORTH = 1 << 22


@cache
def _onednn() -> Any:
    """oneDNN's linear operator, or None where this build of PyTorch or this CPU has none."""
    if not torch.backends.mkldnn.is_available() or "avx512" not in torch.backends.cpu.get_cpu_capability().lower():
        return None
    try:
        operator = torch.ops.mkldnn._linear_pointwise
        operator(torch.zeros(2, 4), torch.zeros(3, 4), None, "none", [], "")
    except (AttributeError, RuntimeError):
        return None
    return operator


def product(x: Float[Tensor, "N i"], weight: Float[Tensor, "o i"], bias: Tensor | None = None) -> Float[Tensor, "N o"]:
    """x W^T + b without a gradient; the kernel is chosen by size, type and device."""
    operator = _onednn() if x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 else None
    if operator is None or x.shape[0] * weight.numel() < _WORTH:
        return F.linear(x, weight, bias)
    return operator(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.with_bias = bias is not None
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad = grads[0]
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            dx = product(grad.contiguous(), weight.t())  # oneDNN reads the turned view as it is
        if ctx.needs_input_grad[1]:
            dw = grad.t() @ x
        if ctx.with_bias and ctx.needs_input_grad[2]:
            db = grad.sum(0)
        return dx, dw, db


def linear(x: Float[Tensor, "*N i"], weight: Float[Tensor, "o i"], bias: Tensor | None = None) -> Float[Tensor, "*N o"]:
    """x W^T + b with gradients. Equal to `torch.nn.functional.linear` up to the order of the additions."""
    rows = x.numel() // x.shape[-1] if x.numel() else 0
    if (
        rows * weight.numel() < _WORTH
        or x.device.type != "cpu"
        or not x.dtype == weight.dtype == torch.float32
        or torch.compiler.is_compiling()
        or torch.is_autocast_enabled("cpu")
        or _onednn() is None
    ):
        return F.linear(x, weight, bias)
    flat = x.reshape(rows, x.shape[-1])
    y = _Linear.apply(flat, weight, bias) if torch.is_grad_enabled() else product(flat, weight, bias)
    return y.view(*x.shape[:-1], weight.shape[0])  # pyright: ignore[reportOptionalMemberAccess]
