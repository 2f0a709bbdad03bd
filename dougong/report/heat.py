"""Heat maps: a matrix as squares, such as who attends to whom."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dougong.base import DougongError
from dougong.report.axis import finite
from dougong.report.line import figure
from dougong.report.text import Label, Number, escape, label, number, plain, visible

SIDE = 640  # the drawing's width without the labels
LARGEST, READABLE = 26, 9  # pixels of a cell: no larger, and labels only where there is room for them
CHARACTER = 7.0


def heat_map(
    matrix: Sequence[Sequence[Number]],
    rows: Sequence[str],
    columns: Sequence[str],
    title: Label,
    row_label: Label = ("query", "查询"),
    column_label: Label = ("key", "键"),
) -> str:
    """One map as HTML: the darker, the larger; the strongest colour is the largest value. Labels show white space.

    Raises DougongError when the labels do not count the rows and columns.
    """
    if len(matrix) != len(rows) or any(len(row) != len(columns) for row in matrix):
        shape = f"{len(matrix)} x {len(matrix[0]) if matrix else 0}"
        raise DougongError(f"a heat map of {shape} has {len(rows)} row and {len(columns)} column labels")
    values = finite(value for row in matrix for value in row)
    low, high = min([0.0, *values]), max([0.0, *values])
    cell = min(LARGEST, max(3, SIDE // max(1, len(columns))))
    names = [[visible(name) or "∅" for name in axis] for axis in (rows, columns)]
    shown = cell >= READABLE
    left = 26 + (_longest(names[0]) if shown else 0)
    top = 26 + (_longest(names[1]) if shown else 0)
    width, height = left + cell * len(columns) + 4, top + cell * len(rows) + 4
    parts = [
        f'<text class="middle" x="{left + cell * len(columns) / 2}" y="14">{label(column_label, "tspan")}</text>',
        f'<text class="middle" transform="translate(14 {top + cell * len(rows) / 2}) rotate(-90)">'
        f"{label(row_label, 'tspan')}</text>",
    ]
    if shown:
        for index, name in enumerate(names[0]):
            y = top + cell * index + cell / 2 + 4
            parts.append(f'<text class="end token" x="{left - 5}" y="{y}">{escape(_short(name))}</text>')
        for index, name in enumerate(names[1]):
            place = f"translate({left + cell * index + cell / 2 + 4} {top - 5}) rotate(-90)"
            parts.append(f'<text class="token" transform="{place}">{escape(_short(name))}</text>')
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            hint = escape(f"{names[0][i]} → {names[1][j]}: {number(value)}")
            if math.isfinite(value):
                share = (value / 2 - low / 2) / (high / 2 - low / 2) if high > low else 0.0
                fill = f'class="heat" fill-opacity="{share:.3f}"'
            else:
                fill = 'class="missing"'
            parts.append(
                f'<rect {fill} x="{left + cell * j}" y="{top + cell * i}" width="{cell}" height="{cell}">'
                f"<title>{hint}</title></rect>"
            )
    drawing = (
        f'<svg class="chart map" style="max-width:{width}px" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(plain(title))}">{"".join(parts)}</svg>'
    )
    return figure(title, drawing)


def _short(name: str, limit: int = 14) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"


def _longest(names: Sequence[str]) -> int:
    """Pixels that the longest name takes; Chinese characters are about twice as wide."""
    return int(max((sum(CHARACTER * (1 + (ord(c) > 0x2E80)) for c in _short(n)) for n in names), default=0)) + 8
