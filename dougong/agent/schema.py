"""The JSON schema of a function's arguments, and how JSON becomes what the function takes.

Known types: str, int, float, bool, None, list, tuple, set, dict, Literal, Enum, Optional and unions, dataclasses,
TypedDicts, NamedTuples, dates and times, UUID, Path, Any, and Annotated[type, "description"]. Unknown arguments are
refused (additionalProperties is false).
"""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import enum
import functools
import inspect
import json
import types
import typing
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, Required, Union, get_args, get_origin

from dougong.agent.check import check
from dougong.agent.docstring import read_docstring
from dougong.base import DougongError

Schema = dict[str, Any]
Read = Callable[[Any], Any]


@dataclass(frozen=True)
class Shape:
    """A type as a schema, and its values out of JSON that obeys it."""

    schema: Schema
    read: Read


@dataclass(frozen=True)
class Signature:
    """What a function is called, says of itself, and takes."""

    name: str
    description: str
    parameters: Schema
    readers: Mapping[str, Read]

    def read(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments of the function; `arguments` obey the schema."""
        return {name: self.readers[name](value) for name, value in arguments.items()}


def signature_of(function: Callable[..., Any]) -> Signature:
    """Read a function's signature and docstring.

    `function` may be a function, a method, a functools.partial, or an object that can be called. The first parameter
    of a method that is decorated inside its class is the object itself, and no argument.

    Raises DougongError, naming the parameter, for what a schema cannot say: *args, **kwargs, positional-only
    parameters, missing or unknown annotations; and for what is no function: a class, a generator.
    """
    inner = _innermost(function)
    name = getattr(inner, "__name__", type(inner).__name__)
    if isinstance(inner, type) or not callable(inner):
        raise DougongError(f"a tool is {inner!r:.80}; expected a function")
    body = inner if inspect.isroutine(inner) else type(inner).__call__
    if inspect.isgeneratorfunction(body) or inspect.isasyncgenfunction(body):
        raise DougongError(f"{name} yields its results one by one; a tool returns them at once: return a list")
    try:
        hints = typing.get_type_hints(body, include_extras=True)
        parameters = dict(inspect.signature(function).parameters)
    except (NameError, TypeError, AttributeError) as error:
        raise DougongError(f"the annotations of {name} cannot be read: {error}; define its types in a module") from None
    except ValueError:
        raise DougongError(f"{name} does not say what it takes; put it into a function that does") from None
    if of_class(function):
        del parameters[next(iter(parameters))]
    description, texts = read_docstring(inspect.getdoc(inner) or inspect.getdoc(body), parameters)
    properties: Schema = {}
    readers: dict[str, Read] = {}
    for key, parameter in parameters.items():
        shape = _parameter(name, parameter, hints)
        schema = shape.schema if key not in texts else {**shape.schema, "description": texts[key]}
        default = _default(parameter.default)
        properties[key] = {**schema, "default": default} if default is not _NOTHING else schema
        readers[key] = shape.read
    required = [key for key, parameter in parameters.items() if parameter.default is parameter.empty]
    return Signature(name, description, _object(properties, required), readers)


def _innermost(function: Any) -> Any:
    """The function inside decorators and partials, whose annotations count."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        else:
            return function


def of_class(function: object) -> bool:
    """Whether a function was defined inside a class and waits for its object: its first parameter is a bare `self` or
    `cls`."""
    if not inspect.isfunction(function) or "." not in function.__qualname__.rpartition("<locals>")[2].lstrip("."):
        return False
    first = next(iter(inspect.signature(function).parameters.values()), None)
    return first is not None and first.name in ("self", "cls") and first.annotation is first.empty


def _parameter(function: str, parameter: inspect.Parameter, hints: Mapping[str, Any]) -> Shape:
    where = f"the parameter {parameter.name} of {function}"
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else "**"
        raise DougongError(f"{stars}{parameter.name} of {function} has no schema; name each parameter")
    if parameter.kind is parameter.POSITIONAL_ONLY:
        raise DougongError(f"{where} is positional only; tools are called by name: remove the '/'")
    if parameter.name not in hints:
        raise DougongError(f"{where} has no annotation; give it a type, as in {parameter.name}: str")
    return shape_of(hints[parameter.name], where)


def _object(properties: Schema, required: list[str]) -> Schema:
    schema: Schema = {"type": "object", "properties": properties}
    return {**schema, **({"required": required} if required else {}), "additionalProperties": False}


_NOTHING = object()


def _default(value: Any) -> Any:
    """A default as JSON, or _NOTHING where it is none or JSON cannot say it."""
    if value is inspect.Parameter.empty:
        return _NOTHING
    if isinstance(value, enum.Enum):
        value = _written(type(value))[1](value)
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        return _NOTHING


_SCALARS: dict[Any, Shape] = {
    str: Shape({"type": "string"}, lambda value: value),
    int: Shape({"type": "integer"}, int),  # 3.0 is an integer in JSON schema
    float: Shape({"type": "number"}, float),
    bool: Shape({"type": "boolean"}, lambda value: value),
    type(None): Shape({"type": "null"}, lambda value: value),
    Any: Shape({}, lambda value: value),
}
_TEXTS: dict[Any, tuple[Callable[[str], Any], str, str]] = {
    # what reads it, JSON Schema's format, and an example
    datetime.date: (datetime.date.fromisoformat, "date", "2024-05-31"),
    datetime.time: (datetime.time.fromisoformat, "time", "18:30:00"),
    datetime.datetime: (datetime.datetime.fromisoformat, "date-time", "2024-05-31T18:30:00"),
    uuid.UUID: (uuid.UUID, "uuid", "123e4567-e89b-12d3-a456-426614174000"),
    Path: (Path, "", ""),
}
_LISTS: dict[Any, Callable[[Any], Any]] = {
    list: list,
    tuple: tuple,
    set: set,
    frozenset: frozenset,
    collections.abc.Sequence: list,
    collections.abc.Iterable: list,
}
_MAPS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


def shape_of(kind: Any, where: str, inside: tuple[Any, ...] = ()) -> Shape:
    """The shape of a type. `where` names it in errors; `inside` are the records around it, which may not recur."""
    if (isinstance(kind, type) or kind is Any) and kind in _SCALARS:
        return _SCALARS[kind]
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        shape = shape_of(inner[0], where, inside)
        texts = [note for note in inner[1:] if isinstance(note, str)]
        return Shape({**shape.schema, "description": texts[0]}, shape.read) if texts else shape
    if isinstance(kind, typing.NewType):
        return shape_of(kind.__supertype__, where, inside)
    if origin in (Required, NotRequired):
        return shape_of(inner[0], where, inside)
    if origin is Literal:
        return _choice(list(inner), lambda value: value, where)
    if origin in (Union, types.UnionType):
        return _union(inner, where, inside)
    base = origin or kind
    if base in _LISTS:
        return _list(base, inner, where, inside)
    if base in _MAPS:
        if inner and inner[0] is not str:
            raise DougongError(
                f"{where} is a dict with keys of {inner[0]!r}; JSON has keys of text alone: dict[str, ...]"
            )
        item = shape_of(inner[1], where, inside) if inner else _SCALARS[Any]
        more = {"additionalProperties": item.schema} if item.schema else {}
        return Shape({"type": "object", **more}, lambda value: {key: item.read(each) for key, each in value.items()})
    if isinstance(kind, type) and kind in _TEXTS:
        return _text(kind, where)
    if isinstance(kind, enum.EnumMeta):
        values, write = _written(kind)
        members = {json.dumps(write(member)): member for member in kind}
        return _choice(values, lambda value: members[json.dumps(value)], where)
    if dataclasses.is_dataclass(kind) or typing.is_typeddict(kind) or _named(kind):
        return _record(kind, where, inside)
    raise DougongError(f"{where} is {kind!r}, which JSON cannot say; take text, numbers, lists, dicts or a dataclass")


def _named(kind: Any) -> bool:
    """Whether a type is a NamedTuple whose fields have types."""
    fields = getattr(kind, "_fields", ()) if isinstance(kind, type) and issubclass(kind, tuple) else ()
    return bool(fields) and set(fields) <= set(kind.__annotations__)


def _text(kind: Any, where: str) -> Shape:
    """What JSON has as a text of a certain form."""
    make, form, example = _TEXTS[kind]

    def read(value: str) -> Any:
        try:
            return make(value)
        except ValueError:
            raise DougongError(f"{where} is {value!r:.60}; expected a {form} such as {example}") from None

    return Shape({"type": "string", **({"format": form} if form else {})}, read)


def _written(kind: Any) -> tuple[list[Any], Callable[[Any], Any]]:
    """How an enumeration's members are written: by value where all are JSON scalars, else by name."""
    plain = all(isinstance(member.value, (str, int, bool)) for member in kind)
    values = [member.value if plain else member.name for member in kind]
    return values, (lambda member: member.value) if plain else (lambda member: member.name)


def _choice(values: list[Any], read: Read, where: str) -> Shape:
    names = {str: "string", bool: "boolean", int: "integer", type(None): "null"}
    kinds = {names.get(type(value)) for value in values}
    if not values or None in kinds:
        raise DougongError(f"{where} chooses among {values!r}; expected texts, integers, booleans or None")
    one = {"type": kinds.pop()} if len(kinds) == 1 else {}
    canonical = {json.dumps(value): value for value in values}  # 1.0 obeys an enum of 1, and becomes 1
    return Shape(
        {**one, "enum": values},
        lambda value: read(canonical[json.dumps(int(value) if isinstance(value, float) else value)]),
    )


def _union(choices: tuple[Any, ...], where: str, inside: tuple[Any, ...]) -> Shape:
    # int before float: 3 stays an integer under float | int.
    ordered = sorted(choices, key=lambda choice: choice is float)
    shapes = [shape_of(choice, where, inside) for choice in ordered]

    def read(value: Any) -> Any:
        fault = f"{where} is {value!r}, which no form of it takes"
        for shape in shapes:
            try:
                check(shape.schema, value, where)
            except DougongError:
                continue
            try:
                return shape.read(value)
            except DougongError as error:  # a text, but no date: perhaps another form takes it
                fault = str(error)
        raise DougongError(fault)

    return Shape({"anyOf": [shape.schema for shape in shapes]}, read)


def _list(base: Any, inner: tuple[Any, ...], where: str, inside: tuple[Any, ...]) -> Shape:
    make = _LISTS[base]
    if base is tuple and inner and inner[-1] is not Ellipsis:
        items = [] if inner == ((),) else [shape_of(each, where, inside) for each in inner]
        schema = {
            "type": "array",
            "prefixItems": [item.schema for item in items],
            "minItems": len(items),
            "maxItems": len(items),
        }
        return Shape(schema, lambda value: tuple(item.read(each) for item, each in zip(items, value, strict=True)))
    item = shape_of(inner[0], where, inside) if inner else _SCALARS[Any]
    schema = {"type": "array", **({"items": item.schema} if item.schema else {})}
    if make in (set, frozenset):
        schema["uniqueItems"] = True
    return Shape(schema, lambda value: make([item.read(each) for each in value]))


def _record(kind: Any, where: str, inside: tuple[Any, ...]) -> Shape:
    """A dataclass, a TypedDict or a NamedTuple: an object whose keys are its fields."""
    if kind in inside:
        raise DougongError(f"{where} holds {kind.__name__} inside itself; a tool's arguments may not recur")
    hints = typing.get_type_hints(kind, include_extras=True)
    if typing.is_typeddict(kind):
        origins = {key: get_origin(hint) for key, hint in hints.items()}
        optional = {
            key
            for key in hints
            if origins[key] is NotRequired or (origins[key] is not Required and key not in kind.__required_keys__)
        }
        names = list(hints)
        make: Callable[..., Any] = dict
    elif _named(kind):
        names, optional, make = list(kind._fields), set(kind._field_defaults), kind
    else:
        fields = [each for each in dataclasses.fields(kind) if each.init]
        missing = dataclasses.MISSING
        optional = {f.name for f in fields if not (f.default is missing and f.default_factory is missing)}
        names = [each.name for each in fields]
        make = kind
        asked = inspect.signature(kind).parameters.values()
        unknown = [each.name for each in asked if each.default is each.empty and each.name not in names]
        if unknown:
            raise DougongError(f"{where} is made with {unknown[0]}, which is no field of {kind.__name__}")
    texts = read_docstring(kind.__doc__, names)[1]
    shapes = {name: shape_of(hints[name], f"{where}.{name}", (*inside, kind)) for name in names}
    properties = {
        name: {**shape.schema, "description": texts[name]} if name in texts else shape.schema
        for name, shape in shapes.items()
    }
    required = [name for name in names if name not in optional]
    return Shape(
        _object(properties, required),
        lambda value: make(**{key: shapes[key].read(each) for key, each in value.items()}),
    )
