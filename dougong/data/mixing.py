"""Several sources in chosen proportions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

from dougong.base import DougongError
from dougong.data.loader import permutation

T = TypeVar("T")


def mix(sources: Sequence[Sequence[T]], weights: Sequence[float] = (), seed: int = 0) -> list[T]:
    """Items of all sources, as many as there are, in proportions of `weights`; without weights each item once.

    A source that must give more than it has is taken whole again and again, and for the rest a part of it that the seed
    decides, so that every item occurs as often as another of its source, or once more. Counts are rounded so that they
    sum to the whole (largest remainders). Raises DougongError for weights that do not match, and for an empty source
    with a weight.
    """
    if not weights:
        return [item for source in sources for item in source]
    if len(weights) != len(sources) or any(weight <= 0 for weight in weights):
        raise DougongError(f"weights are {list(weights)} for {len(sources)} sources; expected one above 0 for each")
    if empty := [number for number, source in enumerate(sources) if not source]:
        raise DougongError(f"source {empty[0] + 1} has nothing to draw from")
    whole = sum(map(len, sources))
    shares = [whole * weight / sum(weights) for weight in weights]
    counts = [math.floor(share) for share in shares]
    by_rest = sorted(range(len(shares)), key=lambda number: counts[number] - shares[number])
    for number in by_rest[: whole - sum(counts)]:
        counts[number] += 1
    out: list[T] = []
    for number, (source, count) in enumerate(zip(sources, counts, strict=True)):
        times, rest = divmod(count, len(source))
        part = sorted(permutation(len(source), seed, number)[:rest].tolist())
        out += [*list(source) * times, *(source[place] for place in part)]
    return out
