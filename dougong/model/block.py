"""One residual wiring for every layer of every family."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dougong.model.spec import LayerSpec
from dougong.parts.context import Context
from dougong.parts.shapes import Float
from dougong.parts.state import LayerState


class Block(nn.Module):
    """A mixer and a feed-forward on the residual path.

    pre       x + f(norm(x))                    (Xiong et al. 2020)
    post      norm(x + f(x))                    (Vaswani et al. 2017)
    sandwich  x + norm_out(f(norm(x)))          (Ding et al. 2021; Gemma 2)
    parallel  x + mixer(norm(x)) + ffn(norm(x)) with one norm for both (GPT-J)
    """

    def __init__(self, spec: LayerSpec, width: int):
        super().__init__()
        self.wiring = spec.wiring
        self.mixer = spec.mixer.build(width)
        self.ffn = spec.ffn.build(width) if spec.ffn else None
        self.mixer_norm = spec.norm.build(width)
        self.ffn_norm = spec.norm.build(width) if spec.ffn and spec.wiring != "parallel" else None
        sandwich = spec.wiring == "sandwich"
        self.mixer_out_norm = spec.norm.build(width) if sandwich else None
        self.ffn_out_norm = spec.norm.build(width) if sandwich and spec.ffn else None

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        ctx: Context,
        states: tuple[LayerState | None, LayerState | None] = (None, None),
    ) -> Float[Tensor, "B T D"]:
        if self.wiring == "parallel":
            normal = _for_products(self.mixer_norm(x))
            x = x + self.mixer(normal, ctx, states[0])
            return x if self.ffn is None else x + self.ffn(normal, ctx, states[1])
        x = self._residual(x, self.mixer, self.mixer_norm, self.mixer_out_norm, ctx, states[0])
        if self.ffn is None:
            return x
        return self._residual(x, self.ffn, self.ffn_norm, self.ffn_out_norm, ctx, states[1])

    def _residual(
        self,
        x: Tensor,
        sublayer: nn.Module,
        norm: nn.Module | None,
        out_norm: nn.Module | None,
        ctx: Context,
        state: LayerState | None,
    ) -> Tensor:
        assert norm is not None
        if self.wiring == "post":
            return norm(x + sublayer(x, ctx, state))
        y = sublayer(_for_products(norm(x)), ctx, state)
        return x + (y if out_norm is None else out_norm(y))


def _for_products(x: Tensor) -> Tensor:
    """Under autocast, the type that products take: one cast for all that read x, instead of one for each."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x
