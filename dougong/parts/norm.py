"""Normalisations over the last dimension."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dougong.parts import native
from dougong.parts.shapes import Float


@dataclass(frozen=True)
class Norm:
    """rms: x / sqrt(mean(x^2) + eps) * w (Zhang & Sennrich 2019). layer: (x - mean) / sqrt(var + eps) * w + b
    (Ba et al. 2016). batch: the same with the mean and variance of each channel over all tokens of the batch (Ioffe &
    Szegedy 2015), running averages when not training. Statistics are taken in float32, whatever the type of x.
    """

    kind: Literal["rms", "layer", "batch"] = "rms"
    eps: float = 1e-6
    bias: bool = False  # only LayerNorm and BatchNorm have one
    weight: bool = True  # False: no factor at all
    offset: float = 0.0  # the factor is w + offset: 1 where w is stored as its distance from 1

    def build(self, size: int) -> RMSNorm | LayerNorm | BatchNorm:
        if self.kind == "rms":
            return RMSNorm(size, self.eps, self.weight, self.offset)
        return LayerNorm(size, self.eps, self.weight, self.bias) if self.kind == "layer" else BatchNorm(size, self.eps)

    def parameters(self, size: int) -> int:
        return size * (self.weight + (self.kind != "rms" and self.bias))


class _RMSNorm(torch.autograd.Function):
    """RMSNorm with its gradient by hand, which keeps x alone.

    With r = (mean(x^2) + eps)^-1/2 and g = w dy:  dx = r g - x r^3 mean(g x),  dw = sum dy x r.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        ours = native.serving(x) if x.is_contiguous() else None
        return (x * _inverse_rms(x, eps)).mul_(weight) if ours is None else ours.rms_norm(x, weight, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        ours = native.serving(x) if x.is_contiguous() and not ctx.needs_input_grad[1] else None
        if ours is not None:
            return ours.rms_norm_gradient(x, weight, grads[0].contiguous(), ctx.eps), None, None
        inverse = _inverse_rms(x, ctx.eps)
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
    def __init__(self, size: int, eps: float, weight: bool = True, offset: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size)) if weight else None
        self.eps, self.offset = eps, offset

    def forward(self, x: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        weight = self.weight if self.weight is None or not self.offset else self.weight + self.offset
        if torch.compiler.is_compiling():  # the compiler fuses the formula, its gradient and what surrounds them
            inverse = (x.float().square().mean(-1, keepdim=True) + self.eps).rsqrt()
            normal = (x.float() * inverse).to(x.dtype)
        elif weight is not None and torch.is_grad_enabled() and x.dtype == weight.dtype == torch.float32:
            y = _RMSNorm.apply(x, weight, self.eps)
            assert isinstance(y, Tensor)
            return y
        elif x.dtype == torch.float32 and (weight is None or weight.dtype == torch.float32):
            ours = None if torch.is_grad_enabled() or not x.is_contiguous() else native.serving(x)
            if ours is not None:
                return ours.rms_norm(x, weight, self.eps)
            return F.rms_norm(x, (x.shape[-1],), weight, self.eps)
        else:  # the kernel takes its statistics in float32 and rounds once before the weight, as it should
            normal = F.rms_norm(x, (x.shape[-1],), eps=self.eps)
        return normal if weight is None else normal * weight.to(x.dtype)


class LayerNorm(nn.Module):
    def __init__(self, size: int, eps: float, weight: bool, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size)) if weight else None
        self.bias = nn.Parameter(torch.empty(size)) if bias else None
        self.eps = eps

    def forward(self, x: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        weight, bias = (None if part is None else part.to(x.dtype) for part in (self.weight, self.bias))
        return F.layer_norm(x, (x.shape[-1],), weight, bias, self.eps)


class BatchNorm(nn.Module):
    """Over all tokens of a batch, padding included: the lesson of why language models do not use it."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size))
        self.eps = eps
        self.mean: Tensor
        self.variance: Tensor
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("variance", torch.ones(size))

    def forward(self, x: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        y = F.batch_norm(
            x.flatten(0, -2), self.mean, self.variance, self.weight, self.bias, self.training, 0.1, self.eps
        )
        return y.view(x.shape)
