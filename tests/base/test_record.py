"""Records read back what they wrote, and refuse by name whatever they do not know."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dougong.base import DougongError, record_from, record_to


@dataclass(frozen=True)
class Circle:
    radius: float


@dataclass(frozen=True)
class Square:
    side: int = 1


@dataclass(frozen=True)
class Drawing:
    name: str
    shapes: tuple[Circle | Square, ...] = ()
    colour: Literal["red", "blue"] = "red"
    pair: tuple[int, int] = (0, 1)
    note: str | None = None
    main: Square = field(default_factory=Square)


shapes = st.one_of(
    st.builds(Circle, st.floats(allow_nan=False, allow_infinity=False)), st.builds(Square, st.integers(-9, 9))
)
drawings = st.builds(
    Drawing,
    name=st.text(max_size=5),
    shapes=st.lists(shapes, max_size=3).map(tuple),
    colour=st.sampled_from(["red", "blue"]),
    note=st.none() | st.text(max_size=3),
)


@given(drawings)
def test_json_round_trip(drawing):
    assert record_from(Drawing, json.loads(json.dumps(record_to(drawing)))) == drawing


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"name": "a", "colr": "red"}, ["colr", "did you mean 'colour'"]),
        ({"nam": "a"}, ["nam", "'name'"]),
        ({}, ["name is missing", "str"]),
        ({"name": 3}, ["name is 3", "str"]),
        ({"name": "a", "colour": "green"}, ["colour is 'green'", "'red' or 'blue'"]),
        ({"name": "a", "pair": [1]}, ["pair", "2 values"]),
        ({"name": "a", "pair": [1, "x"]}, ["pair[1]", "'x'", "int"]),
        ({"name": "a", "shapes": [{"radius": 1.0}]}, ["shapes[0]", "kind", "Circle, Square"]),
        ({"name": "a", "shapes": [{"kind": "Cirle", "radius": 1.0}]}, ["shapes[0].kind", "did you mean 'Circle'"]),
        ({"name": "a", "shapes": [{"kind": "Circle", "radius": True}]}, ["shapes[0].radius", "True"]),
        ({"name": "a", "main": {"sid": 1}}, ["main.sid", "'side'"]),
        ({"name": "a", "main": 3}, ["main is 3", "Square"]),
        ({"name": "a", "note": 3}, ["note is 3", "str or null"]),
        ([], ["[]", "Drawing"]),
    ],
)
def test_refused_by_name(data, named):
    with pytest.raises(DougongError) as error:
        record_from(Drawing, data)
    assert all(part in str(error.value) for part in named), str(error.value)


def test_numbers_as_yaml_writes_them():
    assert record_from(Circle, {"radius": "1e-3"}) == Circle(1e-3)
    assert record_from(Circle, {"radius": 2}) == Circle(2.0)
    with pytest.raises(DougongError, match="radius is 'wide'"):
        record_from(Circle, {"radius": "wide"})
