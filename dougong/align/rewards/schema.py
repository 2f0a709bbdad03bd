"""A JSON value against a JSON schema: the keywords that answers are described with, every other one refused by name."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from dougong.base import DougongError, nearest

_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "integer": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and value == int(value)
    if not isinstance(value, float) or math.isfinite(value)
    else False,
}  # fmt: skip
# Keywords that say nothing about validity.
_NOTES = {"$schema", "$id", "$comment", "title", "description", "default", "examples", "$defs", "definitions", "format"}


def violation(value: Any, schema: Any, path: str = "$", root: Any = None) -> str | None:
    """The first place where `value` breaks `schema`, in words; None where it fits.

    Reads type, enum, const, properties, required, additionalProperties, min/maxProperties, items, prefixItems,
    min/maxItems, uniqueItems, min/maxLength, pattern, minimum, maximum, exclusiveMinimum/Maximum, multipleOf, allOf,
    anyOf, oneOf, not, $ref within the document. Raises DougongError for another keyword: ignoring it would accept what
    it forbids.
    """
    root = schema if root is None else root
    if schema is True or schema is False:
        return None if schema else f"{path} is not allowed"
    if not isinstance(schema, Mapping):
        raise DougongError(f"a JSON schema holds {schema!r}; expected an object, true or false")
    for key, asked in schema.items():
        if key in _NOTES:
            continue
        check = _CHECKS.get(key)
        if check is None:
            raise DougongError(f"the JSON schema keyword {key!r} is not known here{nearest(key, _CHECKS)}")
        wrong = check(value, asked, schema, path, root)
        if wrong is not None:
            return wrong
    return None


def same(a: Any, b: Any) -> bool:
    """Equal as JSON: true is not 1, and 1 is 1.0."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


def _type(value: Any, asked: Any, schema: Any, path: str, root: Any) -> str | None:
    kinds = asked if isinstance(asked, list) else [asked]
    if any(_TYPES[kind](value) for kind in kinds):
        return None
    return f"{path} is {type(value).__name__}; expected {' or '.join(kinds)}"


def _properties(value: Any, asked: Any, schema: Any, path: str, root: Any) -> str | None:
    if not isinstance(value, dict):
        return None
    found = (violation(value[key], asked[key], f"{path}.{key}", root) for key in asked if key in value)
    return next((wrong for wrong in found if wrong), None)


def _additional(value: Any, asked: Any, schema: Any, path: str, root: Any) -> str | None:
    if not isinstance(value, dict):
        return None
    others = [key for key in value if key not in schema.get("properties", {})]
    found = (violation(value[key], asked, f"{path}.{key}", root) for key in others)
    return next((wrong for wrong in found if wrong), None)


def _items(value: Any, asked: Any, schema: Any, path: str, root: Any) -> str | None:
    if not isinstance(value, list):
        return None
    first = len(schema.get("prefixItems", ()))
    found = (violation(each, asked, f"{path}[{at}]", root) for at, each in enumerate(value[first:], first))
    return next((wrong for wrong in found if wrong), None)


def _prefix(value: Any, asked: Any, schema: Any, path: str, root: Any) -> str | None:
    if not isinstance(value, list):
        return None
    pairs = enumerate(zip(value, asked, strict=False))
    found = (violation(each, own, f"{path}[{at}]", root) for at, (each, own) in pairs)
    return next((wrong for wrong in found if wrong), None)


def _ref(value: Any, asked: Any, schema: Any, path: str, root: Any) -> str | None:
    target = root
    for part in str(asked).removeprefix("#").strip("/").split("/"):
        try:
            target = target[part] if part else target
        except (KeyError, TypeError):
            raise DougongError(f"the JSON schema has no {asked!r}, to which it refers") from None
    return violation(value, target, path, root)


def _some(value: Any, asked: Any, schema: Any, path: str, root: Any, counts: Callable[[int], bool]) -> str | None:
    fitting = sum(violation(value, each, path, root) is None for each in asked)
    return None if counts(fitting) else f"{path} fits {fitting} of {len(asked)} alternatives"


def _when(kind: str, holds: Callable[[Any, Any], bool]) -> Callable[..., str | None]:
    """A keyword about values of one kind; it says nothing of others."""

    def check(value: Any, asked: Any, schema: Any, path: str, root: Any) -> str | None:
        return None if not _TYPES[kind](value) or holds(value, asked) else f"{path} is {value!r}, against {asked!r}"

    return check


def _unique(values: list[Any], asked: Any) -> bool:
    return not asked or not any(same(a, b) for at, a in enumerate(values) for b in values[:at])


def _multiple(value: float, asked: float) -> bool:
    return math.isclose(value / asked, round(value / asked), rel_tol=0, abs_tol=1e-9)


_CHECKS: dict[str, Callable[..., str | None]] = {
    "type": _type,
    "enum": lambda v, a, s, p, r: None if any(same(v, each) for each in a) else f"{p} is {v!r}, none of {a!r}",
    "const": lambda v, a, s, p, r: None if same(v, a) else f"{p} is {v!r}; expected {a!r}",
    "properties": _properties,
    "additionalProperties": _additional,
    "required": _when("object", lambda v, a: all(key in v for key in a)),
    "minProperties": _when("object", lambda v, a: len(v) >= a),
    "maxProperties": _when("object", lambda v, a: len(v) <= a),
    "items": _items,
    "prefixItems": _prefix,
    "minItems": _when("array", lambda v, a: len(v) >= a),
    "maxItems": _when("array", lambda v, a: len(v) <= a),
    "uniqueItems": _when("array", _unique),
    "minLength": _when("string", lambda v, a: len(v) >= a),
    "maxLength": _when("string", lambda v, a: len(v) <= a),
    "pattern": _when("string", lambda v, a: re.search(a, v) is not None),
    "minimum": _when("number", lambda v, a: v >= a),
    "maximum": _when("number", lambda v, a: v <= a),
    "exclusiveMinimum": _when("number", lambda v, a: v > a),
    "exclusiveMaximum": _when("number", lambda v, a: v < a),
    "multipleOf": _when("number", _multiple),
    "allOf": lambda v, a, s, p, r: next((w for w in (violation(v, each, p, r) for each in a) if w), None),
    "anyOf": lambda v, a, s, p, r: _some(v, a, s, p, r, lambda n: n >= 1),
    "oneOf": lambda v, a, s, p, r: _some(v, a, s, p, r, lambda n: n == 1),
    "not": lambda v, a, s, p, r: f"{p} fits what it must not" if violation(v, a, p, r) is None else None,
    "$ref": _ref,
}
