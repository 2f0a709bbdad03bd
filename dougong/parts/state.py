"""State that a sublayer carries from token to token, and the contiguous store that keeps it.

A sublayer declares its state as named slots; whoever runs the model allocates, owns and advances it. A slot grows by
one entry a token (keys and values: (heads, size) a token), has a fixed size a sequence (a recurrence), or is made once
from the source (the keys and values of cross-attention).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.parts.context import Context
from dougong.parts.shapes import Float, Int


@dataclass(frozen=True)
class Slot:
    """One named piece of state: `shape` a token (heads, size), a sequence, or a token of the source (heads, size)."""

    shape: tuple[int, ...]
    per_token: bool = True
    per_source: bool = False  # a token of the source, whatever per_token says
    dtype: torch.dtype | None = None  # None: the model's own
    window: int | None = None  # tokens further back than this are never read again

    def elements(self, tokens: int) -> int:
        """Numbers kept for one sequence of `tokens` tokens."""
        if self.per_source:
            return 0  # as many as the source has, not the text
        if not self.per_token:
            return math.prod(self.shape)
        return math.prod(self.shape) * (tokens if self.window is None else min(tokens, self.window))


Slots = Mapping[str, Slot]


@runtime_checkable
class LayerState(Protocol):
    """What a sublayer sees of its state during one forward pass."""

    def extend(self, ctx: Context, **new: Float[Tensor, "B heads T size"]) -> tuple[Tensor, ...]:
        """Store the new tokens' entries and return those of all tokens so far, (B, heads, S, size) each, in order."""
        ...

    def read(self, name: str) -> Tensor:
        """A fixed-size slot, (B, *shape)."""
        ...

    def write(self, name: str, value: Tensor) -> None:
        """Replace a fixed-size slot."""
        ...

    def keep(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """A slot of the source, (B, heads, S, size): made at the first call, the same ever after."""
        ...


@runtime_checkable
class Stored(Protocol):
    """The state of all sublayers during one forward pass, in the order in which the model runs them."""

    @property
    def layers(self) -> Sequence[LayerState]: ...


class _ContiguousLayer:
    """One sublayer's slots in a `Cache`."""

    def __init__(self, cache: Cache, tensors: dict[str, Tensor]):
        self.cache = cache
        self.tensors = tensors

    def extend(self, ctx: Context, **new: Float[Tensor, "B heads T size"]) -> tuple[Tensor, ...]:
        total = self.cache.total
        out = []
        for name, value in new.items():
            buffer = self.tensors[name]
            if self.cache.aligned is not None:
                start = self.cache.aligned
                buffer[:, :, start : start + value.shape[2]].copy_(value)
            else:
                rows = torch.arange(value.shape[0], device=value.device)[:, None]
                buffer[rows, :, ctx.positions] = value.transpose(1, 2).to(buffer.dtype)
            out.append(buffer[:, :, :total])
        return tuple(out)

    def read(self, name: str) -> Tensor:
        return self.tensors[name]

    def write(self, name: str, value: Tensor) -> None:
        self.tensors[name].copy_(value)

    def keep(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        if name not in self.tensors:
            self.tensors[name] = make()
        return self.tensors[name]


class Cache:
    """State of B sequences side by side: token t of a sequence stands at place t of its row.

    Rows may have different lengths. Shorter rows of a step carry padding at their end: it is written past the row's
    length, is never visible (later positions are not), and is overwritten by the tokens that follow.
    """

    def __init__(
        self,
        slots: Sequence[Slots],
        batch: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        self.capacity = capacity
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        self.total = 0  # keys that the running step can see at most
        self.aligned: int | None = 0  # the common length of all rows, None when they differ
        self.source: Tensor | None = None  # (B, S, D): the encoder's output, for cross-attention
        self.source_padding: Tensor | None = None
        self.layers = [
            _ContiguousLayer(
                self,
                {
                    name: _allocate(slot, batch, capacity, dtype, device)
                    for name, slot in each.items()
                    if not slot.per_source
                },
            )
            for each in slots
        ]

    def context(self, tokens: Int[Tensor, "B T"], counts: Int[Tensor, " B"] | None = None) -> Context:
        """Begin a step that appends `tokens`, of which `counts` a row are real (default: all). Returns its context.

        The step ends with `advance(counts)`. Raises DougongError when a row would outgrow the capacity.
        """
        new = tokens.shape[1]
        longest = int(self.lengths.max())
        if longest + new > self.capacity:
            raise DougongError(f"the cache holds {self.capacity} tokens a sequence; {longest + new} are needed")
        self.aligned = longest if bool((self.lengths == longest).all()) else None
        self.total = longest + new
        steps = torch.arange(new, device=tokens.device)
        positions = self.lengths[:, None] + steps if self.aligned is None else (self.aligned + steps)[None]
        lengths = self.lengths + (new if counts is None else counts)
        # At the beginning the keys are the new tokens alone.
        keys = None if self.aligned == 0 else torch.arange(self.total, device=tokens.device)[None]
        ctx = Context(positions, keys, lengths=lengths, counts=counts)
        ctx.source, ctx.source_padding = self.source, self.source_padding
        return ctx

    def advance(self, counts: Int[Tensor, " B"] | int) -> None:
        """End a step: row b now holds `counts[b]` more tokens."""
        self.lengths += counts

    def bytes(self) -> int:
        """Memory held by the buffers."""
        return sum(tensor.numel() * tensor.element_size() for layer in self.layers for tensor in layer.tensors.values())


def _allocate(slot: Slot, batch: int, capacity: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    if not slot.per_token:
        return torch.zeros(batch, *slot.shape, dtype=slot.dtype or dtype, device=device)
    heads, size = slot.shape
    return torch.zeros(batch, heads, capacity, size, dtype=slot.dtype or dtype, device=device)
