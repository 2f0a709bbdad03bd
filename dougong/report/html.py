"""The parts of a page that are not drawings: text, key numbers, tables, samples, commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dougong.report.text import Label, Number, escape, label, number

Cell = Label | Number | None


def _cell(value: Cell) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "✓" if value else "✗"
    if isinstance(value, int):
        return f"{value:,}"
    return escape(number(value)) if isinstance(value, float) else label(value)


def _numeric(value: Cell) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def paragraph(text: Label) -> str:
    return f"<p>{label(text)}</p>"


def table(headers: Sequence[Label], rows: Sequence[Sequence[Cell]]) -> str:
    """A table: columns of numbers to the right, thousands apart in integers, four digits of floats, a dash for None."""
    right = [
        any(map(_numeric, column)) and all(cell is None or _numeric(cell) for cell in column)
        for column in zip(*rows, strict=True)
    ] or [False] * len(headers)
    style = [' class="n"' if each else "" for each in right]
    head = "".join(f'<th scope="col"{c}>{label(header)}</th>' for c, header in zip(style, headers, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{c}>{_cell(cell)}</td>" for c, cell in zip(style, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def tiles(values: Sequence[tuple[Label, Label | Number, Label]]) -> str:
    """Key numbers, large: (name, value, remark) each."""
    items = "".join(
        f"<div class=tile><span>{label(name)}</span><b>{_cell(value)}</b><small>{label(remark)}</small></div>"
        for name, value, remark in values
    )
    return f'<div class="tiles">{items}</div>'


def code(lines: Sequence[str]) -> str:
    """Commands to copy, one a line."""
    return f"<pre><code>{escape(chr(10).join(lines))}</code></pre>"


@dataclass(frozen=True)
class Sample:
    """One problem and what the model said before and after; `right` judges the two, None where nobody did."""

    prompt: str
    expected: str
    before: str
    after: str
    right: tuple[bool, bool] | None = None


def samples(items: Sequence[Sample]) -> str:
    """Problems with both answers side by side. A mark says right or wrong, so that colour is not needed to tell."""
    headers: list[Label] = [("Problem", "题目"), ("Expected", "答案"), ("Before", "之前"), ("After", "之后")]
    head = "".join(f'<th scope="col">{label(header)}</th>' for header in headers)
    body = "".join(
        f"<tr><td>{_quoted(item.prompt)}</td><td>{_quoted(item.expected)}</td>"
        f"<td>{_quoted(item.before, item.right and item.right[0])}</td>"
        f"<td>{_quoted(item.after, item.right and item.right[1])}</td></tr>"
        for item in items
    )
    return f'<div class="wide"><table class="samples"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _quoted(text: str, right: bool | None = None) -> str:
    mark = "" if right is None else f'<i class="{"right" if right else "wrong"}">{"✓" if right else "✗"}</i> '
    return f"{mark}<q>{escape(text)}</q>"
