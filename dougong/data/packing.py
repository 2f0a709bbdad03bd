"""Rows of instruction examples: several to a row without leaks (packed), or one to a row (padded)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch

from dougong.base import DougongError
from dougong.data.batch import IGNORED, Batch, batch_from
from dougong.data.example import Example
from dougong.data.loader import LoaderState, iterate


@dataclasses.dataclass(frozen=True, eq=False)
class PackedRows:
    """Examples arranged in rows of `length` places; what `example_batches` iterates over.

    rows: for each row, the indices of its examples. truncated: how many examples lost their end. dropped: how many
    were left out because no token with loss remained.
    """

    examples: tuple[Example, ...]
    rows: tuple[tuple[int, ...], ...]
    length: int
    pad_id: int
    truncated: int
    dropped: int

    @property
    def count(self) -> int:
        """Rows in an epoch."""
        return len(self.rows)

    @property
    def identity(self) -> str:
        """The data and the layout, in words."""
        places = sum(len(example.ids) - 1 for example in self.examples)
        return f"{len(self.examples)} examples of {places} places in {self.count} rows of {self.length}"

    @property
    def filled(self) -> float:
        """The share of places that hold an example's token rather than padding."""
        used = sum(len(self.examples[i].ids) - 1 for row in self.rows for i in row)
        return used / (self.count * self.length)

    def build(self, places: list[tuple[int, int]]) -> Batch:
        """(rows, length) each: the rows at (epoch, row); an epoch changes only their order."""
        shape = (len(places), self.length)
        tokens = np.full(shape, self.pad_id, dtype=np.int64)
        targets = np.full(shape, IGNORED, dtype=np.int64)
        positions = np.zeros(shape, dtype=np.int64)
        documents = np.zeros(shape, dtype=np.int64)
        filled = np.zeros(len(places), dtype=np.int64)
        for at, (_, row) in enumerate(places):
            begin = 0
            for number, index in enumerate(self.rows[row]):
                ids = np.asarray(self.examples[index].ids, dtype=np.int64)
                mask = np.asarray(self.examples[index].loss_mask, dtype=bool)
                end = begin + len(ids) - 1
                tokens[at, begin:end] = ids[:-1]
                targets[at, begin:end] = np.where(mask[1:], ids[1:], IGNORED)
                positions[at, begin:end] = np.arange(end - begin)
                documents[at, begin:end] = number
                begin = end
            # Padding is one more document: it sees itself alone, so no row of a mask is empty.
            positions[at, begin:] = np.arange(self.length - begin)
            documents[at, begin:] = len(self.rows[row])
            filled[at] = begin
        return dataclasses.replace(batch_from(tokens, targets, positions, documents), filled=torch.from_numpy(filled))


def pack_examples(
    examples: Sequence[Example],
    length: int | None = None,
    *,
    pad_id: int = 0,
    layout: Literal["packed", "padded"] = "packed",
    too_long: Literal["refuse", "truncate"] = "refuse",
) -> PackedRows:
    """Arrange examples in rows of `length` places (default: as many as the longest example has).

    "packed" places several examples in a row by best-fit decreasing (Ding et al. 2024, "Fewer truncations improve
    language modeling"); "padded" places one. An example of more than length + 1 tokens is an error that names it, or
    with too_long="truncate" loses its end; one left without a token to learn is dropped. Both are counted.

    Raises DougongError for no examples, a mask that does not match, or no token to learn in any example.
    """
    for index, example in enumerate(examples):
        if len(example.ids) != len(example.loss_mask):
            raise DougongError(
                f"example {index} has {len(example.ids)} ids but {len(example.loss_mask)} entries in its loss mask"
            )
    if length is None:
        length = max((len(example.ids) - 1 for example in examples), default=0)
    if examples and length < 1:
        raise DougongError(f"length is {length}; expected at least 1 place a row")
    kept, truncated, dropped = [], 0, 0
    for index, example in enumerate(examples):
        if len(example.ids) - 1 > length:
            if too_long == "refuse":
                raise DougongError(
                    f"example {index} has {len(example.ids)} tokens, more than the {length + 1} that fit a row; "
                    "raise the length or truncate"
                )
            example = Example(example.ids[: length + 1], example.loss_mask[: length + 1])
            truncated += 1
        if any(example.loss_mask[1:]):
            kept.append(example)
        else:
            dropped += 1
    if not kept:
        raise DougongError(f"none of the {len(examples)} examples has a token to learn within {length} places")
    sizes = [len(example.ids) - 1 for example in kept]
    rows = best_fit(sizes, length) if layout == "packed" else [(index,) for index in range(len(kept))]
    return PackedRows(tuple(kept), tuple(rows), length, pad_id, truncated, dropped)


def best_fit(sizes: Sequence[int], length: int) -> list[tuple[int, ...]]:
    """Best-fit decreasing bin packing: the indices of `sizes` in bins of capacity `length`.

    Each item, the largest first, goes to the fullest bin that still has room. The bins are kept by the room left, and
    the rooms present as the bits of one integer, so that the tightest fit is its lowest bit at or above the size.
    """
    bins: list[list[int]] = []
    by_room: dict[int, list[int]] = {}
    rooms = 0
    for item in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        size = sizes[item]
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            chosen = by_room[room].pop()
            if not by_room[room]:
                rooms &= ~(1 << room)
        else:
            room, chosen = length, len(bins)
            bins.append([])
        bins[chosen].append(item)
        left = room - size
        by_room.setdefault(left, []).append(chosen)
        rooms |= 1 << left
    return [tuple(members) for members in bins]


def example_batches(
    packed: PackedRows,
    batch_size: int,
    *,
    seed: int = 0,
    state: LoaderState | None = None,
    rank: int = 0,
    world: int = 1,
) -> Iterator[tuple[Batch, LoaderState]]:
    """Yield (batch, state) over packed or padded rows, for ever: batches of (batch_size / world, length).

    See `loader.iterate` for the order, the ranks and resuming. Raises DougongError on a wrong size or a foreign state.
    """
    return iterate(packed, batch_size, seed=seed, state=state, rank=rank, world=world)
