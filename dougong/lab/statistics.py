"""Means over seeds with intervals, and differences of paired seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Two-sided 95% points of Student's t for 1, 2, ... degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


@dataclass(frozen=True)
class Mean:
    """A mean over seeds and half the width of its 95% interval (infinite for a single seed)."""

    value: float
    half: float

    @property
    def low(self) -> float:
        return self.value - self.half

    @property
    def high(self) -> float:
        return self.value + self.half

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.half:.3f}" if math.isfinite(self.half) else f"{self.value:.3f}"


def mean(values: Sequence[float]) -> Mean:
    """Student's interval of the mean: mean ± t s / sqrt(n)."""
    count = len(values)
    middle = sum(values) / count
    if count == 1:
        return Mean(middle, math.inf)
    variance = sum((value - middle) ** 2 for value in values) / (count - 1)
    point = _T[count - 2] if count - 2 < len(_T) else 1.96
    return Mean(middle, point * math.sqrt(variance / count))


def difference(a: Sequence[float], b: Sequence[float]) -> Mean:
    """Of a minus b, seed by seed: what the seeds share falls away."""
    return mean([x - y for x, y in zip(a, b, strict=True)])


def separates(gap: Mean) -> bool:
    """Whether the interval of a difference leaves 0 out."""
    return math.isfinite(gap.half) and abs(gap.value) > gap.half
