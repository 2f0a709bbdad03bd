"""State of fixed size, one row a sequence: what recurrences carry."""

from __future__ import annotations

from collections.abc import Sequence as Many

import torch
from torch import Tensor

from dougong.engine.pages import OutOfPages
from dougong.engine.sequence import Sequence
from dougong.engine.store import FixedGroup, zeros


class FixedRows:
    """(channels, rows, *shape) for each group of equal slots, and who holds which row.

    During a step `begin` says which rows are read and written; rows that stand side by side are views, so the usual
    step copies nothing.
    """

    def __init__(self, groups: Many[FixedGroup], rows: int, device: torch.device):
        # One row more: where a row waits while two are exchanged.
        self._tensors = [zeros((group.channels, rows + 1, *group.shape), group.dtype, device) for group in groups]
        self._channels = [tensor.unbind(0) for tensor in self._tensors]
        self._holders: list[Sequence | None] = [None] * rows
        self._span: slice | None = None
        self._index: Tensor | None = None

    @property
    def free(self) -> int:
        return self._holders.count(None)

    def open(self, seq: Sequence, state: Many[Tensor] | None = None) -> None:
        """Give the sequence a row: zeros, or what `copy` gave. Raises OutOfPages."""
        if not self._tensors:
            return
        if None not in self._holders:
            raise OutOfPages
        seq.row = self._holders.index(None)
        self._holders[seq.row] = seq
        self.restore(seq, state)

    def close(self, seq: Sequence) -> None:
        if seq.row is not None:
            self._holders[seq.row] = None
            seq.row = None

    def copy(self, seq: Sequence) -> tuple[Tensor, ...]:
        """The sequence's state now, (channels, *shape) each."""
        return tuple(tensor[:, seq.row].clone() for tensor in self._tensors)

    def restore(self, seq: Sequence, state: Many[Tensor] | None) -> None:
        """Put back what `copy` gave; None: the state before any token."""
        for place, tensor in enumerate(self._tensors):
            if state is None:
                tensor[:, seq.row].zero_()
            else:
                tensor[:, seq.row].copy_(state[place])

    def arrange(self, batch: Many[Sequence]) -> None:
        """Bring the batch to the first rows, in its order."""
        for row, seq in enumerate(batch):
            if seq.row is not None and seq.row != row:
                self._exchange(row, seq.row)

    def _exchange(self, a: int, b: int) -> None:
        spare = len(self._holders)
        for tensor in self._tensors:
            for taken, place in ((a, spare), (b, a), (spare, b)):
                tensor[:, place].copy_(tensor[:, taken])
        self._holders[a], self._holders[b] = self._holders[b], self._holders[a]
        for row in (a, b):
            holder = self._holders[row]
            if holder is not None:
                holder.row = row

    def begin(self, batch: Many[Sequence]) -> None:
        """The rows of the step to come are the batch's."""
        if not self._tensors:
            return
        rows = [seq.row for seq in batch if seq.row is not None]
        first = rows[0]
        if rows == list(range(first, first + len(rows))):
            self._span = slice(first, first + len(rows))
        else:
            self._span, self._index = None, torch.tensor(rows, device=self._tensors[0].device)

    def read(self, group: int, channel: int) -> Tensor:
        """(B, *shape)"""
        tensor = self._channels[group][channel]
        if self._span is not None:
            return tensor[self._span]
        assert self._index is not None
        return tensor.index_select(0, self._index)

    def write(self, group: int, channel: int, value: Tensor) -> None:
        tensor = self._channels[group][channel]
        if self._span is not None:
            tensor[self._span].copy_(value)
        else:
            assert self._index is not None
            tensor.index_copy_(0, self._index, value.to(tensor.dtype))
