"""Normalisations over the last dimension."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dougong.parts.shapes import Float


@dataclass(frozen=True)
class Norm:
    """rms: x / sqrt(mean(x^2) + eps) * w (Zhang & Sennrich 2019). layer: (x - mean) / sqrt(var + eps) * w + b
    (Ba et al. 2016). The statistics are taken in float32, whatever the type of x."""

    kind: Literal["rms", "layer"] = "rms"
    eps: float = 1e-6
    bias: bool = False  # only LayerNorm has one

    def build(self, size: int) -> RMSNorm | LayerNorm:
        return RMSNorm(size, self.eps) if self.kind == "rms" else LayerNorm(size, self.eps, self.bias)

    def parameters(self, size: int) -> int:
        return size * (2 if self.kind == "layer" and self.bias else 1)


class _RMSNorm(torch.autograd.Function):
    """RMSNorm with its gradient by hand, which keeps x and one number a row.

    With r = (mean(x^2) + eps)^-1/2 and g = w dy:  dx = r g - x r^3 mean(g x),  dw = sum dy x r.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        inverse = _inverse_rms(x, eps)
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, inverse = ctx.saved_tensors
        normal = x * inverse
        product = grads[0] * normal
        dw = product.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        # mean(g x) r = mean over the width of dy * normal * w, a matrix-vector product.
        mean = (product @ weight).div_(x.shape[-1]).unsqueeze(-1)
        dx = (grads[0] * weight).addcmul_(normal, mean, value=-1).mul_(inverse)
        return dx, dw, None


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        if torch.compiler.is_compiling():  # the compiler fuses the formula, its gradient and what surrounds them
            inverse = (x.float().square().mean(-1, keepdim=True) + self.eps).rsqrt()
            return (x.float() * inverse).to(x.dtype) * self.weight.to(x.dtype)
        if torch.is_grad_enabled() and x.dtype == self.weight.dtype == torch.float32:
            y = _RMSNorm.apply(x, self.weight, self.eps)
            assert isinstance(y, Tensor)
            return y
        normal = F.rms_norm(x.float(), (x.shape[-1],), eps=self.eps).to(x.dtype)
        return normal * self.weight.to(x.dtype)


class LayerNorm(nn.Module):
    def __init__(self, size: int, eps: float, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size)) if bias else None
        self.eps = eps

    def forward(self, x: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        return F.layer_norm(
            x, (x.shape[-1],), self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype), self.eps
        )
