"""Line charts: several series over one axis each way, linear or logarithmic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dougong.report.axis import Axis
from dougong.report.text import Label, Number, escape, label, number, plain

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 46
POINTS = 600  # more points than this in a line are thinned to their extremes
TARGETS = 120  # places of a line that answer the mouse
COLOURS = 6  # the page's style defines --series-0 to --series-5, each with a dash of its own


@dataclass(frozen=True)
class Series:
    """Points of one line. A repeated x keeps its last y (a resumed run writes some steps again)."""

    name: Label
    x: Sequence[Number]
    y: Sequence[Number]


def points(series: Series) -> list[tuple[float, float]]:
    """The points in order of x, the last of each x. Where y is not finite the line will have a gap."""
    last = {float(x): float(y) for x, y in zip(series.x, series.y, strict=True) if math.isfinite(x)}
    return thin(sorted(last.items()))


def thin(line: list[tuple[float, float]], limit: int = POINTS) -> list[tuple[float, float]]:
    """About `limit` points that look the same: the lowest and the highest of each stretch, so no spike is lost."""
    if len(line) <= limit:
        return line
    kept = []
    stretch = math.ceil(len(line) / (limit / 2))
    for start in range(0, len(line), stretch):
        part = line[start : start + stretch]
        values = [point for point in part if math.isfinite(point[1])]
        chosen = {min(values, key=lambda p: p[1]), max(values, key=lambda p: p[1])} if values else {part[0]}
        kept.extend(sorted(chosen))
    return kept


def legend(names: Sequence[Label], bars: bool = False) -> str:
    """Which colour is whose: strokes, or squares for `bars`."""

    def swatch(colour: int) -> str:
        return f'<rect class="f{colour}" width="12" height="8"/>' if bars else f'<path class="s{colour}" d="M0 4H24"/>'

    items = "".join(
        f'<li><svg viewBox="0 0 {12 if bars else 24} 8" style="width:{12 if bars else 24}px" aria-hidden="true">'
        f"{swatch(index % COLOURS)}</svg>{label(name)}</li>"
        for index, name in enumerate(names)
    )
    return f'<ul class="legend">{items}</ul>'


def figure(title: Label, drawing: str, key: str = "") -> str:
    return f"<figure><figcaption>{label(title)}</figcaption>{key}{drawing}</figure>"


def line_chart(series: Sequence[Series], title: Label, x_label: Label, y_label: Label, log: bool = False) -> str:
    """One chart as HTML. `log`: the vertical axis is logarithmic and leaves out what is not positive."""
    lines = [points(each) for each in series]
    across = Axis.over((x for line in lines for x, _ in line), LEFT, WIDTH - RIGHT)
    up = Axis.over((y for line in lines for _, y in line), HEIGHT - BOTTOM, TOP, log)
    parts = [_grid(across, up, x_label, y_label)]
    for index, (each, line) in enumerate(zip(series, lines, strict=True)):
        drawn = [(x, y) if up.holds(y) else None for x, y in line]
        parts.append(f'<path class="line s{index % COLOURS}" d="{_path(drawn, across, up)}"/>')
        parts.append(_targets(each.name, index, [point for point in drawn if point], across, up))
    if not any(up.holds(y) for line in lines for _, y in line):
        parts.append(
            f'<text x="{WIDTH / 2}" y="{HEIGHT / 2}" class="middle">{label(("no data", "无数据"), "tspan")}</text>'
        )
    drawing = (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(plain(title))}">'
        f"{''.join(parts)}</svg>"
    )
    return figure(title, drawing, legend([each.name for each in series]) if len(series) > 1 else "")


def _grid(across: Axis, up: Axis, x_label: Label, y_label: Label) -> str:
    parts = []
    for tick in up.ticks():
        y = up.at(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="end" x="{LEFT - 7}" y="{y + 4}">{escape(number(tick))}</text>')
    for tick in across.ticks(7):
        x = across.at(tick)
        parts.append(f'<path class="grid" d="M{x} {HEIGHT - BOTTOM}v4"/>')
        parts.append(f'<text class="middle" x="{x}" y="{HEIGHT - BOTTOM + 18}">{escape(number(tick))}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    centre = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="middle" x="{centre}" y="{HEIGHT - 8}">{label(x_label, "tspan")}</text>')
    parts.append(
        f'<text class="middle" transform="translate(14 {middle}) rotate(-90)">{label(y_label, "tspan")}</text>'
    )
    return "".join(parts)


def _path(line: list[tuple[float, float] | None], across: Axis, up: Axis) -> str:
    """SVG path data; a missing point ends a stroke, and a point between two gaps becomes a dot."""
    commands, drawing = [], False
    for index, point in enumerate(line):
        if point is None:
            drawing = False
            continue
        place = f"{across.at(point[0])} {up.at(point[1])}"
        alone = not drawing and (index + 1 == len(line) or line[index + 1] is None)
        commands.append(f"M{place}h0" if alone else f"{'L' if drawing else 'M'}{place}")
        drawing = True
    return "".join(commands)


def _targets(name: Label, index: int, line: list[tuple[float, float]], across: Axis, up: Axis) -> str:
    stride = max(1, math.ceil(len(line) / TARGETS))
    chosen = line[::stride]
    if line and chosen[-1] != line[-1]:
        chosen.append(line[-1])
    return "".join(
        f'<circle class="target f{index % COLOURS}" cx="{across.at(x)}" cy="{up.at(y)}" r="5">'
        f"<title>{escape(plain(name))}: {escape(number(y))} @ {escape(number(x))}</title></circle>"
        for x, y in chosen
    )
