"""Dual chunk attention (DCA, An et al. 2024): texts far longer than the trained length, without training.

A model trained on c tokens never saw a rotation by more than c - 1. DCA cuts the text into chunks of s < c tokens and
turns every key to its place in its chunk; a query is turned to one of three places, by where the key stands:

    its own chunk      p mod s                   the distance as it is
    the chunk before   min(p mod s + s, c - 1)   right up to c - s tokens back, so that neighbours stay in order
    any other          c - 1                     far

No distance exceeds c - 1, and a text of at most s tokens is plain attention. YaRN or another scaling of the rotary
frequencies may be added.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from dougong.base import DougongError
from dougong.parts.attend import Scoring, attend
from dougong.parts.context import Context
from dougong.parts.linear import Linear
from dougong.parts.norm import Norm
from dougong.parts.rope import DynamicNTK, LongRope, Rope, turn
from dougong.parts.shapes import Float
from dougong.parts.state import LayerState, Slot, Slots

_STRIP = 256  # queries at a time


@dataclass(frozen=True)
class DualChunkAttention:
    """Attention (its fields mean the same, and its weights have the same names) over chunks of `chunk` tokens.

    local: tokens back into the chunk before whose distance is exact; the model was trained on chunk + local or more.
    """

    tagged: ClassVar[bool] = True

    heads: int
    kv_heads: int
    head_size: int
    position: Rope
    chunk: int
    local: int
    bias: bool = False
    out_bias: bool = False
    qk_norm: Norm | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        if self.kv_heads < 1 or self.heads % self.kv_heads:
            raise DougongError(f"{self.heads} heads over {self.kv_heads} kv_heads; expected a multiple of kv_heads")
        if not 0 < self.local <= self.chunk:
            raise DougongError(f"local is {self.local}; expected 1 to the chunk, {self.chunk}")
        if isinstance(self.position.scaling, (DynamicNTK, LongRope)):
            raise DougongError("dual chunk attention keeps distances short; a scaling by the text's length is refused")

    def build(self, width: int) -> DualChunkAttentionLayer:
        return DualChunkAttentionLayer(self, width)

    def slots(self) -> Slots:
        entry = Slot((self.kv_heads, self.head_size))
        return {"k": entry, "v": entry}

    def parameters(self, width: int) -> int:
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        count = 2 * width * (queries + keys) + (queries + 2 * keys) * self.bias + width * self.out_bias
        return count + (2 * self.qk_norm.parameters(self.head_size) if self.qk_norm else 0)

    def flops(self, width: int, context: float) -> float:
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        return 4 * width * (queries + keys) + 4 * queries * context


class DualChunkAttentionLayer(nn.Module):
    def __init__(self, spec: DualChunkAttention, width: int):
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
        spec = self.spec
        q, k, v = (each(x).unflatten(-1, (-1, spec.head_size)) for each in (self.q, self.k, self.v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        v = v.transpose(1, 2)
        within = ctx.once(("within", spec.chunk), lambda: replace(ctx, positions=ctx.positions % spec.chunk, memo={}))
        q_own, k = spec.position.rotate(q, k, within)
        if state is not None:
            k, v = state.extend(ctx, k=k, v=v)
        if ctx.once(("one chunk", spec.chunk), lambda: bool(ctx.positions.max() < spec.chunk)):
            y = attend(q_own, k, v, ctx, Scoring(scale=spec.scale))
        else:
            y = self._attend((q_own, *self._farther(q, ctx)), k, v, ctx)
        return self.o(y.transpose(1, 2).flatten(2))

    def _farther(self, q: Float[Tensor, "B T H d"], ctx: Context) -> Iterator[Float[Tensor, "B H T d"]]:
        """The queries as they meet the chunk before, and those before that."""
        spec, rope = self.spec, self.spec.position
        last = spec.chunk + spec.local - 1
        for name, places in (
            ("before", (ctx.positions % spec.chunk + spec.chunk).clamp(max=last)),
            ("far", torch.full_like(ctx.positions, last)),
        ):
            key = (name, spec.chunk, last, rope, q.dtype)
            cos, sin = ctx.once(key, lambda at=places: rope.angles(Context(at), q.dtype))
            yield turn(q, cos, sin, rope.interleaved)

    def _attend(
        self,
        queries: tuple[Float[Tensor, "B H T d"], ...],
        k: Float[Tensor, "B K S d"],
        v: Float[Tensor, "B K S d"],
        ctx: Context,
    ) -> Float[Tensor, "B H T d"]:
        """One softmax over the scores of all three kinds. A strip of queries at a time, and for each kind only the keys
        that some query of the strip meets so: in all about as many products as plain attention has."""
        spec, heads = self.spec, self.spec.kv_heads
        scale = spec.head_size**-0.5 if spec.scale is None else spec.scale
        keys_at = ctx.positions if ctx.key_positions is None else ctx.key_positions
        kind = (ctx.positions[:, :, None] // spec.chunk - keys_at[:, None, :] // spec.chunk).clamp(0, 2)
        mask, out = ctx.mask(), []
        for start in range(0, mask.shape[1], _STRIP):
            rows = slice(start, start + _STRIP)
            scores, read = [], []
            for number, q in enumerate(queries):
                met = mask[:, rows] & (kind[:, rows] == number)  # (B, t, S)
                keys = met.flatten(0, 1).any(0).nonzero()[:, 0]
                products = q[:, :, rows].unflatten(1, (heads, -1)) @ k[:, :, None, keys].mT * scale
                scores.append(products.float().masked_fill(~met[:, None, None, :, keys], -math.inf))
                read.append(keys)
            weights = torch.cat(scores, -1).softmax(-1).to(v.dtype)  # (B, K, G, t, keys read)
            out.append((weights @ v[:, :, None, torch.cat(read)]).flatten(1, 2))
        return torch.cat(out, 2)
