"""A JSON schema as rules that a weak model cannot get lost in, and whose every text a strict parser takes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from dougong.base import DougongError

DEPTH = 16
DIGITS = 17

# Any character of a JSON string that needs no escape: no control byte, quote, backslash, or surrogate.
_CHARACTER = r"[\x20-\x21\x23-\x5b\x5d-\ud7ff\ue000-\U0010ffff]"
_HEX = "[0-9A-Fa-f]"

# The recursion and the look at what may follow are what xgrammar's tables are made for: with a count in the rule each
# mask of a large vocabulary takes a hundred times as long. So `Place` counts characters instead.
_STRINGS = rf"""
basic_string ::= "\"" basic_rest
basic_rest ::= ("\"" | {_CHARACTER} basic_rest | "\\" basic_escape basic_rest) (=([ \n\r\t]? [,}}\]:]))
basic_escape ::= [\"\\/bfnrt] | "u" basic_unit | "u" [Dd] [89ABab] {_HEX} {_HEX} "\\u" [Dd] [C-Fc-f] {_HEX} {_HEX}
basic_unit ::= [0-9A-CE-Fa-ce-f] {_HEX} {_HEX} {_HEX} | [Dd] [0-7] {_HEX} {_HEX}
"""
_NUMBERS = rf"""
basic_integer ::= "-"? ("0" | [1-9] [0-9]{{0, {DIGITS - 1}}})
basic_number ::= basic_integer ("." [0-9]{{1, {DIGITS}}})? ([eE] [+\-]? [0-9]{{1, 2}})?
"""
_REPLACED = (
    "basic_string",
    "basic_integer",
    "basic_number",
    "basic_escape",
    "basic_any",
    "basic_array",
    "basic_object",
)
_REPLACED_HELPER = re.compile(r"basic_(string_sub|integer|number|array|object)_\w+|basic_string_sub")

_UNENFORCED = (
    *("not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems", "dependencies"),
    *("dependentRequired", "dependentSchemas", "unevaluatedItems", "$dynamicRef", "$recursiveRef"),
)
_WHOLE = ("$ref", "anyOf", "oneOf", "allOf", "const", "enum")
_BESIDE = {
    *("properties", "required", "additionalProperties", "patternProperties", "propertyNames", "minProperties"),
    *("maxProperties", "items", "prefixItems", "minItems", "maxItems", "pattern", "minLength", "maxLength"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
_INNER = ("items", "additionalProperties", "propertyNames", "additionalItems", "unevaluatedProperties")
_INNER_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_INNER_MAPS = ("properties", "patternProperties", "$defs", "definitions")


def json_ebnf(schema: Any) -> str:
    """EBNF of the JSON texts that obey `schema`.

    Raises DougongError, naming the place, for a keyword that would not be enforced; RuntimeError (xgrammar's) for a
    schema that is wrong.
    """
    import xgrammar

    schema = plain(schema, "the schema")
    for place, pattern in _patterns(schema, "the schema"):
        try:
            xgrammar.Grammar.from_regex(pattern)  # in a schema its faults would be passed over
        except RuntimeError as error:
            raise DougongError(f"{place} is {pattern!r}: {str(error).split(': ')[-1].strip()}") from None
    rules = str(
        xgrammar.Grammar.from_json_schema(
            json.dumps(schema), any_whitespace=True, max_whitespace_cnt=1, strict_mode=False
        )
    )
    kept = []
    for line in rules.splitlines():
        name = line.split(" ::= ", 1)[0]
        if line and name not in _REPLACED and not _REPLACED_HELPER.fullmatch(name):
            kept.append(_bounded(line))
    return "\n".join(kept) + _STRINGS + _NUMBERS + _values()


def _values() -> str:
    """Rules of any JSON value, nested up to DEPTH."""
    gap = "basic_gap"
    rules = [f"{gap} ::= [ \\n\\r\\t]?"]
    scalars = "basic_string | basic_number | basic_boolean | basic_null"
    for depth in range(DEPTH + 1):
        name = f"basic_any_{depth}" if depth else "basic_any"
        array, thing = (f"basic_{kind}_{depth}" if depth else f"basic_{kind}" for kind in ("array", "object"))
        if depth == DEPTH:
            rules.append(f"{name} ::= {scalars}")
            break
        inner = f"basic_any_{depth + 1}"
        pair = f'basic_string {gap} ":" {gap} {inner}'
        rules += [
            f"{name} ::= {scalars} | {array} | {thing}",
            f'{array} ::= "[" {gap} "]" | "[" {gap} {inner} ({gap} "," {gap} {inner})* {gap} "]"',
            f'{thing} ::= "{{" {gap} "}}" | "{{" {gap} {pair} ({gap} "," {gap} {pair})* {gap} "}}"',
        ]
    return "\n".join(rules) + "\n"


# Literals of a rule, which no rewriting may touch, or what is to be changed in it.
_PART = re.compile(r'"(?:\\.|[^"\\])*"|\[\^\\"\\\\\\r\\n\]|\[0-9\]\*')


def _bounded(line: str) -> str:
    """A rule of xgrammar's with few digits, and no control bytes where strings have a length."""

    def change(found: re.Match[str]) -> str:
        if found[0].startswith('"'):
            return found[0]
        return _CHARACTER if found[0].startswith("[^") else f"[0-9]{{0, {DIGITS - 1}}}"

    return _PART.sub(change, line)


class Place(NamedTuple):
    """Where a JSON text stands: inside a string or not, behind a backslash or not, and the string's characters so far
    (as they are written: an escape counts as several)."""

    inside: bool = False
    escaped: bool = False
    length: int = 0

    def after(self, piece: bytes) -> Place:
        """The place when `piece` has been added."""
        inside, escaped, length = self
        for byte in piece:
            if not inside:
                inside, length = byte == 0x22, 0
            elif escaped:
                escaped, length = False, length + 1
            elif byte == 0x22:
                inside, length = False, 0
            else:
                escaped = byte == 0x5C
                length += byte & 0xC0 != 0x80  # bytes that go on with a character are none themselves
        return Place(inside, escaped, length)


def plain(schema: Any, where: str) -> Any:
    """The schema with what it leaves open said in words: an object with `properties` has no others, one without has
    any; a list without `items` has any. Raises DougongError for what would not be enforced."""
    if isinstance(schema, bool):
        if not schema:
            raise DougongError(f"{where} is false, which no text obeys")
        return {}
    if not isinstance(schema, dict):
        raise DougongError(f"{where} is {schema!r}; expected an object")
    for key in _UNENFORCED:
        if key in schema and schema[key] is not False:
            raise DougongError(
                f"{where} has {key!r}, which generation cannot enforce; leave it out and check afterwards"
            )
    for key in _WHOLE:
        beside = sorted((set(schema) & _BESIDE) - {key})
        if key in schema and beside:
            raise DougongError(f"{where} has {beside[0]!r} beside {key!r}, which generation cannot enforce together")
    if isinstance(schema.get("allOf"), list) and len(schema["allOf"]) != 1:
        raise DougongError(f"{where} has 'allOf' of {len(schema['allOf'])}, which generation cannot enforce; join them")
    out: dict[str, Any] = {key: value for key, value in schema.items() if key not in _UNENFORCED}
    for key in _INNER:
        if isinstance(out.get(key), (dict, list)):
            out[key] = plain(out[key], f"{where}.{key}")
    for key in _INNER_LISTS:
        if isinstance(out.get(key), list):
            out[key] = [plain(each, f"{where}.{key}[{place}]") for place, each in enumerate(out[key])]
    for key in _INNER_MAPS:
        if isinstance(out.get(key), dict):
            out[key] = {name: plain(each, f"{where}.{key}.{name}") for name, each in out[key].items()}
    kinds = out.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if ("object" in kinds or "properties" in out) and "additionalProperties" not in out:
        out["additionalProperties"] = not {"properties", "patternProperties"} & set(out)
    if "array" in kinds and "items" not in out:
        out["items"] = "prefixItems" not in out
    return out


def _patterns(schema: Any, where: str) -> Iterator[tuple[str, str]]:
    """Every regular expression of a schema, with its place. Values of const, enum, default and examples are data."""
    if not isinstance(schema, dict):
        return
    if isinstance(schema.get("pattern"), str):
        yield f"{where}.pattern", schema["pattern"]
    for name in schema.get("patternProperties", {}):
        yield f"{where}.patternProperties", name
    for key in _INNER:
        yield from _patterns(schema.get(key), f"{where}.{key}")
    for key in _INNER_LISTS:
        inner: Any = schema.get(key) or []
        for place, each in enumerate(inner):
            yield from _patterns(each, f"{where}.{key}[{place}]")
    for key in _INNER_MAPS:
        named: Any = schema.get(key) or {}
        for name, each in named.items():
            yield from _patterns(each, f"{where}.{key}.{name}")
