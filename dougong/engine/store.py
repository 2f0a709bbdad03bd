"""Tensors of stored state, as every sublayer at once: places of tokens, and rows of sequences.

Slots of equal shape are the channels of one tensor, so moving a page (to copy it, to bring it into a lane) is one
operation for all layers. A token's entry of one channel is contiguous: (channels, places, heads, size).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.parts.shapes import Float, Int
from dougong.parts.state import Slots

KV = Literal["int8", "fp8"]
_LARGEST = {"int8": 127.0, "fp8": 448.0}  # of a signed byte, and of float8 e4m3
_AT_ONCE = 1 << 24  # bytes moved in one operation


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that a CPU gives memory to only when they are written."""
    if device.type != "cpu":
        return torch.zeros(*shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(*shape)


def encode(x: Float[Tensor, "*N d"], kind: KV) -> tuple[Int[Tensor, "*N d"], Float[Tensor, "*N 1"]]:
    """x as bytes times a scale for each token and head: x ~ byte * scale, scale = max |x| / largest.

    int8 rounds to the nearest; its error is at most scale / 2. fp8 (e4m3) rounds to 3 bits after the point.
    """
    largest = _LARGEST[kind]
    # bfloat16 has float32's range; its rounding, 2^-9, is less than half a step of the largest value.
    scale = (x.detach().abs().amax(-1, keepdim=True).float() / largest).clamp(min=1e-30).to(torch.bfloat16)
    scaled = (x.float() / scale.float()).clamp(-largest, largest)
    if kind == "int8":
        return scaled.round().to(torch.int8), scale
    return scaled.to(torch.float8_e4m3fn).view(torch.int8), scale


def decode(
    data: Int[Tensor, "*N d"], scale: Float[Tensor, "*N 1"], kind: KV, dtype: torch.dtype
) -> Float[Tensor, "*N d"]:
    """What `encode` gave, as floats again."""
    values = data if kind == "int8" else data.view(torch.float8_e4m3fn)
    return values.to(dtype) * scale.to(dtype)


@dataclass(frozen=True)
class Group:
    """Slots of one shape: `channels` of them, (heads, size) a token. table: which of a sequence's tables of pages."""

    heads: int
    size: int
    dtype: torch.dtype
    table: int
    channels: int
    kv: KV | None

    def token_bytes(self) -> int:
        """Of one token in all channels."""
        numbers = self.channels * self.heads
        return numbers * (self.size * self.dtype.itemsize if self.kv is None else self.size + 2)


@dataclass(frozen=True)
class FixedGroup:
    """Slots of one fixed shape a sequence."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    channels: int

    def row_bytes(self) -> int:
        return self.channels * math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Layout:
    """Where each sublayer's slots lie.

    windows  of the tables of pages: None for slots that keep every token
    where    of each sublayer, slot name -> (group, channel); slots of a fixed shape count in `fixed`
    """

    groups: tuple[Group, ...]
    fixed: tuple[FixedGroup, ...]
    windows: tuple[int | None, ...]
    where: tuple[dict[str, tuple[int, int]], ...]
    crosses: bool

    @staticmethod
    def of(slots: Sequence[Slots], dtype: torch.dtype, context: int, kv: KV | None) -> Layout:
        """Slots of equal shape, type and window become channels of one group. A window that reaches as far as the
        model's context is none."""
        if kv is not None and kv not in _LARGEST:
            raise DougongError(f"kv is {kv!r}; expected None (the model's own type), 'int8' or 'fp8'")
        tokens: dict[tuple, int] = {}
        fixed: dict[tuple, int] = {}
        where: list[dict[str, tuple[int, int]]] = []
        crosses = False
        for each in slots:
            here: dict[str, tuple[int, int]] = {}
            for name, slot in each.items():
                crosses = crosses or slot.per_source
                if slot.per_source:
                    continue
                if slot.per_token:
                    window = slot.window if slot.window is not None and slot.window < context else None
                    key, found = (slot.shape, slot.dtype or dtype, window), tokens
                else:
                    key, found = (slot.shape, slot.dtype or dtype), fixed
                found[key] = found.get(key, 0) + 1
                here[name] = (list(found).index(key), found[key] - 1)
            where.append(here)
        windows = tuple(dict.fromkeys(window for _, _, window in tokens))
        groups = tuple(
            Group(heads, size, kind, windows.index(window), count, kv)
            for ((heads, size), kind, window), count in tokens.items()
        )
        return Layout(
            groups,
            tuple(FixedGroup(shape, kind, count) for (shape, kind), count in fixed.items()),
            windows,
            tuple(where),
            crosses,
        )

    def token_bytes(self, table: int | None = None) -> int:
        """Of one token in the groups of one table, or in all."""
        return sum(group.token_bytes() for group in self.groups if table is None or group.table == table)

    def row_bytes(self) -> int:
        """Of one sequence's slots of fixed shape."""
        return sum(group.row_bytes() for group in self.fixed)


class Buffer:
    """`places` token places of a group, as floats or as bytes with a scale for each token and head."""

    def __init__(self, group: Group, places: int, device: torch.device):
        self.group = group
        stored = group.dtype if group.kv is None else torch.int8
        shape = group.channels, places, group.heads
        self.data = zeros((*shape, group.size), stored, device)
        self.scale = None if group.kv is None else zeros((*shape, 1), torch.bfloat16, device)
        self._data = self.data.unbind(0)
        self._scale = None if self.scale is None else self.scale.unbind(0)

    def write(self, channel: int, index: Int[Tensor, " N"], value: Float[Tensor, "N heads size"]) -> None:
        """Store one channel's entries at the places `index`."""
        if self._scale is None:
            self._data[channel].index_copy_(0, index, value.to(self.group.dtype))
        else:
            assert self.group.kv is not None
            data, scale = encode(value, self.group.kv)
            self._data[channel].index_copy_(0, index, data)
            self._scale[channel].index_copy_(0, index, scale)

    def read(self, channel: int, index: Int[Tensor, " N"] | slice) -> Float[Tensor, "N heads size"]:
        """One channel's entries at the places `index`; a slice of floats is a view."""
        if self._scale is None:
            data = self._data[channel]
            return data[index] if isinstance(index, slice) else data.index_select(0, index)
        assert self.group.kv is not None
        data, scale = (
            each[channel][index] if isinstance(index, slice) else each[channel].index_select(0, index)
            for each in (self._data, self._scale)
        )
        return decode(data, scale, self.group.kv, self.group.dtype)

    def clear(self, places: slice) -> None:
        """Zeros in all channels."""
        for tensor in (self.data, self.scale):
            if tensor is not None:
                tensor[:, places].zero_()

    def rows(self, count: int, capacity: int, length: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Each channel's data and scales of the first `length` places in each of `count` rows of `capacity` places, as
        views (count, heads, length, size or 1)."""

        def views(x: Tensor) -> tuple[Tensor, ...]:
            cut = x[:, : count * capacity].unflatten(1, (count, capacity))[:, :, :length]
            return cut.transpose(2, 3).unbind(0)

        scales = [None] * self.group.channels if self.scale is None else views(self.scale)
        return zip(views(self.data), scales, strict=True)

    def copy(self, source: Buffer, taken: Int[Tensor, " N"], places: Int[Tensor, " N"]) -> None:
        """Entries of all channels from the places `taken` of `source` (it may be this buffer) to `places`."""
        size = max(1, _AT_ONCE // self.group.token_bytes())
        for start in range(0, len(taken), size):
            part = slice(start, start + size)
            self.data.index_copy_(1, places[part], source.data.index_select(1, taken[part]))
            if self.scale is not None and source.scale is not None:
                self.scale.index_copy_(1, places[part], source.scale.index_select(1, taken[part]))
