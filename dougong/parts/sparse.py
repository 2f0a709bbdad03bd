"""Attention to a fixed pattern of keys: local windows, strides, blocks, global tokens, and their unions.

Named after who made them known: Window(s) and Strided(s) together are the strided pattern of Child et al. (2019),
Blocks(s) and Columns(s, c) their fixed one; Window and First are Longformer's (Beltagy et al. 2020); Blocks(s, n) with
First is block-sparse attention as in BigBird (Zaheer et al. 2020) without its random blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from dougong.base import DougongError
from dougong.parts.attend import Scoring
from dougong.parts.context import Context
from dougong.parts.linear import Linear
from dougong.parts.position import NOWHERE
from dougong.parts.rope import Rope
from dougong.parts.select import attend_where
from dougong.parts.shapes import Bool, Float, Int
from dougong.parts.state import LayerState, Slot, Slots


@dataclass(frozen=True)
class Window:
    """The `size` tokens up to the query (and as many after it, where that may be seen)."""

    tagged: ClassVar[bool] = True

    size: int

    def sees(self, query: Int[Tensor, "#B T 1"], key: Int[Tensor, "#B 1 S"]) -> Bool[Tensor, "#B T S"]:
        return (query - key).abs() < self.size

    def count(self, context: float) -> float:
        """How many of `context` keys a query sees, about."""
        return self.size


@dataclass(frozen=True)
class Strided:
    """Every `stride`-th token back from the query."""

    tagged: ClassVar[bool] = True

    stride: int

    def sees(self, query: Int[Tensor, "#B T 1"], key: Int[Tensor, "#B 1 S"]) -> Bool[Tensor, "#B T S"]:
        return (query - key) % self.stride == 0

    def count(self, context: float) -> float:
        return context / self.stride


@dataclass(frozen=True)
class Columns:
    """The last `last` tokens of every block of `block`: summaries that all later tokens read."""

    tagged: ClassVar[bool] = True

    block: int
    last: int = 1

    def sees(self, query: Int[Tensor, "#B T 1"], key: Int[Tensor, "#B 1 S"]) -> Bool[Tensor, "#B T S"]:
        return (key % self.block >= self.block - self.last).expand(-1, query.shape[1], -1)

    def count(self, context: float) -> float:
        return context * self.last / self.block


@dataclass(frozen=True)
class Blocks:
    """The query's own block of `size` tokens and the `near` blocks before it (and after it)."""

    tagged: ClassVar[bool] = True

    size: int
    near: int = 0

    def sees(self, query: Int[Tensor, "#B T 1"], key: Int[Tensor, "#B 1 S"]) -> Bool[Tensor, "#B T S"]:
        return (query // self.size - key // self.size).abs() <= self.near

    def count(self, context: float) -> float:
        return self.size * (self.near + 0.5)


@dataclass(frozen=True)
class First:
    """The first `tokens` tokens of the text are global: all see them, and they see all that may be seen."""

    tagged: ClassVar[bool] = True

    tokens: int

    def sees(self, query: Int[Tensor, "#B T 1"], key: Int[Tensor, "#B 1 S"]) -> Bool[Tensor, "#B T S"]:
        return (key < self.tokens) | (query < self.tokens)

    def count(self, context: float) -> float:
        return self.tokens


Pattern = Window | Strided | Columns | Blocks | First


@dataclass(frozen=True)
class SparseAttention:
    """Grouped-query attention in which a query sees itself and the keys that one of the `patterns` shows it, as far as
    the context lets it. Keys that no query of a strip sees are not read: all but a few, when tokens come one by one.
    """

    tagged: ClassVar[bool] = True

    heads: int
    kv_heads: int
    head_size: int
    patterns: tuple[Pattern, ...]
    position: Rope | None = None
    bias: bool = False
    scale: float | None = None

    def __post_init__(self) -> None:
        if not self.patterns:
            raise DougongError("patterns is empty; name at least one, such as Window(256)")
        if self.kv_heads < 1 or self.heads % self.kv_heads:
            raise DougongError(f"{self.heads} heads over {self.kv_heads} kv_heads; expected a multiple of kv_heads")

    def build(self, width: int) -> SparseAttentionLayer:
        return SparseAttentionLayer(self, width)

    def slots(self) -> Slots:
        reach = [each.size for each in self.patterns if isinstance(each, Window)]
        entry = Slot((self.kv_heads, self.head_size), window=max(reach) if len(reach) == len(self.patterns) else None)
        return {"k": entry, "v": entry}

    def parameters(self, width: int) -> int:
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        return 2 * width * (queries + keys) + (queries + 2 * keys) * self.bias

    def flops(self, width: int, context: float) -> float:
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        seen = min(context, sum(each.count(context) for each in self.patterns))
        return 4 * width * (queries + keys) + 4 * queries * seen

    def sees(self, ctx: Context) -> Bool[Tensor, "#B T S"]:
        """Which keys each query sees."""

        def make() -> Tensor:
            query = ctx.positions[:, :, None]
            key = (ctx.positions if ctx.key_positions is None else ctx.key_positions)[:, None, :]
            shown = query == key
            for each in self.patterns:
                shown = shown | each.sees(query, key)
            return shown & ctx.mask()

        return ctx.once(("sparse", self.patterns), make)


class SparseAttentionLayer(nn.Module):
    def __init__(self, spec: SparseAttention, width: int):
        super().__init__()
        self.spec = spec
        queries, keys = spec.heads * spec.head_size, spec.kv_heads * spec.head_size
        self.q = Linear(width, queries, spec.bias, axes=("embed", "heads"))
        self.k = Linear(width, keys, spec.bias, axes=("embed", "kv_heads"))
        self.v = Linear(width, keys, spec.bias, axes=("embed", "kv_heads"))
        self.o = Linear(queries, width, axes=("heads", "embed"))

    def forward(
        self, x: Float[Tensor, "B T D"], ctx: Context, state: LayerState | None = None
    ) -> Float[Tensor, "B T D"]:
        spec = self.spec
        q, k, v = (each(x).unflatten(-1, (-1, spec.head_size)) for each in (self.q, self.k, self.v))
        q, k = (spec.position or NOWHERE).rotate(q, k, ctx)
        v = v.transpose(1, 2)
        if state is not None:
            k, v = state.extend(ctx, k=k, v=v)
        y = attend_where(q, k, v, spec.sees(ctx)[:, None], Scoring(scale=spec.scale))
        return self.o(y.transpose(1, 2).flatten(2))
