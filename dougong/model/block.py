"""One residual wiring for every layer of every family."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dougong.model.spec import LayerSpec
from dougong.parts.context import Context
from dougong.parts.feedforward import dropped
from dougong.parts.shapes import Float
from dougong.parts.state import LayerState

States = tuple[LayerState | None, ...]


class Block(nn.Module):
    """A mixer, cross-attention where the layer has it, and a feed-forward, on the residual path.

    With (a, b) = (1, 1) unless the spec's `mixer_scale` or `ffn_scale` says otherwise:

    pre       a x + b f(norm(x))                      (Xiong et al. 2020)
    post      norm(a x + b f(x))                      (Vaswani et al. 2017; DeepNorm with a > 1, Wang et al. 2022)
    sandwich  a x + b norm_out(f(norm(x)))            (Ding et al. 2021; Gemma 2)
    output    a x + b norm(f(x))                      (Liu et al. 2022; OLMo 2)
    through   a norm(x) + b f(norm(x))                (MiniMax-01)
    parallel  a x + b mixer(norm(x)) + b ffn(norm(x)) with one norm for both (GPT-J), or one each: parallel_norms

    In training a share of f's output is dropped (`LayerSpec.dropout`, `ffn_dropout`).
    """

    def __init__(self, spec: LayerSpec, width: int, source: int | None = None):
        super().__init__()
        self.spec = spec
        self.wiring = spec.wiring
        self.ffn_dropout = spec.dropout if spec.ffn_dropout is None else spec.ffn_dropout
        self.mixer = spec.mixer.build(width)
        self.cross = spec.cross.build_across(width, source or width) if spec.cross else None
        self.ffn = spec.ffn.build(width) if spec.ffn else None
        self.mixer_norm = spec.norm.build(width) if spec.first_norm else None
        self.cross_norm = spec.norm.build(width) if spec.cross else None
        self.ffn_norm = spec.norm.build(width) if spec.ffn and spec.wiring != "parallel" else None
        sandwich = spec.wiring == "sandwich"
        self.mixer_out_norm = spec.norm.build(width) if sandwich else None
        self.ffn_out_norm = spec.norm.build(width) if sandwich and spec.ffn else None

    def forward(
        self, x: Float[Tensor, "B T D"], ctx: Context, states: States = (None, None, None)
    ) -> Float[Tensor, "B T D"]:
        keep, add = self.spec.mixer_scale
        if self.wiring in ("parallel", "parallel_norms"):
            assert self.mixer_norm is not None
            normal = _for_products(self.mixer_norm(x))
            y = self.mixer(normal, ctx, states[0])
            apart = self.spec.ffn_dropout is not None
            y = dropped(y, self.spec.dropout, self.training and apart)
            if self.ffn is not None:
                second = normal if self.ffn_norm is None else _for_products(self.ffn_norm(x))
                y = y + dropped(self.ffn(second, ctx, states[2]), self.ffn_dropout, self.training and apart)
            y = dropped(y, self.spec.dropout, self.training and not apart)
            return keep * x + add * y if (keep, add) != (1, 1) else x + y
        share = self.spec.dropout
        x = self._residual(x, self.mixer, self.mixer_norm, self.mixer_out_norm, ctx, states[0], keep, add, share)
        if self.cross is not None:
            x = self._residual(x, self.cross, self.cross_norm, None, ctx, states[1], 1, 1, share)
        if self.ffn is None:
            return x
        scale, share = self.spec.ffn_scale, self.ffn_dropout
        return self._residual(x, self.ffn, self.ffn_norm, self.ffn_out_norm, ctx, states[2], *scale, share)

    def _residual(
        self,
        x: Tensor,
        sublayer: nn.Module,
        norm: nn.Module | None,
        out_norm: nn.Module | None,
        ctx: Context,
        state: LayerState | None,
        keep: float,
        add: float,
        share: float,
    ) -> Tensor:
        last = self.wiring in ("post", "output")
        before, after = (None, norm) if last else (norm, out_norm)
        normal = x if before is None else before(x)
        y = dropped(sublayer(_for_products(normal), ctx, state), share, self.training)
        if after is not None and self.wiring != "post":
            y = after(y)
        if self.wiring == "through":
            x = normal
        x = x + y if (keep, add) == (1, 1) else keep * x + add * y
        return after(x) if after is not None and self.wiring == "post" else x


def _for_products(x: Tensor) -> Tensor:
    """Under autocast, the type that products take: one cast for all that read x, instead of one for each."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x
