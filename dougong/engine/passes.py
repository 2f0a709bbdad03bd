"""One forward pass over stored state, as the sublayers see it.

A pass says where new entries go and from where all entries so far are read: `LanePass` writes and reads lanes without
copying, `PagePass` writes pages and gathers them. All index tensors are made once, before the first layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from collections.abc import Sequence as Many
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from dougong.engine.fixed import FixedRows
from dougong.engine.lanes import Lanes
from dougong.engine.sequence import Sequence
from dougong.engine.store import Buffer, Layout, decode
from dougong.parts.context import Context
from dougong.parts.shapes import Float


class Pass(ABC):
    """Entries of new tokens in, entries of all tokens out."""

    @abstractmethod
    def extend(self, group: int, channel: int, value: Float[Tensor, "B heads T size"]) -> Tensor:
        """Store one channel's new entries and return all so far, (B, heads, S, size)."""

    @abstractmethod
    def finish(self) -> None:
        """The model has run: bring what is new to the pages."""


def flat(value: Tensor) -> Tensor:
    """(B, heads, T, size) -> (B T, heads, size); of single tokens a view."""
    return value.squeeze(2) if value.shape[2] == 1 else value.transpose(1, 2).flatten(0, 1)


class LanePass(Pass):
    """Rows in the first lanes, in order."""

    def __init__(
        self, lanes: Lanes, pools: Many[Buffer], layout: Layout, batch: Many[Sequence], counts: Many[int], tokens: int
    ):
        self._pools, self._buffers, self._layout = pools, lanes.buffers, layout
        device = pools[0].data.device if pools else torch.device("cpu")
        self._places = torch.from_numpy(lanes.places(batch, counts, tokens).reshape(-1)).to(device)
        self._shape = len(batch), lanes.capacity, max(seq.length for seq in batch) + tokens
        real = [
            (seq.lane or 0) * lanes.capacity + place
            for seq, count in zip(batch, counts, strict=True)
            for place in range(seq.length, seq.length + count)
        ]
        self._taken = torch.tensor(real, device=device)
        self._back = [
            torch.from_numpy(
                np.concatenate(
                    [
                        seq.places(table, seq.length, seq.length + count)
                        for seq, count in zip(batch, counts, strict=True)
                    ]
                )
            ).to(device)
            for table in range(len(layout.windows))
        ]

    @cached_property
    def _views(self) -> list[list[tuple[Tensor, Tensor | None]]]:
        return [list(buffer.rows(*self._shape)) for buffer in self._buffers]

    def extend(self, group: int, channel: int, value: Float[Tensor, "B heads T size"]) -> Tensor:
        buffer = self._buffers[group]
        buffer.write(channel, self._places, flat(value))
        data, scale = self._views[group][channel]
        if scale is None:
            return data
        assert buffer.group.kv is not None
        return decode(data, scale, buffer.group.kv, value.dtype)

    def finish(self) -> None:
        for pool, buffer in zip(self._pools, self._buffers, strict=True):
            pool.copy(buffer, self._taken, self._back[pool.group.table])


class PagePass(Pass):
    """Rows wherever their pages are."""

    def __init__(self, pools: Many[Buffer], layout: Layout, batch: Many[Sequence], counts: Many[int], tokens: int):
        self._pools = pools
        self._batch, self._tokens = len(batch), tokens
        self._total = max(seq.length for seq in batch) + tokens
        self._fresh = all(seq.length == 0 for seq in batch)
        device = pools[0].data.device if pools else torch.device("cpu")
        self._write: list[Tensor] = []
        self._read: list[Tensor | slice] = []
        for table in range(len(layout.windows)):
            # Padding is written where nobody reads: it may be no number, and a hidden NaN still spoils a sum.
            last = next(pool.data.shape[1] for pool in pools if pool.group.table == table) - 1
            written = np.full((len(batch), tokens), last, np.int64)
            read = np.zeros((len(batch), self._total), np.int64)
            for row, (seq, count) in enumerate(zip(batch, counts, strict=True)):
                places = seq.places(table, 0, seq.length + count)
                read[row, : len(places)] = places
                written[row, :count] = places[seq.length :]
            self._write.append(torch.from_numpy(written.reshape(-1)).to(device))
            flat, first = read.reshape(-1), int(read[0, 0])
            if np.array_equal(flat, np.arange(first, first + len(flat))):
                self._read.append(slice(first, first + len(flat)))  # one row, its pages in a run
            else:
                self._read.append(torch.from_numpy(flat).to(device))

    def extend(self, group: int, channel: int, value: Float[Tensor, "B heads T size"]) -> Tensor:
        pool = self._pools[group]
        pool.write(channel, self._write[pool.group.table], flat(value))
        if self._fresh and pool.scale is None:
            return value
        found = pool.read(channel, self._read[pool.group.table])
        return found.unflatten(0, (self._batch, self._total)).transpose(1, 2)

    def finish(self) -> None:
        pass


class StoredLayer:
    """One sublayer's state in the pass at hand: what `parts.state.LayerState` asks for."""

    def __init__(self, states: States, number: int):
        self._states = states
        self._where = states.layout.where[number]
        self._number = number

    def extend(self, ctx: Context, **new: Float[Tensor, "B heads T size"]) -> tuple[Tensor, ...]:
        extend = self._states.now.extend
        return tuple([extend(*self._where[name], value) for name, value in new.items()])

    def read(self, name: str) -> Tensor:
        return self._states.fixed.read(*self._where[name])

    def write(self, name: str, value: Tensor) -> None:
        self._states.fixed.write(*self._where[name], value)

    def keep(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        kept = self._states.kept
        key = self._number, name
        if key not in kept:
            kept[key] = make()
        return kept[key]


class States:
    """All sublayers' states, for `Model.run`. now: the pass at hand. kept: what was made from the batch's sources."""

    def __init__(self, layout: Layout, fixed: FixedRows):
        self.layout = layout
        self.fixed = fixed
        self.now: Pass
        self.kept: dict[tuple[int, str], Tensor] = {}
        self.layers = [StoredLayer(self, number) for number in range(len(layout.where))]
