"""Axes: where the ticks stand, and where a value falls between the two ends of a drawing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from dougong.report.text import Number

LARGEST = 1e300  # beyond it, sums and differences of finite numbers may not be finite


def finite(values: Iterable[Number]) -> list[float]:
    return [float(value) for value in values if math.isfinite(value)]


def linear_ticks(low: Number, high: Number, count: int = 5) -> list[Number]:
    """About `count` multiples of 1, 2 or 5 times a power of ten, from at or above `low` to at or below `high`."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)] or [low]


def log_ticks(low: Number, high: Number) -> list[Number]:
    """Powers of ten between two positive numbers, with their 2 and 5 where there are few; ends where there is none."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = max(1, (last - first) // 6)
    factors = (1, 2, 5) if last - first <= 3 else (1,)
    ticks = [factor * 10.0**power for power in range(first, last + 1, stride) for factor in factors]
    return [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001] or [low, high]


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high`, drawn from `start` to `end` in the drawing's units."""

    low: Number
    high: Number
    start: Number
    end: Number
    log: bool = False

    @staticmethod
    def over(values: Iterable[Number], start: Number, end: Number, log: bool = False, zero: bool = False) -> Axis:
        """An axis that holds all finite `values` (positive ones if `log`) with a little room; `zero` starts it at 0."""
        held = [max(-LARGEST, min(LARGEST, value)) for value in finite(values) if value > 0 or not log]
        if not held:
            return Axis(1.0 if log else 0.0, 10.0 if log else 1.0, start, end, log)
        low, high = min(held), max(held)
        if log:
            low, high = (low / 2, high * 2) if low == high else (low, high)
            return Axis(low, high, start, end, True)
        low = min(low, 0.0) if zero else low
        room = 0.04 * (high - low) if high > low else max(abs(low), 1.0) * 0.5
        return Axis(low if zero and low == 0 else low - room, high + room, start, end, False)

    def holds(self, value: Number) -> bool:
        return math.isfinite(value) and (value > 0 or not self.log)

    def at(self, value: Number) -> float:
        """Where a value that the axis `holds` is drawn: at the nearer end if it lies beyond."""
        value = max(self.low, min(self.high, value))
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = math.log(value) if self.log else value
        share = (value - low) / (high - low)
        return round(self.start + share * (self.end - self.start), 2)

    def ticks(self, count: int = 5) -> list[Number]:
        return log_ticks(self.low, self.high) if self.log else linear_ticks(self.low, self.high, count)
