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
        """Tokens and targets, (rows, length) int64 each."""
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
            positions = torch.arange(tokens.shape[1]).expand(self.rows, -1)
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
    """Multi-query associative recall (Arora et al. 2023): `pairs` of key and value, then filler, then every key again
    in another order; the loss is on the value that belongs to each. Chance is one in half the vocabulary."""

    length: int
    pairs: int
    vocab: int = 64

    def draw(self, rng: np.random.Generator, rows: int) -> tuple[Tensor, Tensor]:
        half = self.vocab // 2
        if self.pairs > half - 1 or 4 * self.pairs > self.length:
            raise DougongError(f"{self.pairs} pairs do not fit into {self.length} tokens of {half - 1} keys")
        tokens = np.zeros((rows, self.length), np.int64)  # 0 is filler
        targets = np.full((rows, self.length), IGNORED, np.int64)
        ask = self.length - 2 * self.pairs
        for row in range(rows):
            keys = 1 + rng.permutation(half - 1)[: self.pairs]
            values = half + rng.integers(0, half, self.pairs)
            tokens[row, : 2 * self.pairs : 2], tokens[row, 1 : 2 * self.pairs : 2] = keys, values
            order = rng.permutation(self.pairs)
            tokens[row, ask::2], tokens[row, ask + 1 :: 2] = keys[order], values[order]
            targets[row, ask::2] = values[order]
        return torch.from_numpy(tokens), torch.from_numpy(targets)
