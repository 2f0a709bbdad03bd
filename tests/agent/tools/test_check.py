"""Whether arguments obey their schema: the same verdict as jsonschema's, and words that name the place."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from dougong.agent.check import check, same, told
from dougong.agent.pattern import found
from dougong.base import DougongError
from tests.agent.tools.conformance import unchecked

SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 1.0, -2.0]) | st.sampled_from("ab")
KEYS = st.sampled_from(["a", "b", "c"])
VALUES = st.recursive(
    SCALARS | st.text("ab", max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
PATTERNS = st.sampled_from(["a", "^[ab]$", "b+$", "^(a|bb)*$", "."])
TYPES = st.sampled_from(["string", "integer", "number", "boolean", "array", "object", "null"])


def schemas(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    few = st.lists(inner, min_size=1, max_size=3)
    return st.fixed_dictionaries(
        {},
        optional={
            "type": TYPES | st.lists(TYPES, min_size=1, max_size=2, unique=True),
            "enum": st.lists(SCALARS, min_size=1, max_size=3),
            "const": SCALARS,
            "minimum": st.integers(-2, 2),
            "exclusiveMaximum": st.integers(-2, 2),
            "multipleOf": st.integers(1, 2),
            "minLength": st.integers(0, 2),
            "maxLength": st.integers(0, 2),
            "minItems": st.integers(0, 2),
            "maxItems": st.integers(0, 2),
            "uniqueItems": st.booleans(),
            "items": inner,
            "prefixItems": few,
            "properties": st.dictionaries(KEYS, inner, max_size=2),
            "required": st.lists(KEYS, max_size=2, unique=True),
            "additionalProperties": inner,
            "minProperties": st.integers(0, 2),
            "anyOf": few,
            "oneOf": few,
            "allOf": few,
            "not": inner,
            "if": inner,
            "then": inner,
            "else": inner,
            "contains": inner,
            "minContains": st.integers(0, 2),
            "maxContains": st.integers(0, 2),
            "propertyNames": st.fixed_dictionaries({"pattern": PATTERNS}),
            "pattern": PATTERNS,
            "patternProperties": st.dictionaries(PATTERNS, inner, max_size=2),
            "dependentRequired": st.dictionaries(KEYS, st.lists(KEYS, max_size=2, unique=True), max_size=2),
            "dependentSchemas": st.dictionaries(KEYS, inner, max_size=2),
        },
    )


SCHEMAS = st.recursive(st.booleans() | schemas(st.booleans()), schemas, max_leaves=4)


def obeys(schema: Any, value: Any) -> bool:
    try:
        check(schema, value)
    except DougongError:
        return False
    return True


@settings(max_examples=250)
@given(SCHEMAS, VALUES)
def test_the_verdict_is_jsonschema_s(schema, value):
    assert obeys(schema, value) == Draft202012Validator(schema).is_valid(value)


@given(VALUES, VALUES)
def test_equality_is_that_of_json(one, other):
    assert same(one, other) == Draft202012Validator({"const": one}).is_valid(other)
    assert same(one, one)


def test_references():
    below = {"type": "array", "items": {"$ref": "#/$defs/tree"}}
    tree = {"type": "object", "properties": {"below": below}, "required": ["below"]}
    schema = {"type": "object", "properties": {"tree": {"$ref": "#/$defs/tree"}}, "$defs": {"tree": tree}}
    assert obeys(schema, {"tree": {"below": [{"below": []}]}})
    with pytest.raises(DougongError, match=r"tree.below\[0\].below is missing"):
        check(schema, {"tree": {"below": [{}]}})
    for reference in ("#/$defs/nothing", "http://example.com/schema", "#/$defs/tree/required/0/x"):
        with pytest.raises(DougongError, match="the schema refers to"):
            check({**schema, "$ref": reference}, {})


@pytest.mark.parametrize(
    ("schema", "value", "said"),
    [
        ({"type": "integer"}, True, "a is True; expected an integer"),
        ({"type": "integer"}, "3", "a is '3'; expected an integer"),
        ({"type": "number"}, float("nan"), "a is nan; expected a finite number"),
        ({}, [float("inf")], r"a\[0\] is inf; expected a finite number"),
        ({"type": ["string", "null"]}, 3, "a is 3; expected a string or null"),
        ({"enum": ["C", "F"]}, "K", "a is 'K'; expected one of 'C', 'F'"),
        ({"maxLength": 2}, "abc", "a has 3 characters; expected at most 2"),
        ({"pattern": "^[A-Z]+$"}, "abc", r"a is 'abc'; expected a text with the pattern '\^\[A-Z\]"),
        ({"contains": {"type": "string"}}, [1], "a has 0 items that are a string; expected at least 1"),
        ({"dependentRequired": {"b": ["c"]}}, {"b": 1}, "a.c is missing"),
        ({"propertyNames": {"maxLength": 1}}, {"bc": 1}, "the key 'bc' of a has 2 characters"),
        ({"patternProperties": {"^x": {}}, "additionalProperties": False}, {"y": 1}, "unknown argument a.'y'"),
        ({"minItems": 2}, [1], "a has 1 items; expected at least 2"),
        ({"minimum": 0}, -1, "a is -1; expected at least 0"),
        ({"uniqueItems": True}, [1, 2, 1.0], r"a\[2\] is 1.0, a second time"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, 3, "a is 3; expected a string or null"),
        (
            {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]},
            [3],
            r"a\[0\] is 3; expected a st",
        ),
        ({"type": "array"}, "x" * 500, "a is 'xxx.*\\.\\.\\.; expected a list"),
        (3, 1, "the schema of a is 3"),
    ],
)
def test_what_is_wrong_is_named(schema, value, said):
    with pytest.raises(DougongError, match=said):
        check({"type": "object", "properties": {"a": schema}}, {"a": value})


def test_near_names_are_offered():
    schema = {"type": "object", "properties": {"city": {}}, "additionalProperties": False}
    with pytest.raises(DougongError, match="unknown argument 'citty'; did you mean 'city'"):
        check(schema, {"citty": 1})
    with unchecked(), pytest.raises(DougongError, match="is no text"):
        check({"type": "object"}, {1: 2})


def test_references_by_anchor_and_into_lists():
    named = {"$defs": {"x": {"$anchor": "here", "type": "object"}}, "$ref": "#here"}
    assert obeys(named, {}) and not obeys(named, 1)
    listed = {"anyOf": [{"type": "null"}, {"type": "integer"}], "$ref": "#/anyOf/1"}
    assert obeys(listed, 1) and not obeys(listed, None)
    for reference in ("#nowhere", "#/anyOf/2", "#/anyOf/-1"):
        with pytest.raises(DougongError, match="the schema refers to"):
            check({**listed, "$ref": reference}, 1)
    older = {"items": [{"type": "integer"}], "additionalItems": False}
    assert obeys(older, [1]) and not obeys(older, ["a"]) and not obeys(older, [1, 2])


PIECES = st.sampled_from(
    [
        "a",
        "b",
        ".",
        r"\d",
        r"\W",
        r"\s",
        "[ab]",
        "[^a]",
        "[a-c]",
        "^",
        "$",
        r"\b",
        "(a|b)",
        "(?:ab|)",
        "(a*)",
        "é",
    ]
)
COUNTS = st.sampled_from(["", "", "*", "+", "?", "{2}", "{1,3}", "{0,}", "*?", "{,2}"])
EXPRESSIONS = st.lists(st.tuples(PIECES, COUNTS).map("".join), max_size=4).map("".join)


@settings(max_examples=500)
@given(EXPRESSIONS | st.builds("({}){}|{}".format, EXPRESSIONS, COUNTS, EXPRESSIONS), st.text("abc1_ é", max_size=7))
def test_patterns_are_found_as_python_finds_them(pattern: str, text: str):
    try:
        expected = re.search(pattern, text, re.ASCII) is not None
    except re.error:
        assert found(pattern, text) is None
    else:
        assert found(pattern, text) is expected


def test_patterns_that_would_take_for_ever_do_not():
    for pattern, text in (("(a+)+$", "a" * 2000 + "!"), ("(a|aa)+$", "a" * 2000 + "!"), ("^(.*)*x$", "a" * 2000)):
        assert found(pattern, text) is False
    unread = ["(?=a)b", r"(a)\1", "a{9000}", "((a{50}){50}){50}", r"\p{L}", "(?i)a", "(?i:a)", "(" * 5000, "["]
    assert [found(pattern, "A") for pattern in unread] == [None] * len(unread)
    assert found("a{1,900}b", "a" * 9000) is None and found("^[A-Z]{3}$", "ABC\n") is False
    assert obeys({"pattern": "(?=a)b"}, "x")  # what cannot be said is not refused


def test_values_that_cannot_be_written():
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    assert told(deep) == "<list>"
    assert told(10**5000) == "<int>"
    assert len(told("x" * 100)) == 60
