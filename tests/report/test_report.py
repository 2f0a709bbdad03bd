"""Reports: one well-formed file that asks for nothing, says what the data says, and no data can break."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dougong.base import DougongError
from dougong.report import (
    Group,
    Interval,
    Sample,
    Section,
    Series,
    bar,
    bar_chart,
    code,
    heat_map,
    line_chart,
    page,
    samples,
    sparkline,
    table,
    tiles,
)
from dougong.report.axis import Axis
from dougong.report.line import points, thin
from dougong.report.text import escape, number

VOID = {"meta", "br"}
ANY = st.floats(allow_nan=True, allow_infinity=True)
LABELS = st.text() | st.tuples(st.text(), st.text())


class _Balance(HTMLParser):
    """Checks that every element is closed where it should be, and collects tags and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def parsed(document: str) -> _Balance:
    document.encode("utf-8")
    parser = _Balance()
    parser.feed(document)
    parser.close()
    assert parser.open == []
    return parser


def drawings(document: str) -> list[ElementTree.Element]:
    """Every SVG of the document, parsed as strict XML; no coordinate may be nan or inf."""
    found = []
    for text in re.findall(r"<svg.*?</svg>", document, re.DOTALL):
        root = ElementTree.fromstring(text)
        for element in root.iter():
            for name in ("d", "x", "y", "width", "height", "cx", "cy", "transform", "fill-opacity", "viewBox"):
                assert not re.search("nan|inf", element.get(name, "")), (element.tag, name, element.get(name))
        found.append(root)
    assert found
    return found


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(LABELS, st.lists(st.tuples(ANY, ANY), max_size=20)), max_size=3), LABELS, st.booleans())
def test_no_numbers_and_no_names_break_a_line_chart(lines, title, log):
    series = [Series(name, [x for x, _ in line], [y for _, y in line]) for name, line in lines]
    drawn = line_chart(series, title, "x", title, log)
    parsed(drawn)
    drawings(drawn)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(LABELS, st.none() | st.builds(Interval, ANY, st.none() | ANY, st.none() | ANY)), max_size=4),
    st.booleans(),
)
def test_no_numbers_break_a_bar_chart(rows, percent):
    drawn = bar_chart([Group(name, [each, each]) for name, each in rows], ["a", ("b", "乙")], "t", "x", percent)
    parsed(drawn)
    drawings(drawn)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 4), st.integers(0, 4), st.data())
def test_no_numbers_and_no_tokens_break_a_heat_map(rows, columns, data):
    matrix = data.draw(st.lists(st.lists(ANY, min_size=columns, max_size=columns), min_size=rows, max_size=rows))
    names = [data.draw(st.lists(st.text(), min_size=count, max_size=count)) for count in (rows, columns)]
    drawn = heat_map(matrix, *names, title="t")
    parsed(drawn)
    assert sum(element.tag == "rect" for element in drawings(drawn)[0].iter()) == rows * columns


@settings(max_examples=40, deadline=None)
@given(st.text(), st.lists(st.tuples(st.text(), st.integers() | ANY | st.none()), max_size=3))
def test_text_comes_back_as_it_went_in_and_never_as_markup(text, rows):
    document = page(
        text,
        [
            Section(text, [table([text, "b"], rows), samples([Sample(text, text, text, text, (True, False))])]),
            Section("c", [code([text]), tiles([(text, 1.0, text)])]),
        ],
    )
    shown = parsed(document)
    assert shown.tags.count("script") == 1
    assert escape(text) in document


@given(st.text())
def test_escaping_keeps_every_ordinary_character(text):
    shown = parsed(f"<q>{escape(text)}</q>").text
    assert len(shown) == len(text)
    ordinary = all(c in "\t\n" or (c.isprintable() and not 0xD800 <= ord(c) < 0xE000) for c in text)
    assert not ordinary or shown == text


def test_a_page_asks_nothing_of_the_network():
    chart = line_chart([Series("a", [1, 2], [3, 4])], "t", "x", "y")
    document = page(("A run", "一次运行"), [Section("s", [chart, code(["dougong chat runs/demo"])])])
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<link|<img|<iframe| src=| href=\"(?!#)", document)
    assert "default-src 'none'" in document
    assert 'lang="zh">一次运行' in document and 'lang="en">A run' in document
    assert "prefers-color-scheme: dark" in document


def test_a_resumed_run_draws_one_line_whose_repeated_steps_count_once():
    before, again = [0, 1, 2, 3], [2, 3, 4]
    line = points(Series("loss", before + again, [4.0, 3.0, 9.0, 9.0, 2.0, 1.5, 1.0]))
    assert line == [(0, 4.0), (1, 3.0), (2, 2.0), (3, 1.5), (4, 1.0)]


def test_a_missing_value_is_a_gap_and_a_lone_point_a_dot():
    drawn = line_chart([Series("a", [0, 1, 2, 3, 4], [1, 2, math.nan, 3, math.inf])], "t", "x", "y")
    path = next(e.get("d", "") for e in drawings(drawn)[0].iter() if "line" in e.get("class", ""))
    assert path.count("M") == 2 and path.count("L") == 1 and path.endswith("h0")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5000))
def test_thinning_keeps_the_extremes(values):
    line = list(enumerate(values))
    kept = thin([(float(x), y) for x, y in line], limit=100)
    assert len(kept) <= 102
    assert min(y for _, y in kept) == min(values) and max(y for _, y in kept) == max(values)
    assert kept == sorted(kept)


@given(st.lists(st.floats(-1e9, 1e9), min_size=1), st.booleans())
def test_ticks_lie_on_their_axis_in_order(values, log):
    axis = Axis.over(values, 0, 100, log)
    ticks = axis.ticks()
    assert ticks == sorted(ticks) and 1 <= len(ticks) <= 12
    assert all(-0.5 <= axis.at(tick) <= 100.5 for tick in ticks)


def test_a_value_stands_where_it_belongs():
    chart = bar_chart([Group("g", [Interval(0.5, 0.4, 0.6)])], ["one"], "t", "x", percent=True)
    assert "g, one: 50% [40%, 60%]" in chart
    axis = Axis(1, 100, 0, 10, log=True)
    assert (axis.at(1), axis.at(10), axis.at(100)) == (0, 5, 10)


def test_a_heat_map_with_the_wrong_labels_is_refused():
    with pytest.raises(DougongError, match="2 row and 1 column labels"):
        heat_map([[1.0]], ["a", "b"], ["c"], "t")


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0, "0"), (12345, "12.35k"), (2.6e6, "2.6M"), (math.nan, "nan"), (-math.inf, "-∞")]
)
def test_numbers_are_short(value, shown):
    assert number(value) == shown


@given(st.lists(ANY, max_size=200), st.integers(1, 50))
def test_a_sparkline_fits_its_width(values, width):
    assert len(sparkline(values, width)) == min(width, len(values))


def test_sparkline_and_bar():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([1, math.nan, 2]) == "▁×█"
    assert bar(0.5, 4) == "██  " and bar(2, 3) == "███" and bar(math.nan, 2) == "× "
