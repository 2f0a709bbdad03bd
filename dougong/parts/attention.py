"""Multi-head, grouped-query and multi-query attention (Vaswani et al. 2017; Ainslie et al. 2023; Shazeer 2019), over
the text itself or over a source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from dougong.parts.attend import Scoring, attend
from dougong.parts.context import Context
from dougong.parts.fused import together
from dougong.parts.linear import Linear
from dougong.parts.norm import Norm
from dougong.parts.position import NOWHERE, Alibi, Relative
from dougong.parts.rope import Rope
from dougong.parts.shapes import Float
from dougong.parts.state import LayerState, Slot, Slots


@dataclass(frozen=True)
class Attention:
    """`heads` queries share `kv_heads` keys and values: equal is MHA, fewer is GQA, one is MQA.

    qk_norm   normalises queries and keys before they are turned (Dehghani et al. 2023), each head alone or the whole
              projection at once (qk_norm_over); after_turn: once they are turned
    sinks     a trained score a head that takes part in the softmax and gives nothing (gpt-oss)
    gate      the heads' output times sigmoid(gate(x)): a number for each coordinate, or one for each head
    clip      queries, keys and values are clamped to +- clip
    window, chunk, scale, softcap, dropout: `attend.Scoring`
    """

    tagged: ClassVar[bool] = True

    heads: int
    kv_heads: int
    head_size: int
    bias: bool = False
    out_bias: bool = False
    position: Rope | Alibi | Relative | None = None
    qk_norm: Norm | None = None
    window: int | None = None
    scale: float | None = None  # None: head_size ** -0.5
    qk_norm_over: Literal["head", "projection"] = "head"
    qk_norm_after_turn: bool = False
    chunk: int | None = None
    softcap: float | None = None
    sinks: bool = False
    gate: Literal["coordinate", "head"] | None = None
    clip: float | None = None
    dropout: float = 0.0

    def build(self, width: int) -> AttentionLayer:
        return AttentionLayer(self, width)

    def build_across(self, width: int, source: int) -> CrossAttentionLayer:
        """The layer whose keys and values come from a source of another width."""
        return CrossAttentionLayer(self, width, source)

    def scoring(self) -> Scoring:
        return Scoring(self.window, self.chunk, self.scale, self.softcap, self.dropout)

    def slots(self) -> Slots:
        entry = Slot((self.kv_heads, self.head_size), window=self.window or self.chunk)
        return {"k": entry, "v": entry}

    def source_slots(self) -> Slots:
        entry = Slot((self.kv_heads, self.head_size), per_source=True)
        return {"k": entry, "v": entry}

    def parameters(self, width: int, source: int | None = None) -> int:
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        count = 2 * width * queries + 2 * (source or width) * keys
        count += (queries + 2 * keys) * self.bias + width * self.out_bias + self.heads * self.sinks
        if self.gate:
            count += (width + self.bias) * (queries if self.gate == "coordinate" else self.heads)
        if self.qk_norm and self.qk_norm_over == "head":
            count += 2 * self.qk_norm.parameters(self.head_size)
        elif self.qk_norm:
            count += self.qk_norm.parameters(queries) + self.qk_norm.parameters(keys)
        return count

    def flops(self, width: int, context: float) -> float:
        """Forward floating-point operations a token that attends to `context` tokens: two a multiply-add."""
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        limit = self.window or self.chunk
        seen = context if limit is None else min(context, limit)
        gate = {None: 0, "coordinate": queries, "head": self.heads}[self.gate]
        return 2 * width * (2 * queries + 2 * keys + gate) + 4 * queries * seen


class AttentionLayer(nn.Module):
    def __init__(self, spec: Attention, width: int):
        super().__init__()
        self.spec = spec
        queries, keys = spec.heads * spec.head_size, spec.kv_heads * spec.head_size
        self.q = Linear(width, queries, spec.bias, axes=("embed", "heads"))
        self.k = Linear(width, keys, spec.bias, axes=("embed", "kv_heads"))
        self.v = Linear(width, keys, spec.bias, axes=("embed", "kv_heads"))
        self.o = Linear(queries, width, spec.out_bias, axes=("heads", "embed"))
        whole = spec.qk_norm_over == "projection"
        self.q_norm = spec.qk_norm.build(queries if whole else spec.head_size) if spec.qk_norm else None
        self.k_norm = spec.qk_norm.build(keys if whole else spec.head_size) if spec.qk_norm else None
        self.sinks = nn.Parameter(torch.empty(spec.heads)) if spec.sinks else None
        gates = queries if spec.gate == "coordinate" else spec.heads
        self.gate = Linear(width, gates, spec.bias, axes=("embed", "heads")) if spec.gate else None

    def siblings(self) -> list[tuple[Linear, ...]]:
        """Linears that read the same input (fused.py)."""
        return [(self.q, self.k, self.v)]

    def initial(self, generator: torch.Generator) -> None:
        if self.sinks is not None:
            self.sinks.zero_()

    def forward(
        self, x: Float[Tensor, "B T D"], ctx: Context, state: LayerState | None = None
    ) -> Float[Tensor, "B T D"]:
        q, k, v = self.project(x, ctx)
        if state is not None:
            k, v = state.extend(ctx, k=k, v=v)
        y = attend(q, k, v, ctx, self.spec.scoring(), self.bias(ctx), self.sinks, self.training)  # (B, H, T, d)
        y = y.transpose(1, 2)
        if self.gate is not None:
            y = y * self.gate(x).sigmoid().view(*x.shape[:2], self.spec.heads, -1)
        return self.o(y.flatten(2))

    def bias(self, ctx: Context) -> Float[Tensor, "#B H T S"] | None:
        """What the position adds to the scores."""
        return (self.spec.position or NOWHERE).bias(ctx, self.spec.heads)

    def project(
        self, x: Float[Tensor, "B T D"], ctx: Context
    ) -> tuple[Float[Tensor, "B H T d"], Float[Tensor, "B K T d"], Float[Tensor, "B K T d"]]:
        """Queries, keys and values, normalised and turned to their positions."""
        spec = self.spec
        q, k, v = together(x, self.q, self.k, self.v)
        if spec.clip is not None:
            q, k, v = (each.clamp(-spec.clip, spec.clip) for each in (q, k, v))
        whole = spec.qk_norm_over == "projection"
        if self.q_norm is not None and self.k_norm is not None and whole:
            q, k = self.q_norm(q), self.k_norm(k)
        q = q.unflatten(-1, (-1, spec.head_size))  # (B, T, H, d)
        k = k.unflatten(-1, (-1, spec.head_size))
        v = v.unflatten(-1, (-1, spec.head_size)).transpose(1, 2)
        by_head = self.q_norm is not None and self.k_norm is not None and not whole
        if by_head and not spec.qk_norm_after_turn:
            q, k = self.q_norm(q), self.k_norm(k)  # pyright: ignore[reportOptionalCall]
        q, k = (spec.position or NOWHERE).rotate(q, k, ctx)
        if by_head and spec.qk_norm_after_turn:
            q, k = self.q_norm(q), self.k_norm(k)  # pyright: ignore[reportOptionalCall]
        return q, k, v

    def extra_repr(self) -> str:
        return f"heads={self.spec.heads}, kv_heads={self.spec.kv_heads}, head_size={self.spec.head_size}"


class CrossAttentionLayer(nn.Module):
    """Queries from the text, keys and values from `ctx.source`, which are made once a source and kept in the state."""

    def __init__(self, spec: Attention, width: int, source: int):
        super().__init__()
        self.spec = spec
        queries, keys = spec.heads * spec.head_size, spec.kv_heads * spec.head_size
        self.q = Linear(width, queries, spec.bias, axes=("embed", "heads"))
        self.k = Linear(source, keys, spec.bias, axes=("embed", "kv_heads"))
        self.v = Linear(source, keys, spec.bias, axes=("embed", "kv_heads"))
        self.o = Linear(queries, width, spec.out_bias, axes=("heads", "embed"))

    def forward(
        self, x: Float[Tensor, "B T D"], ctx: Context, state: LayerState | None = None
    ) -> Float[Tensor, "B T D"]:
        source = ctx.source
        assert source is not None

        def heads(y: Tensor) -> Tensor:
            return y.unflatten(-1, (-1, self.spec.head_size)).transpose(1, 2)

        q = heads(self.q(x))
        if state is None:
            k, v = heads(self.k(source)), heads(self.v(source))
        else:
            k = state.keep("k", lambda: heads(self.k(source)))
            v = state.keep("v", lambda: heads(self.v(source)))
        y = attend(q, k, v, ctx.across(), self.spec.scoring(), training=self.training)
        return self.o(y.transpose(1, 2).flatten(2))
