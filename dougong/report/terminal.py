"""Pictures a line high, for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dougong.report.text import Number

BLOCKS = "▁▂▃▄▅▆▇█"
EIGHTHS = " ▏▎▍▌▋▊▉█"


def sparkline(values: Sequence[Number], width: int = 40) -> str:
    """The course of `values` in at most `width` characters, lowest to highest; a value that is not finite is a ×.

    More values than characters are averaged in stretches.
    """
    stretches = min(width, len(values))
    means = []
    for index in range(stretches):
        part = values[index * len(values) // stretches : (index + 1) * len(values) // stretches]
        held = [value for value in part if math.isfinite(value)]
        means.append(sum(held) / len(held) if held else math.nan)
    known = [mean for mean in means if math.isfinite(mean)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    span = (high - low) or 1.0
    return "".join(BLOCKS[min(7, int((mean - low) / span * 8))] if math.isfinite(mean) else "×" for mean in means)


def bar(share: Number, width: int = 20) -> str:
    """A bar of `width` characters filled from the left to `share` (0 to 1), to an eighth of a character."""
    if not math.isfinite(share):
        return "×".ljust(width)
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (EIGHTHS[rest] if rest else "")).ljust(width)
