"""Lanes: the state of the sequences that are decoding, side by side.

Attention wants the keys of all rows at equal distances. Pages do not lie so, and to gather them in every layer of every
step costs a decoding step several percent (bench: 40 us a slot against 2, at 16 rows of 160 tokens). So a sequence that
decodes has its state in a lane as well: new tokens are written there, attention reads there without copying, and one
operation a step brings the new tokens of all layers back to the pages, which stay the whole truth. A lane may be lost
at any time; where there is no room for lanes, steps gather.
"""

from __future__ import annotations

from collections.abc import Sequence as Many

import numpy as np
import torch

from dougong.engine.sequence import Sequence
from dougong.engine.store import Buffer, Group

_LEAST = 64  # tokens a lane holds


class Lanes:
    """`rows` lanes of `capacity` tokens, within `budget` bytes."""

    def __init__(self, groups: Many[Group], budget: int, device: torch.device):
        self._groups = groups
        self._budget = budget
        self._device = device
        self._token = sum(group.token_bytes() for group in groups)
        self._holders: list[Sequence | None] = []
        self.capacity = 0
        self.buffers: list[Buffer] = []

    @property
    def rows(self) -> int:
        return len(self._holders)

    def bytes(self) -> int:
        """Memory held."""
        return (self.rows + 1) * self.capacity * self._token if self.buffers else 0

    def clear(self) -> None:
        """Give all lanes up."""
        for seq in self._holders:
            if seq is not None:
                seq.lane, seq.synced = None, 0
        self._holders, self.capacity, self.buffers = [], 0, []

    def leave(self, seq: Sequence) -> None:
        if seq.lane is not None:
            self._holders[seq.lane] = None
            seq.lane, seq.synced = None, 0

    def arrange(self, batch: Many[Sequence], tokens: int, pools: Many[Buffer]) -> list[Sequence] | None:
        """Bring the batch to the first lanes, with room for `tokens` more each, and what `pools` hold of it.

        Returns the batch in order of its lanes; None where there is no room.
        """
        longest = max(seq.length for seq in batch) + tokens
        if (longest > self.capacity or len(batch) > self.rows) and not self._enlarge(batch, longest):
            return None
        count = len(batch)
        inside = [seq for seq in batch if seq.lane is not None and seq.lane < count]
        taken = {seq.lane for seq in inside}
        empty = [lane for lane in range(count) if lane not in taken]
        members = set(map(id, inside))
        for seq in batch:
            if id(seq) not in members:
                self._bring(seq, empty.pop(0))
        for seq in batch:
            if seq.synced < seq.length:
                self._fill(seq, pools)
        order: list[Sequence] = [seq for seq in self._holders[:count] if seq is not None]
        assert len(order) == count
        return order

    def _enlarge(self, batch: Many[Sequence], longest: int) -> bool:
        """Lanes for the batch as it will be, or at least as it is; all are then empty."""
        doubled = max(2 * longest, _LEAST)  # so growing costs O(1) a token
        if all(seq.expect for seq in batch):  # but nobody grows further than that
            doubled = max(longest, min(doubled, max(seq.expect for seq in batch)))
        rows = max(1 << (len(batch) - 1).bit_length(), self.rows if self.rows < 2 * len(batch) else 0)
        for lanes, wished in (
            (rows, max(doubled, self.capacity)),
            (rows, doubled),
            (len(batch), min(doubled, longest + _LEAST)),
        ):
            capacity = -(-wished // 16) * 16
            if (lanes + 1) * capacity * self._token <= self._budget:
                self.clear()
                # One lane more: where padding goes.
                self.buffers = [Buffer(group, (lanes + 1) * capacity, self._device) for group in self._groups]
                self._holders.extend([None] * lanes)
                self.capacity = capacity
                return True
        return False

    def _bring(self, seq: Sequence, lane: int) -> None:
        """The sequence to a lane whose holder, if any, is not of the batch."""
        old = self._holders[lane]
        if old is not None:
            old.lane, old.synced = None, 0
        if seq.lane is not None:
            self._holders[seq.lane] = None
            places = torch.arange(seq.synced, device=self._device)
            for buffer in self.buffers:
                buffer.copy(buffer, places + seq.lane * self.capacity, places + lane * self.capacity)
        self._holders[lane] = seq
        seq.lane = lane

    def _fill(self, seq: Sequence, pools: Many[Buffer]) -> None:
        """What the lane lacks, from the pages."""
        assert seq.lane is not None
        start = seq.lane * self.capacity
        places = torch.arange(start + seq.synced, start + seq.length, device=self._device)
        found: dict[int, torch.Tensor] = {}
        for group, pool, buffer in zip(self._groups, pools, self.buffers, strict=True):
            if group.table not in found:
                index = torch.from_numpy(seq.places(group.table, seq.synced, seq.length))
                found[group.table] = index.to(self._device)
            buffer.copy(pool, found[group.table], places)
        seq.synced = seq.length

    def places(self, batch: Many[Sequence], counts: Many[int], tokens: int) -> np.ndarray:
        """Where `tokens` new tokens of each row go, (B, tokens); padding, past a row's count, to the spare lane."""
        steps = np.arange(tokens)
        starts = np.asarray([(seq.lane or 0) * self.capacity + seq.length for seq in batch])
        places = starts[:, None] + steps
        return np.where(steps < np.asarray(counts)[:, None], places, self.rows * self.capacity)
