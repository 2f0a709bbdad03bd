"""What the small models learn: bytes of real text, and recalling pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.data.batch import IGNORED, Batch
from dougong.data.documents import split_documents
from dougong.data.loader import LoaderState
from dougong.data.stdlib import standard_library
from dougong.train.ranks import Ranks


@runtime_checkable
class Task(Protocol):
    @property
    def vocab(self) -> int: ...

    def draw(self, rng: np.random.Generator, rows: int) -> tuple[Tensor, Tensor]:
        """Tokens and targets, (rows, length) int64 each; a task of several lengths may make more rows of short ones."""
        ...


@dataclass(frozen=True)
class Drawn:
    """A task as the trainer's batches: batch n of a seed is the same whenever and wherever it is drawn."""

    task: Task
    rows: int
    seed: int

    def __call__(self, state: LoaderState | None, ranks: Ranks) -> Iterator[tuple[Batch, LoaderState]]:
        if ranks.world != 1:
            raise DougongError(f"an experiment runs in one process, not in {ranks.world}")
        taken = 0 if state is None else state.taken
        while True:
            tokens, targets = self.task.draw(np.random.default_rng((self.seed, taken)), self.rows)
            taken += 1
            positions = torch.arange(tokens.shape[1]).expand(len(tokens), -1)
            yield Batch(tokens, targets, positions, None), LoaderState(taken, repr(self.task))


@dataclass(frozen=True)
class Bytes:
    """Windows of `length` bytes of the interpreter's own standard library; `test`: of its held-out modules."""

    length: int
    test: bool = False
    vocab: int = 256

    def draw(self, rng: np.random.Generator, rows: int) -> tuple[Tensor, Tensor]:
        text = _library(self.test)
        starts = rng.integers(0, len(text) - self.length - 1, rows)
        windows = torch.from_numpy(
            np.stack([text[start : start + self.length + 1] for start in starts]).astype(np.int64)
        )
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def _library(test: bool) -> np.ndarray:
    return _sides()[test]


@lru_cache(maxsize=1)
def _sides() -> tuple[np.ndarray, np.ndarray]:
    """All bytes to learn from and all held-out bytes, uint8."""
    sides = ("\n".join(each.text for each in side) for side in split_documents(list(standard_library())))
    train, test = (np.frombuffer(text.encode(), dtype=np.uint8) for text in sides)
    return train, test


@dataclass(frozen=True)
class Recall:
    """Multi-query associative recall (Arora et al. 2023, arXiv 2312.04927): pairs of key and value, then every key
    again in another order; the loss is on the value that belongs to each. Chance is one in `values`.

    Each batch has one of the numbers in `pairs`, all of them equally often, and in proportion more rows where that is
    smaller: `rows` of the largest, so that every batch asks about equally many keys. Few pairs are soon learned and
    lead to many.
    """

    pairs: tuple[int, ...]
    keys: int = 64
    values: int = 64

    def __post_init__(self) -> None:
        if not self.pairs or not 1 <= min(self.pairs) <= max(self.pairs) <= self.keys:
            raise DougongError(
                f"pairs are {self.pairs}; expected numbers from 1 to the {self.keys} keys that there are"
            )

    @property
    def vocab(self) -> int:
        return self.keys + self.values

    def draw(self, rng: np.random.Generator, rows: int) -> tuple[Tensor, Tensor]:
        pairs = int(rng.choice(self.pairs))
        rows = rows * max(self.pairs) // pairs
        keys = rng.random((rows, self.keys)).argsort(1)[:, :pairs]  # without one twice
        values = self.keys + rng.integers(0, self.values, (rows, pairs))
        order = rng.random((rows, pairs)).argsort(1)
        tokens = np.empty((rows, 3 * pairs), np.int64)
        tokens[:, : 2 * pairs : 2], tokens[:, 1 : 2 * pairs : 2] = keys, values
        tokens[:, 2 * pairs :] = np.take_along_axis(keys, order, 1)
        targets = np.full_like(tokens, IGNORED)
        targets[:, 2 * pairs :] = np.take_along_axis(values, order, 1)
        return torch.from_numpy(tokens), torch.from_numpy(targets)
