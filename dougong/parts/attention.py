"""Multi-head, grouped-query and multi-query attention (Vaswani et al. 2017; Ainslie et al. 2023; Shazeer 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from dougong.parts.attend import attend
from dougong.parts.context import Context
from dougong.parts.linear import Linear
from dougong.parts.norm import Norm
from dougong.parts.position import NOWHERE, Rope
from dougong.parts.shapes import Float
from dougong.parts.state import LayerState, Slot, Slots


@dataclass(frozen=True)
class Attention:
    """`heads` queries share `kv_heads` keys and values: equal is MHA, fewer is GQA, one is MQA.

    qk_norm normalises each head's query and key before they are turned (Dehghani et al. 2023). A window of w lets each
    token see itself and the w - 1 before it.
    """

    tagged: ClassVar[bool] = True

    heads: int
    kv_heads: int
    head_size: int
    bias: bool = False
    out_bias: bool = False
    position: Rope | None = None
    qk_norm: Norm | None = None
    window: int | None = None
    scale: float | None = None  # None: head_size ** -0.5

    def build(self, width: int) -> AttentionLayer:
        return AttentionLayer(self, width)

    def slots(self) -> Slots:
        entry = Slot((self.kv_heads, self.head_size), window=self.window)
        return {"k": entry, "v": entry}

    def parameters(self, width: int) -> int:
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        count = width * (2 * queries + 2 * keys)
        count += (queries + 2 * keys) * self.bias + width * self.out_bias
        return count + (2 * self.qk_norm.parameters(self.head_size) if self.qk_norm else 0)

    def flops(self, width: int, context: float) -> float:
        """Forward floating-point operations a token that attends to `context` tokens: two a multiply-add."""
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        seen = context if self.window is None else min(context, self.window)
        return 2 * width * (2 * queries + 2 * keys) + 4 * queries * seen


class AttentionLayer(nn.Module):
    def __init__(self, spec: Attention, width: int):
        super().__init__()
        self.spec = spec
        queries, keys = spec.heads * spec.head_size, spec.kv_heads * spec.head_size
        self.q = Linear(width, queries, spec.bias, axes=("embed", "heads"))
        self.k = Linear(width, keys, spec.bias, axes=("embed", "kv_heads"))
        self.v = Linear(width, keys, spec.bias, axes=("embed", "kv_heads"))
        self.o = Linear(queries, width, spec.out_bias, axes=("heads", "embed"))
        self.q_norm = spec.qk_norm.build(spec.head_size) if spec.qk_norm else None
        self.k_norm = spec.qk_norm.build(spec.head_size) if spec.qk_norm else None

    def forward(
        self, x: Float[Tensor, "B T D"], ctx: Context, state: LayerState | None = None
    ) -> Float[Tensor, "B T D"]:
        q, k, v = self.project(x, ctx)
        if state is not None:
            k, v = state.extend(ctx, k=k, v=v)
        y = attend(q, k, v, ctx, self.spec.window, self.spec.scale)  # (B, H, T, d)
        return self.o(y.transpose(1, 2).flatten(2))

    def project(
        self, x: Float[Tensor, "B T D"], ctx: Context
    ) -> tuple[Float[Tensor, "B H T d"], Float[Tensor, "B K T d"], Float[Tensor, "B K T d"]]:
        """Queries, keys and values, normalised and turned to their positions."""
        spec = self.spec
        q = self.q(x).unflatten(-1, (-1, spec.head_size))  # (B, T, H, d)
        k = self.k(x).unflatten(-1, (-1, spec.head_size))
        v = self.v(x).unflatten(-1, (-1, spec.head_size)).transpose(1, 2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = (spec.position or NOWHERE).rotate(q, k, ctx)
        return q, k, v

    def extra_repr(self) -> str:
        return f"heads={self.spec.heads}, kv_heads={self.spec.kv_heads}, head_size={self.spec.head_size}"
