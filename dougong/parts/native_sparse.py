"""Native sparse attention (NSA, Yuan et al. 2025): a coarse look at everything, a close look at a few blocks and at the
nearest tokens.

    y_t = g1 attend(q_t, one key a block)  +  g2 attend(q_t, chosen blocks)  +  g3 attend(q_t, last tokens)

The text is cut into blocks, each compressed to one key and value a head. The weights that a group of query heads gives
to the compressed keys say which blocks it reads in full; the gates g are sigmoids of x_t, a number a head and branch.
Simpler than the paper: compressed and chosen blocks are the same, and the branches share their keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dougong.base import DougongError
from dougong.parts.attend import Scoring, attend
from dougong.parts.context import Context
from dougong.parts.linear import Linear
from dougong.parts.position import NOWHERE
from dougong.parts.rope import Rope
from dougong.parts.segments import by_document
from dougong.parts.select import attend_at, attend_where
from dougong.parts.shapes import Float, Int
from dougong.parts.state import LayerState, Slot, Slots


@dataclass(frozen=True)
class NativeSparseAttention:
    """block    tokens of a block
    chosen   blocks that a query reads in full: its own, the one before, the first, and those that weigh most
    window   nearest tokens, the query's own included
    hidden   width of the MLP that compresses a block; None: its mean alone
    """

    tagged: ClassVar[bool] = True

    heads: int
    kv_heads: int
    head_size: int
    block: int = 64
    chosen: int = 16
    window: int = 512
    hidden: int | None = None
    position: Rope | None = None

    def __post_init__(self) -> None:
        if self.kv_heads < 1 or self.heads % self.kv_heads:
            raise DougongError(f"{self.heads} heads over {self.kv_heads} kv_heads; expected a multiple of kv_heads")
        for name in ("block", "chosen", "window"):
            if getattr(self, name) < 1:
                raise DougongError(f"{name} is {getattr(self, name)}; expected at least 1")

    def build(self, width: int) -> NativeSparseAttentionLayer:
        return NativeSparseAttentionLayer(self, width)

    def slots(self) -> Slots:
        # A block's compressed key stands at its last token, so that a step reads every block-th entry only.
        return {name: Slot((self.kv_heads, self.head_size)) for name in ("k", "v", "block_k", "block_v")}

    def parameters(self, width: int) -> int:
        queries, keys, size = self.heads * self.head_size, self.kv_heads * self.head_size, self.head_size
        compressor = self.block * size + (self.hidden or 0) * (self.block + 1) * size
        return width * (2 * queries + 2 * keys + 3 * self.heads) + 2 * compressor

    def flops(self, width: int, context: float) -> float:
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        seen = context / self.block + min(context, self.chosen * self.block) + min(context, self.window)
        compression = 2 * (self.hidden or 0) * (self.block + 1) * keys / self.block
        return 2 * (width * (2 * queries + 2 * keys + 3 * self.heads) + compression + 2 * queries * seen)


class Compressor(nn.Module):
    """A block's vectors, each with its place in the block added, as one: their mean, plus an MLP's view of them all."""

    def __init__(self, block: int, size: int, hidden: int | None):
        super().__init__()
        self.position = nn.Parameter(torch.empty(block, size))
        self.up = Linear(block * size, hidden, axes=("embed", "ffn")) if hidden else None
        self.down = Linear(hidden, size, axes=("ffn", "embed")) if hidden else None

    def initial(self, generator: torch.Generator) -> None:
        self.position.zero_()

    def forward(self, x: Float[Tensor, "*N b d"]) -> Float[Tensor, "*N d"]:
        x = x + self.position.to(x.dtype)
        mean = x.mean(-2)
        if self.up is None or self.down is None:
            return mean
        return mean + self.down(F.silu(self.up(x.flatten(-2))))


class NativeSparseAttentionLayer(nn.Module):
    def __init__(self, spec: NativeSparseAttention, width: int):
        super().__init__()
        self.spec = spec
        queries, keys = spec.heads * spec.head_size, spec.kv_heads * spec.head_size
        self.q = Linear(width, queries, axes=("embed", "heads"))
        self.k = Linear(width, keys, axes=("embed", "kv_heads"))
        self.v = Linear(width, keys, axes=("embed", "kv_heads"))
        self.o = Linear(queries, width, axes=("heads", "embed"))
        self.gate = Linear(width, 3 * spec.heads, axes=("embed", "heads"))
        self.k_compress = Compressor(spec.block, spec.head_size, spec.hidden)
        self.v_compress = Compressor(spec.block, spec.head_size, spec.hidden)

    def forward(
        self, x: Float[Tensor, "B T D"], ctx: Context, state: LayerState | None = None
    ) -> Float[Tensor, "B T D"]:
        if not ctx.causal or ctx.both_ways is not None:
            raise DougongError("native sparse attention is causal: it cannot let tokens see later ones")
        if state is None:
            return by_document(self._whole, x, ctx)
        q, k, v = self._project(x, ctx)
        k, v = state.extend(ctx, k=k, v=v)
        place = ctx.positions.expand(len(x), -1)
        block_k, block_v = state.extend(
            ctx, block_k=self._recent(self.k_compress, k, place), block_v=self._recent(self.v_compress, v, place)
        )
        ends = slice(self.spec.block - 1, None, self.spec.block)
        return self._mix(x, q, k, v, block_k[:, :, ends], block_v[:, :, ends], ctx)

    def _whole(self, x: Float[Tensor, "N L D"]) -> Float[Tensor, "N L D"]:
        """Rows of one document each, from its beginning."""
        ctx = Context(torch.arange(x.shape[1], device=x.device)[None])
        q, k, v = self._project(x, ctx)
        full = x.shape[1] // self.spec.block
        block_k, block_v = (
            compress(each[:, :, : full * self.spec.block].unflatten(2, (full, self.spec.block)))
            for compress, each in ((self.k_compress, k), (self.v_compress, v))
        )
        return self._mix(x, q, k, v, block_k, block_v, ctx)

    def _project(self, x: Tensor, ctx: Context) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (each(x).unflatten(-1, (-1, self.spec.head_size)) for each in (self.q, self.k, self.v))
        q, k = (self.spec.position or NOWHERE).rotate(q, k, ctx)
        return q, k, v.transpose(1, 2)

    def _recent(
        self, compress: Compressor, x: Float[Tensor, "B K S d"], place: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B K T d"]:
        """For each new token its block compressed: right at the last token of a block, and not read elsewhere."""
        block, (heads, length, size) = self.spec.block, x.shape[1:]
        first = place[:, :1] // block
        touched = (place.shape[1] - 2 + block) // block + 1
        blocks = first + torch.arange(touched, device=x.device)
        index = (blocks[..., None] * block + torch.arange(block, device=x.device)).clamp(max=length - 1)
        taken = x.gather(2, index.flatten(1)[:, None, :, None].expand(-1, heads, -1, size))
        small = compress(taken.unflatten(2, (touched, block)))
        return small.gather(2, (place // block - first)[:, None, :, None].expand(-1, heads, -1, size))

    def _mix(
        self,
        x: Float[Tensor, "B T D"],
        q: Float[Tensor, "B H T d"],
        k: Float[Tensor, "B K S d"],
        v: Float[Tensor, "B K S d"],
        block_k: Float[Tensor, "B K N d"],
        block_v: Float[Tensor, "B K N d"],
        ctx: Context,
    ) -> Float[Tensor, "B T D"]:
        place = ctx.positions.expand(len(x), -1)
        coarse, weight = self._coarse(q, block_k, block_v, place)
        with torch.no_grad():
            index = self._choose(weight, k.shape[2], place)
        close = self._close(q, k, v, index, place)
        near = self._near(q, k, v, place, ctx)
        gates = self.gate(x).sigmoid().unflatten(-1, (-1, 3)).transpose(1, 2)  # (B, H, T, 3)
        y = (torch.stack((coarse, close, near), -1) * gates[..., None, :]).sum(-1)
        return self.o(y.transpose(1, 2).flatten(2))

    def _coarse(
        self, q: Tensor, block_k: Tensor, block_v: Tensor, place: Tensor
    ) -> tuple[Float[Tensor, "B H T d"], Float[Tensor, "B K T N"]]:
        """Attention to the compressed blocks that are past, and the weight that each group of heads gives them."""
        ends = (torch.arange(block_k.shape[2], device=q.device) + 1) * self.spec.block - 1
        past = (ends <= place[..., None])[:, None, None]  # (B, 1, 1, T, N)
        grouped = q.unflatten(1, (block_k.shape[1], -1))
        scores = (grouped @ block_k[:, :, None].mT * self.spec.head_size**-0.5).float()
        # A query in the first block has nothing to look at: its weights are 0.
        weights = scores.masked_fill(~past, torch.finfo(scores.dtype).min).softmax(-1) * past
        return (weights.to(q.dtype) @ block_v[:, :, None]).flatten(1, 2), weights.sum(2)

    def _choose(self, weight: Tensor, length: int, place: Tensor) -> Int[Tensor, "B K T n"]:
        """The blocks that each group reads in full; -1 where there are fewer than it may choose."""
        block = self.spec.block
        count = -(-length // block)
        rank = F.pad(weight, (0, count - weight.shape[-1]))
        number, own = torch.arange(count, device=place.device), place[:, None, :, None] // block
        for value, always in ((1e30, number == 0), (2e30, number == own - 1), (3e30, number == own)):
            rank = rank.masked_fill(always, value)
        best = rank.masked_fill(number > own, -1.0).topk(min(self.spec.chosen, count), dim=-1)
        return best.indices.masked_fill(best.values < 0, -1)

    def _close(self, q: Tensor, k: Tensor, v: Tensor, index: Tensor, place: Tensor) -> Float[Tensor, "B H T d"]:
        """Attention to the chosen blocks, up to the query's own place."""
        block, length, when = self.spec.block, k.shape[2], place[:, None, :, None]
        if index.shape[2] * index.shape[3] * block <= length:
            keys = (index[..., None] * block + torch.arange(block, device=q.device)).flatten(-2)
            return attend_at(q, k, v, keys.clamp(0, length - 1), (keys >= 0) & (keys <= when))
        # One block more than there are takes the entries that name none.
        read = torch.zeros(*index.shape[:3], -(-length // block) + 1, dtype=torch.bool, device=q.device)
        read = read.scatter(-1, index.remainder(read.shape[-1]), True)
        seen = read.repeat_interleave(block, -1)[..., :length]
        return attend_where(q, k, v, seen & (torch.arange(length, device=q.device) <= when))

    def _near(self, q: Tensor, k: Tensor, v: Tensor, place: Tensor, ctx: Context) -> Float[Tensor, "B H T d"]:
        """Attention to the nearest tokens."""
        if place.shape[1] * self.spec.window > k.shape[2]:
            return attend(q, k, v, ctx, Scoring(window=self.spec.window))
        keys = (place[..., None] - torch.arange(self.spec.window, device=q.device))[:, None].expand(
            -1, k.shape[1], -1, -1
        )
        return attend_at(q, k, v, keys.clamp(min=0), keys >= 0)
