"""One resumable iterator for every layout: rows in an order that (seed, epoch) decides, cut into batches.

A layout only says how many rows an epoch has and how to build some of them. The whole state of a loader is then the
number of batches already taken: resuming is arithmetic, not replay.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np

from dougong.base import DougongError
from dougong.data.batch import Batch


@runtime_checkable
class Rows(Protocol):
    """A layout: what an epoch consists of."""

    @property
    def count(self) -> int:
        """Rows in each epoch."""
        ...

    @property
    def identity(self) -> str:
        """What the rows are made of and how, in words: a loader resumes only over the same."""
        ...

    def build(self, places: list[tuple[int, int]]) -> Batch:
        """The rows at (epoch, row), one for each place given; the epochs ascend."""
        ...


@dataclasses.dataclass(frozen=True)
class LoaderState:
    """Where a loader stands: the batches taken so far, and what they were taken from."""

    taken: int
    identity: str


def permutation(count: int, *seeds: int) -> np.ndarray:
    """(count,) int64, a permutation of 0..count-1 that the seeds decide.

    Sorts the splitmix64 hashes of the indices (Steele, Lea, Flood 2014), so it does not depend on the version of
    numpy, as its own generators may: a run resumed after an upgrade sees the same order.
    """
    with np.errstate(over="ignore"):
        key = np.zeros(1, dtype=np.uint64)
        for seed in seeds:
            key = _splitmix(key ^ np.array([seed % 2**64], dtype=np.uint64))
        hashes = _splitmix(np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + key)
    return np.argsort(hashes, kind="stable").astype(np.int64)


def _splitmix(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def iterate(
    rows: Rows,
    batch_size: int,
    *,
    seed: int = 0,
    state: LoaderState | None = None,
    rank: int = 0,
    world: int = 1,
) -> Iterator[tuple[Batch, LoaderState]]:
    """Yield (batch, state) for ever; `state` resumes with the batch that follows.

    Every epoch visits every row once, in its own order; a batch may reach over two epochs. Of each global batch of
    `batch_size` rows, rank r of `world` takes the r-th part, so the ranks' batches, joined, are the one-process batch.
    The state is the same on every rank and holds for any number of ranks.

    Raises DougongError when the batch does not divide among the ranks or the state belongs to other data.
    """
    if batch_size < 1:
        raise DougongError(f"batch_size is {batch_size}; expected at least 1")
    if not 0 <= rank < world:
        raise DougongError(f"rank is {rank} of {world}; expected 0 to {world - 1}")
    if batch_size % world:
        raise DougongError(f"a batch of {batch_size} rows does not divide among {world} ranks; choose a multiple")
    identity = f"{rows.identity}, {batch_size} rows a batch, seed {seed}"
    if state is not None and state.identity != identity:
        raise DougongError(f"the saved state reads {state.identity!r}, but the data now are {identity!r}; restore them")
    return _iterate(rows, batch_size, seed, 0 if state is None else state.taken, identity, rank, world)


def _iterate(
    rows: Rows, batch_size: int, seed: int, taken: int, identity: str, rank: int, world: int
) -> Iterator[tuple[Batch, LoaderState]]:
    orders: dict[int, np.ndarray] = {}
    share = batch_size // world
    while True:
        first = taken * batch_size + rank * share
        places = []
        for place in range(first, first + share):
            epoch, index = divmod(place, rows.count)
            if epoch not in orders:
                orders = {known: order for known, order in orders.items() if known == epoch - 1}
                orders[epoch] = permutation(rows.count, seed, epoch, 1)
            places.append((epoch, int(orders[epoch][index])))
        taken += 1
        yield rows.build(places), LoaderState(taken, identity)
