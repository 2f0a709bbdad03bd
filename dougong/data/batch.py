"""What every loader yields and every causal objective reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from dougong.parts.shapes import Int

IGNORED = -100  # a target without loss, as in torch.nn.functional.cross_entropy


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """Rows for a causal language model; every field but `filled` is (B, T) int64.

    tokens: the input ids. targets: the id to predict at each place, -100 where there is no loss. positions: the place
    within the document, from 0 at its first token in the row. documents: the number of the document within the row,
    from 0; attention stays within equal numbers. None means that rows are read as one text each, without such a mask.
    filled: (B,) places of each row that are not padding; None means all. further: what an objective reads besides, by
    name; the first dimension of each is B, so that it is cut and moved with the rows.
    """

    tokens: Int[Tensor, "B T"]
    targets: Int[Tensor, "B T"]
    positions: Int[Tensor, "B T"]
    documents: Int[Tensor, "B T"] | None
    filled: Int[Tensor, " B"] | None = None
    further: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)

    @property
    def weight(self) -> int:
        """How many places carry loss."""
        return int((self.targets != IGNORED).sum())

    @property
    def real(self) -> int:
        """How many places are not padding."""
        return self.tokens.numel() if self.filled is None else int(self.filled.sum())

    def to(self, device: str | torch.device) -> Batch:
        """The batch on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def rows(self, start: int, stop: int) -> Batch:
        """The rows start..stop-1, as views: a micro-batch."""
        return self._each(lambda tensor: tensor[start:stop])

    def take(self, rows: Int[Tensor, " n"]) -> Batch:
        """The rows of these numbers, in their order, copied."""
        return self._each(lambda tensor: tensor[rows])

    def micro(self, parts: int) -> tuple[Batch, ...]:
        """The batch in `parts` micro-batches of nearly equal rows, none empty, in order."""
        rows = len(self.tokens)
        parts = min(parts, rows)
        edges = [rows * part // parts for part in range(parts + 1)]
        return tuple(self.rows(start, stop) for start, stop in pairwise(edges))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        documents = None if self.documents is None else change(self.documents)
        filled = None if self.filled is None else change(self.filled)
        further = {name: change(tensor) for name, tensor in self.further.items()}
        return Batch(change(self.tokens), change(self.targets), change(self.positions), documents, filled, further)


def batch_from(tokens: np.ndarray, targets: np.ndarray, positions: np.ndarray, documents: np.ndarray | None) -> Batch:
    """A Batch from (B, T) arrays of any integer type."""

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(array, dtype=np.int64, order="C"))

    return Batch(tensor(tokens), tensor(targets), tensor(positions), None if documents is None else tensor(documents))
