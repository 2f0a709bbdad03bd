"""y = x W^T + b, as fast as the machine at hand allows, forward and backward.

On x86 CPUs PyTorch's float32 `F.linear` calls MKL; oneDNN's generated kernels for the same product are a quarter to a
third faster (docs/log.md has the table). So the product and the gradient of its input go to oneDNN, and the gradient of
the weight, for which oneDNN would have to turn both operands around, stays with MKL.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dougong.parts import native
from dougong.parts.shapes import Float

# Below this many multiply-adds the extra dispatch costs more than the kernel gains; but from this many weights on, more
# than a cache near a core holds, oneDNN reads them twice as fast for any number of rows.
_WORTH = 1 << 22
_LARGE = 1 << 19
# So few rows with so many weights read the weights faster in a kernel of our own (docs/log.md).
FEW = 8
_MANY = 1 << 17
# Of narrow matrices, as small encoders have, twice as many rows still: what other kernels do first costs more there.
_NARROW, _FEW_NARROW = 512, 16


def _linear_pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _probe() -> bool:
    """Whether this build of PyTorch has oneDNN's linear operator and this CPU is one of those it is faster on."""
    if not torch.backends.mkldnn.is_available() or "avx512" not in torch.backends.cpu.get_cpu_capability().lower():
        return False
    try:
        _linear_pointwise(torch.zeros(2, 4), torch.zeros(3, 4), None)
    except (AttributeError, RuntimeError):
        return False
    return True


_ONEDNN = _probe()


_SCHEMA = "(Tensor x, Tensor weight, Tensor? bias) -> Tensor"


@torch.library.custom_op("dougong::linear", mutates_args=(), device_types="cpu", schema=_SCHEMA)
def _compiled_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The operator as torch.compile sees it: a whole, not to be replaced by a kernel of its own choice."""
    return _linear_pointwise(x, weight, bias)


@_compiled_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def product(x: Float[Tensor, "N i"], weight: Float[Tensor, "o i"], bias: Tensor | None = None) -> Float[Tensor, "N o"]:
    """x W^T + b without a gradient; the kernel is chosen by size, type and device."""
    if not _worth(x.shape[0], x, weight):
        return F.linear(x, weight, bias)
    return (_compiled_linear if torch.compiler.is_compiling() else _linear_pointwise)(x, weight, bias)


def _by_our_own(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """x W^T + b by the kernels of parts.native, where they serve."""
    same = x.dtype == weight.dtype and (bias is None or bias.dtype == x.dtype)
    if not same or x.dtype not in (torch.float32, torch.bfloat16) or not weight.is_contiguous():
        return None
    ours = native.serving(x)
    if ours is None:
        return None
    y = ours.linear(x.float().contiguous(), weight, None if bias is None else bias.float().contiguous())
    return y if y.dtype == x.dtype else y.to(x.dtype)


def _worth(rows: int, x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and (rows * weight.numel() >= _WORTH or weight.numel() >= _LARGE)
        and _ONEDNN
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # Under a frozen weight nothing asks for x again: what reads a long input through it need not keep it (LoRA-FA).
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
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
    few = _FEW_NARROW if weight.shape[1] <= _NARROW and weight.dtype == torch.float32 else FEW
    if 0 < rows <= few and weight.numel() >= _MANY and not torch.is_grad_enabled():
        y = None if torch.is_autocast_enabled("cpu") else _by_our_own(x.reshape(rows, -1), weight, bias)
        if y is not None:
            return y.view(*x.shape[:-1], -1)
    if torch.is_autocast_enabled("cpu") or not _worth(rows, x, weight):
        return F.linear(x, weight, bias)
    flat = x.reshape(rows, x.shape[-1])
    y = _Linear.apply(flat, weight, bias) if torch.is_grad_enabled() else product(flat, weight, bias)
    return y.view(*x.shape[:-1], weight.shape[0])  # pyright: ignore[reportOptionalMemberAccess]
