"""What a reader reads: a store of chunks of token ids, found by word search, that never gives a text to itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, final

import numpy as np

from dougong.base import DougongError
from dougong.parts.shapes import Int
from dougong.rag.reader import NONE
from dougong.rag.words import WordIndex

SPARE = 64
"""Hits that are looked at beyond those that are wanted, for those of the text that asks are left out."""


class Asker(NamedTuple):
    """Who asks. group: whose documents it is not given. past: numbers [first, last) of chunks that it has read already,
    with what followed them: its own document's, long before; these it may be given."""

    group: int
    past: tuple[int, int] = (0, 0)


@final
class Neighbours:
    """Documents as chunks of `chunk` tokens, each found by BM25 on its words and given with what followed it.

    documents  token ids of each
    groups     documents of one group (copies of each other, parts of one text) are never given to each other
    decode     token ids to text
    closed     places of documents that nobody else is given: held-out ones, of which only the past may be read

    Raises DougongError for chunks of less than a token, for another number of groups than of documents, and where no
    document has a token.
    """

    def __init__(
        self,
        documents: Sequence[Sequence[int]],
        groups: Sequence[int],
        decode: Callable[[list[int]], str],
        chunk: int = 32,
        closed: Collection[int] = (),
    ):
        if chunk < 1 or len(groups) != len(documents):
            raise DougongError(f"chunks of {chunk} tokens, {len(groups)} groups of {len(documents)} documents")
        self.chunk, self._decode = chunk, decode
        cut, owners, self._open = [], [], []
        self.first = [0]
        """The number of each document's first chunk."""
        for place, (tokens, group) in enumerate(zip(documents, groups, strict=True)):
            for start in range(0, len(tokens), chunk):
                cut.append(_filled(tokens[start : start + 2 * chunk], 2 * chunk))
                owners.append(group)
                self._open.append(place not in closed)
            self.first.append(len(cut))
        if not cut:
            raise DougongError(f"none of {len(documents)} documents has a token; there is nothing to find")
        self._tokens = np.array(cut, dtype=np.int64).reshape(len(cut), 2 * chunk)
        self._groups = owners
        own = [self._words(row[:chunk]) for row in self._tokens]
        self._index = WordIndex(range(len(own)), own)

    def __len__(self) -> int:
        return len(self._tokens)

    def _words(self, row: Int[np.ndarray, " T"]) -> str:
        return self._decode([int(each) for each in row if each != NONE])

    def find(self, chunks: Int[np.ndarray, "N m"], k: int, askers: Sequence[Asker]) -> Int[np.ndarray, "N k"]:
        """The numbers of the k stored chunks with the most in common with each chunk, among those that its asker may
        read, best first. Looked at are the k + SPARE best of all: where fewer of these may be read, -1 fills the row.
        Raises DougongError for k below 1 and another number of askers than of chunks."""
        if k < 1 or len(askers) != len(chunks):
            raise DougongError(
                f"k is {k}, with {len(askers)} askers for {len(chunks)} chunks; expected 1 or more, as many"
            )
        found = np.full((len(chunks), k), NONE, dtype=np.int64)
        for place, (row, asker) in enumerate(zip(chunks, askers, strict=True)):
            hits = [number for number, _ in self._index.search(self._words(row), k + SPARE)]
            kept = [number for number in hits if self._may(asker, number)][:k]
            found[place, : len(kept)] = kept
        return found

    def _may(self, asker: Asker, number: int) -> bool:
        if asker.past[0] <= number < asker.past[1]:
            return True
        return self._open[number] and self._groups[number] != asker.group

    def passages(self, numbers: Int[np.ndarray, "*N"]) -> Int[np.ndarray, "*N r"]:
        """The tokens of stored chunks and of what followed each, r = 2 `chunk`; all NONE for number -1. Raises
        DougongError for numbers that are of no chunk."""
        if numbers.size and not NONE <= int(numbers.min()) <= int(numbers.max()) < len(self):
            raise DougongError(
                f"numbers are {int(numbers.min())} to {int(numbers.max())}; expected {NONE} (none) to {len(self) - 1}"
            )
        held = self._tokens[np.maximum(numbers, 0)]
        return np.where(numbers[..., None] == NONE, NONE, held)


def _filled(tokens: Sequence[int], length: int) -> list[int]:
    return [*tokens, *[NONE] * (length - len(tokens))]


def shared_run(one: Sequence[int], other: Sequence[int]) -> int:
    """The longest run of tokens that stands in both (NONE is no token)."""
    longest, before = 0, [0] * (len(other) + 1)
    for left in one:
        row = [0] * (len(other) + 1)
        for place, right in enumerate(other):
            if left == right != NONE:
                row[place + 1] = before[place] + 1
                longest = max(longest, row[place + 1])
        before = row
    return longest
