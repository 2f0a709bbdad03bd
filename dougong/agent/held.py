"""The schema that an answer is held to: whether it is one, and what of it a generator can be made to obey."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dougong.agent.check import NAMES, resolved, told
from dougong.base import DougongError, nearest

_ONE = ("items", "additionalProperties", "propertyNames", "contains", "not", "if", "then", "else")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_UNGENERATED = {
    *("not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems", "dependentRequired"),
    *("dependentSchemas", "unevaluatedItems", "unevaluatedProperties", "propertyNames"),
}


def sound(schema: Any, where: str = "the schema", root: Any = None) -> None:
    """Raise DougongError, naming the place, for what is no JSON schema. Without it a run would work for nothing."""
    root = schema if root is None else root
    if isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping):
        raise DougongError(f"{where} is {told(schema)}; expected an object, true or false")
    kinds = schema.get("type", [])
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if not isinstance(kind, str) or kind not in NAMES:
            raise DougongError(f"{where}.type is {told(kind)}{nearest(str(kind)[:40], NAMES)}")
    for key, shape, words in (
        ("enum", list, "a list with at least one value"),
        ("required", list, "a list of names"),
        *((key, list, "a list of schemas") for key in _LISTS),
        *((key, Mapping, "an object of schemas") for key in _MAPS),
    ):
        if key in schema and (not isinstance(schema[key], shape) or (key == "enum" and not schema[key])):
            raise DougongError(f"{where}.{key} is {told(schema[key])}; expected {words}")
    if "$ref" in schema:
        resolved(schema["$ref"], root)
    for key, inner in _inner(schema):
        sound(inner, f"{where}.{key}", root)


def _inner(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key in _ONE:
        if key in schema and not isinstance(schema[key], list):  # items may be a list in earlier drafts
            yield key, schema[key]
    for key in _LISTS:
        yield from ((f"{key}[{number}]", each) for number, each in enumerate(schema.get(key, ())))
    for key in _MAPS:
        yield from ((f"{key}.{name}", each) for name, each in schema.get(key, {}).items())


def loosened(schema: Any) -> Any:
    """The schema without what no generator can be made to obey (what comes is checked against the whole one): an allOf
    of several objects becomes one, other conditions are left out."""
    if not isinstance(schema, Mapping):
        return schema
    parts = schema.get("allOf", ())
    made = {key: value for key, value in schema.items() if key not in _UNGENERATED and key != "allOf"}
    for part in parts:
        for key, value in part.items() if isinstance(part, Mapping) else ():
            if isinstance(value, Mapping):
                made[key] = {**made.get(key, {}), **value}
            elif isinstance(value, list) and key == "required":
                made[key] = list(dict.fromkeys([*made.get(key, ()), *value]))
            else:
                made.setdefault(key, value)
    made = {key: value for key, value in made.items() if key not in _UNGENERATED}
    for key in _ONE:
        if key in made:
            made[key] = loosened(made[key])
    for key in _LISTS:
        if key in made:
            made[key] = [loosened(each) for each in made[key]]
    for key in _MAPS:
        if key in made:
            made[key] = {name: loosened(each) for name, each in made[key].items()}
    return made
