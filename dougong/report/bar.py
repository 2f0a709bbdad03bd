"""Bar charts with intervals: a group a row, a bar a series, so that long names keep their place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dougong.report.axis import Axis
from dougong.report.line import COLOURS, figure, legend
from dougong.report.text import Label, Number, escape, label, number, plain

WIDTH, LEFT, RIGHT = 720, 170, 64
BAR, GAP, TOP, BOTTOM = 13, 12, 6, 44


@dataclass(frozen=True)
class Interval:
    """A value and, where known, the ends of its interval."""

    value: Number
    low: Number | None = None
    high: Number | None = None


@dataclass(frozen=True)
class Group:
    """A row of bars: one interval (or None) for each series."""

    name: Label
    values: Sequence[Interval | None]


def bar_chart(
    groups: Sequence[Group], names: Sequence[Label], title: Label, x_label: Label, percent: bool = False
) -> str:
    """One chart as HTML; `names` are the series'. percent: values are shares, drawn from 0 to 100%."""
    tall = len(names) * BAR
    height = TOP + len(groups) * (tall + GAP) + BOTTOM
    ends = [end for group in groups for each in group.values if each for end in (each.value, each.low, each.high)]
    held = [end for end in ends if end is not None]
    across = Axis(0, 1, LEFT, WIDTH - RIGHT) if percent else Axis.over(held, LEFT, WIDTH - RIGHT, zero=True)

    def show(value: float) -> str:
        return f"{100 * value:.3g}%" if percent and math.isfinite(value) else number(value)

    parts = []
    for tick in across.ticks():
        x = across.at(tick)
        parts.append(f'<path class="grid" d="M{x} {TOP}V{height - BOTTOM}"/>')
        parts.append(f'<text class="middle" x="{x}" y="{height - BOTTOM + 16}">{escape(show(tick))}</text>')
    for row, group in enumerate(groups):
        top = TOP + GAP / 2 + row * (tall + GAP)
        parts.append(
            f'<text class="end" x="{LEFT - 8}" y="{top + tall / 2 + 4}">{label(group.name, "tspan")}'
            f"<title>{escape(plain(group.name))}</title></text>"
        )
        for index, (name, each) in enumerate(zip(names, group.values, strict=True)):
            hint = f"{plain(group.name)}, {plain(name)}"
            parts.append(_bar(each, index, top + index * BAR, across, hint, show))
    parts.append(f'<path class="axis" d="M{across.at(0)} {TOP}V{height - BOTTOM}"/>')
    centre = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="middle" x="{centre}" y="{height - 8}">{label(x_label, "tspan")}</text>')
    drawing = (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(plain(title))}">'
        f"{''.join(parts)}</svg>"
    )
    return figure(title, drawing, legend(names, bars=True) if len(names) > 1 else "")


def _bar(each: Interval | None, index: int, top: float, across: Axis, hint: str, show) -> str:
    middle = top + BAR / 2
    if each is None or not math.isfinite(each.value):
        text = "–" if each is None else show(each.value)
        return f'<text class="value" x="{across.at(0) + 5}" y="{middle + 4}">{escape(text)}</text>'
    ends = [end for end in (each.low, each.high) if end is not None and math.isfinite(end)]
    start, end = sorted((across.at(0), across.at(each.value)))
    interval = f" [{', '.join(map(show, ends))}]" if ends else ""
    parts = [
        f'<rect class="f{index % COLOURS}" x="{start}" y="{top + 1}" width="{round(max(end - start, 0.5), 2)}" '
        f'height="{BAR - 2}"><title>{escape(f"{hint}: {show(each.value)}{interval}")}</title></rect>'
    ]
    edge = end
    if len(ends) == 2:
        low, high = across.at(min(ends)), across.at(max(ends))
        parts.append(f'<path class="error" d="M{low} {middle}H{high}M{low} {middle - 3}v6M{high} {middle - 3}v6"/>')
        edge = max(edge, high)
    parts.append(f'<text class="value" x="{edge + 5}" y="{middle + 4}">{escape(show(each.value))}</text>')
    return "".join(parts)
