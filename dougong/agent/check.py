"""Whether arguments obey a JSON schema, and if not what is wrong with them, in words that a model can act upon.

Strict: true is no number, "3" is no integer (3.0 is one, as JSON schema has it), NaN and infinity are no JSON. Known
are the keywords of draft 2020-12 without `unevaluated...`, dynamic scopes and other documents; `format` is a remark,
as there. A `pattern` that cannot be matched in linear time (see `dougong.agent.pattern`) is left to the tool.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dougong.agent.pattern import found
from dougong.base import DougongError, nearest

NAMES = {
    "string": "a string",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}


def check(schema: Any, value: Any, where: str = "") -> None:
    """Raise DougongError, naming the place, where `value` does not obey `schema` (JSON Schema, draft 2020-12)."""
    _check(schema, value, where, schema)


def told(value: object, width: int = 60) -> str:
    """A value in an error message: as Python writes it, cut at `width`."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a very long integer, a very deep list
        text = f"<{type(value).__name__}>"
    return text if len(text) <= width else text[: width - 3] + "..."


def same(one: Any, other: Any) -> bool:
    """Equality of JSON values: 1 equals 1.0, and never true."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other


def _is(kind: Any, value: Any) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer":
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    kinds = {"number": (int, float), "string": str, "array": list, "object": dict, "null": type(None)}
    return kind in kinds and isinstance(value, kinds[kind])


def _wrong(where: str, value: Any, expected: str) -> DougongError:
    return DougongError(f"{where or 'the arguments'} is {told(value)}; expected {expected}")


def _check(schema: Any, value: Any, where: str, root: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise _wrong(where, value, "a finite number")
    if schema is True or schema is None:
        return
    if schema is False:
        raise _wrong(where, value, "nothing here")
    if not isinstance(schema, Mapping):
        raise DougongError(f"the schema of {where or 'the arguments'} is {told(schema)}; expected an object")
    if "$ref" in schema:
        _check(resolved(schema["$ref"], root), value, where, root)
    kinds = schema.get("type")
    if kinds is not None:
        kinds = kinds if isinstance(kinds, list) else [kinds]
        if not any(_is(kind, value) for kind in kinds):
            raise _wrong(where, value, " or ".join(NAMES.get(str(kind), str(kind)) for kind in kinds))
    if "const" in schema and not same(schema["const"], value):
        raise _wrong(where, value, told(schema["const"]))
    if "enum" in schema and not any(same(choice, value) for choice in schema["enum"]):
        raise _wrong(where, value, _expected(schema))
    if isinstance(value, str):
        _check_size(schema, len(value), "Length", "characters", where)
        if "pattern" in schema and found(str(schema["pattern"]), value) is False:
            raise _wrong(where, value, f"a text with the pattern {told(schema['pattern'])}")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        _check_number(schema, value, where)
    elif isinstance(value, list):
        _check_list(schema, value, where, root)
    elif isinstance(value, dict):
        _check_object(schema, value, where, root)
    _check_choices(schema, value, where, root)


def resolved(reference: Any, root: Any) -> Any:
    """The part of the schema `root` that a $ref names. Raises DougongError where there is none."""
    place = root
    steps = str(reference).split("/")
    if len(steps) == 1 and len(steps[0]) > 1 and steps[0][0] == "#":
        place, steps = _anchored(root, steps[0][1:]), ["#"]
    for step in steps[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(place, list):
            place = place[int(step)] if step.isdecimal() and int(step) < len(place) else None
        else:
            place = place.get(step) if isinstance(place, Mapping) else None
    if steps[0] != "#" or place is None:
        raise DougongError(f"the schema refers to {told(reference)}, which it does not hold")
    return place


def _anchored(schema: Any, name: str) -> Any:
    """The part of a schema that an $anchor names; None where there is none."""
    if isinstance(schema, Mapping):
        if schema.get("$anchor") == name:
            return schema
        schema = list(schema.values())
    parts = (_anchored(each, name) for each in schema) if isinstance(schema, list) else ()
    return next((each for each in parts if each is not None), None)


def _check_size(schema: Mapping[str, Any], size: int, what: str, unit: str, where: str) -> None:
    low, high = schema.get(f"min{what}"), schema.get(f"max{what}")
    if low is not None and size < low:
        raise DougongError(f"{where or 'the arguments'} has {size} {unit}; expected at least {low}")
    if high is not None and size > high:
        raise DougongError(f"{where or 'the arguments'} has {size} {unit}; expected at most {high}")


def _check_number(schema: Mapping[str, Any], value: float, where: str) -> None:
    for key, holds, words in (
        ("minimum", lambda bound: value >= bound, "at least"),
        ("maximum", lambda bound: value <= bound, "at most"),
        ("exclusiveMinimum", lambda bound: value > bound, "more than"),
        ("exclusiveMaximum", lambda bound: value < bound, "less than"),
    ):
        if key in schema and not holds(schema[key]):
            raise _wrong(where, value, f"{words} {schema[key]}")
    if "multipleOf" in schema and value % schema["multipleOf"] != 0:
        raise _wrong(where, value, f"a multiple of {schema['multipleOf']}")


def _check_list(schema: Mapping[str, Any], value: list[Any], where: str, root: Any) -> None:
    _check_size(schema, len(value), "Items", "items", where)
    first, rest = schema.get("prefixItems", []), schema.get("items", True)
    if isinstance(rest, list):  # as earlier drafts say it
        first, rest = rest, schema.get("additionalItems", True)
    for index, item in enumerate(value):
        _check(first[index] if index < len(first) else rest, item, f"{where}[{index}]", root)
    if schema.get("uniqueItems"):
        for index, item in enumerate(value):
            if any(same(item, other) for other in value[:index]):
                raise DougongError(f"{where}[{index}] is {told(item)}, a second time; expected different items")
    if "contains" in schema:
        size = sum(_obeys(schema["contains"], item, where, root) for item in value)
        bounds = {"minItems": schema.get("minContains", 1), "maxItems": schema.get("maxContains")}
        _check_size(bounds, size, "Items", f"items that are {_expected(schema['contains'])}", where)


def _check_object(schema: Mapping[str, Any], value: dict[str, Any], where: str, root: Any) -> None:
    _check_size(schema, len(value), "Properties", "keys", where)
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    prefix = f"{where}." if where else ""
    asked = [*schema.get("required", ())]
    asked += [other for key, others in schema.get("dependentRequired", {}).items() if key in value for other in others]
    for key in asked:
        if key not in value:
            raise DougongError(f"{prefix}{key} is missing")
    rest = schema.get("additionalProperties", True)
    for key, item in value.items():
        if not isinstance(key, str):
            raise DougongError(f"the key {told(key)} of {where or 'the arguments'} is no text")
        if "propertyNames" in schema:
            _check(schema["propertyNames"], key, f"the key {told(key)} of {where or 'the arguments'}", root)
        # A pattern that cannot be matched may be that of any key.
        fits = {pattern: found(str(pattern), key) for pattern in patterns}
        for pattern in [pattern for pattern, fit in fits.items() if fit]:
            _check(patterns[pattern], item, f"{prefix}{key}", root)
        if key in known:
            _check(known[key], item, f"{prefix}{key}", root)
        elif all(fit is False for fit in fits.values()):
            if rest is False:
                raise DougongError(f"unknown argument {prefix}{told(key)}{nearest(key[:60], known)}")
            _check(rest, item, f"{prefix}{key}", root)
    for key, inner in schema.get("dependentSchemas", {}).items():
        if key in value:
            _check(inner, value, where, root)


def _check_choices(schema: Mapping[str, Any], value: Any, where: str, root: Any) -> None:
    for inner in schema.get("allOf", ()):
        _check(inner, value, where, root)
    if "if" in schema:
        _check(schema.get("then" if _obeys(schema["if"], value, where, root) else "else", True), value, where, root)
    if "not" in schema and _obeys(schema["not"], value, where, root):
        raise _wrong(where, value, "anything but that")
    for key in ("anyOf", "oneOf"):
        if key not in schema:
            continue
        faults = [_fault(inner, value, where, root) for inner in schema[key]]
        fits = faults.count(None)
        if fits == 0:
            ways = " or ".join(_expected(inner) for inner in schema[key])
            # One choice of the right kind: what is wrong inside it says more than "an object or null".
            inside = [fault for fault in faults if fault and not fault.startswith(f"{where or 'the arguments'} is ")]
            raise DougongError(inside[0]) if len(inside) == 1 else _wrong(where, value, ways)
        if key == "oneOf" and fits > 1:
            raise _wrong(where, value, f"exactly one of {fits} forms that it has")


def _expected(schema: Any) -> str:
    """What a schema asks for, in a few words."""
    if not isinstance(schema, Mapping):
        return "anything"
    if "enum" in schema or "const" in schema:
        choices = schema.get("enum", [schema.get("const")])
        return "one of " + ", ".join(told(choice) for choice in choices)[:300]
    kinds = schema.get("type", "another form")
    return " or ".join(NAMES.get(str(kind), str(kind)) for kind in (kinds if isinstance(kinds, list) else [kinds]))


def _fault(schema: Any, value: Any, where: str, root: Any) -> str | None:
    try:
        _check(schema, value, where, root)
    except DougongError as error:
        return str(error)
    return None


def _obeys(schema: Any, value: Any, where: str, root: Any) -> bool:
    return _fault(schema, value, where, root) is None
