"""One text whose state is stored, as the runner's users hold it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from torch import Tensor

from dougong.engine.pages import Table


@dataclass(eq=False)
class Sequence:
    """A handle; its fields are the runner's to change.

    tokens   those whose state is stored
    cached   how many of the prompt's were found in the prefix cache when it was opened
    expect   tokens it may grow to, as far as known: memory is laid out for that many
    tables   its pages, a table for each window
    keys     of its full pages, as far as they are chained; `root` is where the chain begins
    lane     its row in the lanes, which hold the state of its first `synced` tokens too; None: it has none
    row      its row among the slots of fixed shape; None: the model has none
    source   (S, D) what cross-attention reads
    adapter  that serves it: None for all that are on, "" for the base alone
    told     how long its text was said to be when it was opened, or read anew
    """

    tokens: list[int]
    tables: list[Table]
    expect: int
    root: bytes = b""
    cached: int = 0
    keys: list[bytes] = field(default_factory=list)
    lane: int | None = None
    synced: int = 0
    row: int | None = None
    source: Tensor | None = None
    adapter: str | None = None
    told: int = 0
    closed: bool = False

    @property
    def length(self) -> int:
        return len(self.tokens)

    def places(self, table: int, start: int, end: int) -> np.ndarray:
        """Where tokens start to end - 1 lie among the places of their pages, int64."""
        own = self.tables[table]
        size = own.pages.page_size
        first = start // size
        pages = np.asarray(own.entries[first : -(-end // size)], dtype=np.int64)
        places = (pages[:, None] * size + np.arange(size)).reshape(-1)
        return places[start - first * size : end - first * size]


class Mark(NamedTuple):
    """A moment in a sequence's life, to come back to."""

    length: int
    fixed: tuple[Tensor, ...]  # (channels, *shape) of each group of fixed slots
