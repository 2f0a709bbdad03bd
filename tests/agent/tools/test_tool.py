"""@tool: schemas from signatures, arguments out of JSON, what a schema cannot say."""

from __future__ import annotations

import enum
import functools
import itertools
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NewType, NotRequired, TypedDict
from uuid import UUID

import pytest
from jsonschema import Draft202012Validator

from dougong.agent.tool import ToolError, tool
from dougong.base import DougongError
from tests.agent.tools.conformance import unchecked


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Way(enum.Enum):
    NEAR = (0, 1)
    FAR = (0, 2)


@dataclass
class Point:
    """A place.

    x: to the right
    """

    x: float
    y: float = 0.0


class Order(TypedDict):
    item: str
    count: NotRequired[int]


@dataclass
class Line:
    ends: tuple[Point, Point]
    tags: list[str] = field(default_factory=list)


class Seat(NamedTuple):
    row: str
    number: int = 1


class Node(TypedDict):
    below: list[Node]


def schema(function) -> dict[str, Any]:
    made = tool(function).tool.parameters
    Draft202012Validator.check_schema(made)
    return made


KINDS: list[tuple[Any, dict[str, Any], Any, Any]] = [
    (str, {"type": "string"}, "a", "a"),
    (int, {"type": "integer"}, 3.0, 3),
    (float, {"type": "number"}, 3, 3.0),
    (bool, {"type": "boolean"}, True, True),
    (Any, {}, [None], [None]),
    (list, {"type": "array"}, [1, "a"], [1, "a"]),
    (list[int], {"type": "array", "items": {"type": "integer"}}, [1], [1]),
    (Sequence[str], {"type": "array", "items": {"type": "string"}}, ["a"], ["a"]),
    (set[int], {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, [1, 2], {1, 2}),
    (
        tuple[int, str],
        {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "minItems": 2, "maxItems": 2},
        [1, "a"],
        (1, "a"),
    ),
    (tuple[int, ...], {"type": "array", "items": {"type": "integer"}}, [1, 2], (1, 2)),
    (dict, {"type": "object"}, {"a": 1}, {"a": 1}),
    (dict[str, float], {"type": "object", "additionalProperties": {"type": "number"}}, {"a": 1}, {"a": 1.0}),
    (Literal["a", "b"], {"type": "string", "enum": ["a", "b"]}, "b", "b"),
    (Literal[1, "x", None], {"enum": [1, "x", None]}, None, None),
    (Colour, {"type": "string", "enum": ["red", "blue"]}, "blue", Colour.BLUE),
    (Way, {"type": "string", "enum": ["NEAR", "FAR"]}, "FAR", Way.FAR),
    (str | None, {"anyOf": [{"type": "string"}, {"type": "null"}]}, None, None),
    (float | int, {"anyOf": [{"type": "integer"}, {"type": "number"}]}, 3, 3),
    (Colour | int, {"anyOf": [{"type": "string", "enum": ["red", "blue"]}, {"type": "integer"}]}, "red", Colour.RED),
    (Annotated[int, "how many"], {"type": "integer", "description": "how many"}, 1, 1),
    (
        Point,
        {
            "type": "object",
            "properties": {"x": {"type": "number", "description": "to the right"}, "y": {"type": "number"}},
            "required": ["x"],
            "additionalProperties": False,
        },
        {"x": 1},
        Point(1.0),
    ),
    (
        Order,
        {
            "type": "object",
            "properties": {"item": {"type": "string"}, "count": {"type": "integer"}},
            "required": ["item"],
            "additionalProperties": False,
        },
        {"item": "a"},
        {"item": "a"},
    ),
    (
        Seat,
        {
            "type": "object",
            "properties": {"row": {"type": "string"}, "number": {"type": "integer"}},
            "required": ["row"],
            "additionalProperties": False,
        },
        {"row": "b"},
        Seat("b"),
    ),
    (date, {"type": "string", "format": "date"}, "2024-05-31", date(2024, 5, 31)),
    (datetime, {"type": "string", "format": "date-time"}, "2024-05-31T18:30:00", datetime(2024, 5, 31, 18, 30)),
    (UUID, {"type": "string", "format": "uuid"}, str(UUID(int=7)), UUID(int=7)),
    (Path, {"type": "string"}, "a/b", Path("a/b")),
    (date | str, {"anyOf": [{"type": "string", "format": "date"}, {"type": "string"}]}, "soon", "soon"),
]


@pytest.mark.parametrize(("kind", "expected", "given", "read"), KINDS, ids=[str(each[0]) for each in KINDS])
def test_types(kind, expected, given, read):
    seen = []

    def take(value) -> None:
        seen.append(value)

    take.__annotations__["value"] = kind
    made = tool(take)
    assert schema(take)["properties"]["value"] == expected
    assert made.call({"value": given}) == "null"
    assert seen == [read]
    assert type(seen[0]) is type(read)


@pytest.mark.parametrize("kind", [date, date | None])
def test_a_text_that_is_no_date_is_told(kind):
    def take(value) -> None:
        raise AssertionError("it is not called")

    take.__annotations__["value"] = kind
    with pytest.raises(ToolError, match=r"of take is '31\.5\.'; expected a date such as 2024-05-31"):
        tool(take).call({"value": "31.5."})


def test_records_inside_records():
    seen = []

    @tool
    def draw(line: Line) -> None:
        seen.append(line)

    draw.call({"line": {"ends": [{"x": 1}, {"x": 2, "y": 3}]}})
    assert seen == [Line((Point(1.0), Point(2.0, 3.0)))]
    with pytest.raises(ToolError, match=r"draw: line.ends\[1\].y is 'far'; expected a number"):
        draw.call({"line": {"ends": [{"x": 1}, {"x": 2, "y": "far"}]}})


def test_defaults_and_names():
    def paint(thing: str, colour: Colour = Colour.RED, point: Point = Point(0.0), size: int | None = None) -> str:  # noqa: B008
        return f"{thing} {colour.name} {point.x} {size}"

    made = schema(paint)
    assert made["required"] == ["thing"]
    assert made["properties"]["colour"]["default"] == "red"
    assert made["properties"]["size"]["default"] is None
    assert "default" not in made["properties"]["point"]  # JSON cannot say it; the function knows it
    action = tool(name="brush", description="Paint.", effect="write", trusted=False)(paint)
    assert (action.tool.name, action.tool.description, action.effect, action.trusted) == (
        "brush",
        "Paint.",
        "write",
        False,
    )
    assert action.call({"thing": "door"}) == action("door") == "door RED 0.0 None"


def test_methods():
    class Counter:
        count = 0

        def add(self, by: int) -> int:
            """Add."""
            self.count += by
            return self.count

    counter = Counter()
    made = tool(counter.add)
    assert [made.call({"by": 2}), made.call({"by": 3}), counter.count] == ["2", "5", 5]


def test_methods_decorated_in_their_class():
    class Counter:
        count = 0

        @tool(effect="write", name="more")
        def add(self, by: int = 1) -> int:
            """Add."""
            self.count += by
            return self.count

        @tool
        async def look(self) -> int:
            """Look."""
            return self.count

    one, other = Counter(), Counter()
    assert one.add.tool.name == "more" and one.add.effect == "write"
    assert one.add.tool.parameters["properties"] == {"by": {"type": "integer", "default": 1}}
    assert [one.add.call({"by": 2}), one.add(3), other.add.call({}), one.look.call({})] == ["2", 5, "1", "5"]
    with pytest.raises(ToolError, match="more: it is a method without its object; take it from one"):
        Counter.add.call({"by": 1})


def test_whatever_can_be_called():
    class Scale:
        def __init__(self, by: int) -> None:
            self.by = by

        def __call__(self, value: int) -> int:
            """Multiply."""
            return value * self.by

    made = tool(Scale(3))
    assert (made.tool.name, made.tool.description, made.call({"value": 2})) == ("Scale", "Multiply.", "6")

    def power(base: int, exponent: NewType("Exponent", int) = 2) -> int:  # type: ignore[valid-type]
        """Raise."""
        return base**exponent

    made = tool(functools.partial(power, exponent=3))
    assert (made.tool.name, made.tool.description, made.call({"base": 2})) == ("power", "Raise.", "8")
    assert made.tool.parameters["properties"]["exponent"] == {"type": "integer", "default": 3}


def untyped(a):
    return a


def stars(*rest: int):
    return rest


def doubled(**rest: int):
    return rest


def positional(a: int, /):
    return a


def unknown(a: bytes):
    return a


def keyed(a: dict[int, str]):
    return a


def recursive(node: Node):
    return node


def endless():
    return itertools.count()


def one_by_one(a: int):
    yield a


async def later_one_by_one(a: int):
    yield a


@dataclass
class Started:
    at: InitVar[int]
    name: str = ""


def begun(a: Started):
    return a


def nowhere(a: Missing):  # pyright: ignore
    return a


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (untyped, "the parameter a of untyped has no annotation"),
        (stars, r"\*rest of stars has no schema"),
        (doubled, r"\*\*rest of doubled has no schema"),
        (positional, "the parameter a of positional is positional only"),
        (unknown, "the parameter a of unknown is <class 'bytes'>"),
        (keyed, "the parameter a of keyed is a dict with keys of <class 'int'>"),
        (recursive, "the parameter node of recursive.below holds Node inside itself"),
        (one_by_one, "one_by_one yields its results one by one"),
        (later_one_by_one, "later_one_by_one yields its results one by one"),
        (begun, "the parameter a of begun is made with at, which is no field of Started"),
        (max, "max does not say what it takes"),
        (print, r"\*args of print has no schema"),
        (int, "a tool is <class 'int'>; expected a function"),
        (Started, "a tool is <class '.*Started'>; expected a function"),
        (nowhere, "the annotations of nowhere cannot be read"),
    ],
)
def test_what_a_schema_cannot_say(function, said):
    with pytest.raises(DougongError, match=said):
        tool(function)


def test_settings_that_are_wrong():
    with unchecked(), pytest.raises(DougongError, match="the effect of the tool recite is 'maybe'"):
        tool(effect="maybe")(recite)  # pyright: ignore
    for timeout in (0, -1, float("nan")):
        with pytest.raises(DougongError, match="the timeout of the tool recite"):
            tool(timeout=timeout)(recite)


def recite() -> str:
    return "\ud800ok"
