"""Typed records: frozen dataclasses that turn into plain data (JSON, YAML) and back, strictly.

Specs and recipes are records. Reading one refuses an unknown key (and names the nearest known one), a missing key and a
value of the wrong type, always with the dotted path of the place. Where a field may hold one of several records, the
data carries the class name under "kind".
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from dougong.base.errors import DougongError

T = TypeVar("T")
KIND = "kind"


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an error message: "; did you mean 'width'?", or the known names where none is near."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _choices(kind: Any) -> tuple[Any, ...]:
    """The members of a union, or the type alone."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _is_record(kind: Any) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def record_to(value: Any, declared: Any = None) -> Any:
    """Turn a record into dicts, lists and scalars.

    `declared` is the type under which the value is held; a record held under a union of records gains its "kind".
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = _hints(type(value))
        data = {
            field.name: record_to(getattr(value, field.name), hints[field.name]) for field in dataclasses.fields(value)
        }
        # A class marked `tagged` fills a slot that more classes may fill later: its name is always written.
        if getattr(value, "tagged", False) or sum(_is_record(choice) for choice in _choices(declared)) > 1:
            return {KIND: type(value).__name__, **data}
        return data
    if isinstance(value, (tuple, list)):
        held = [kind for kind in _choices(declared) if get_origin(kind) in (tuple, list)]
        inner = get_args(held[0]) if held else ()
        item = inner[0] if inner else None
        return [record_to(element, item) for element in value]
    if isinstance(value, Mapping):
        return {str(key): record_to(element) for key, element in value.items()}
    return str(value) if isinstance(value, Path) else value


def record_from(kind: type[T], data: Any, where: str = "") -> T:
    """Build a `kind` from plain data. Raises DougongError that names the path, the value and what was expected."""
    return _read(kind, data, where)


def _name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(repr(choice) for choice in get_args(kind))
    return "null" if kind is type(None) else getattr(kind, "__name__", str(kind))


def _wrong(where: str, data: Any, expected: str) -> DougongError:
    return DougongError(f"{where or 'the record'} is {data!r}; expected {expected}")


def _read(kind: Any, data: Any, where: str) -> Any:
    choices = _choices(kind)
    if len(choices) > 1:
        return _read_union(choices, data, where)
    if _is_record(kind):
        return _read_record(kind, data, where)
    origin = get_origin(kind)
    if origin is Literal:
        if data in get_args(kind):
            return data
        raise _wrong(where, data, _name(kind))
    if origin in (tuple, list):
        if not isinstance(data, (list, tuple)):
            raise _wrong(where, data, "a list")
        inner = get_args(kind)
        if origin is list or (len(inner) == 2 and inner[1] is Ellipsis):
            items = [_read(inner[0], element, f"{where}[{index}]") for index, element in enumerate(data)]
        else:
            if len(data) != len(inner):
                raise _wrong(where, data, f"{len(inner)} values")
            items = [
                _read(each, element, f"{where}[{index}]")
                for index, (each, element) in enumerate(zip(inner, data, strict=True))
            ]
        return origin(items)
    if origin is dict:
        if not isinstance(data, Mapping):
            raise _wrong(where, data, "a mapping")
        return {
            key: _read(get_args(kind)[1], element, f"{where}.{key}" if where else str(key))
            for key, element in data.items()
        }
    return _read_scalar(kind, data, where)


def _read_scalar(kind: Any, data: Any, where: str) -> Any:
    if kind is Any:
        return data
    if kind is type(None) and data is None:
        return None
    if kind is float and isinstance(data, (int, float)) and not isinstance(data, bool):
        return float(data)
    if kind is float and isinstance(data, str):  # YAML reads 1e-3 as a string
        try:
            return float(data)
        except ValueError:
            raise _wrong(where, data, "a number") from None
    if kind is int and isinstance(data, int) and not isinstance(data, bool):
        return data
    if kind is bool and isinstance(data, bool):
        return data
    if kind is str and isinstance(data, str):
        return data
    if kind is Path and isinstance(data, (str, Path)):
        return Path(data)
    raise _wrong(where, data, _name(kind))


def _read_union(choices: tuple[Any, ...], data: Any, where: str) -> Any:
    if data is None and type(None) in choices:
        return None
    records = {choice.__name__: choice for choice in choices if _is_record(choice)}
    if isinstance(data, Mapping) and records:
        if len(records) == 1:
            return _read_record(next(iter(records.values())), data, where)
        if KIND not in data:
            raise DougongError(f"{where or 'the record'} needs a {KIND!r}: one of {', '.join(sorted(records))}")
        chosen = data[KIND]
        if chosen not in records:
            raise DougongError(f"{where}.{KIND} is {chosen!r}{nearest(str(chosen), records)}")
        return _read_record(records[chosen], {key: value for key, value in data.items() if key != KIND}, where)
    # int before float: 3 stays an int under `int | float`.
    for choice in sorted((choice for choice in choices if not _is_record(choice)), key=lambda choice: choice is float):
        try:
            return _read(choice, data, where)
        except DougongError:
            continue
    raise _wrong(where, data, " or ".join(_name(choice) for choice in choices))


def _read_record(kind: Any, data: Any, where: str) -> Any:
    if isinstance(data, kind):
        return data
    if not isinstance(data, Mapping):
        raise _wrong(where, data, f"the keys of {kind.__name__}")
    if data.get(KIND) == kind.__name__:
        data = {key: value for key, value in data.items() if key != KIND}
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    hints = _hints(kind)
    prefix = f"{where}." if where else ""
    for key in data:
        if key not in fields:
            raise DougongError(f"unknown key {prefix}{key!s}{nearest(str(key), fields)}")
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _read(hints[name], data[name], f"{prefix}{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise DougongError(f"{prefix}{name} is missing; it is a {_name(hints[name])}")
    return kind(**values)
