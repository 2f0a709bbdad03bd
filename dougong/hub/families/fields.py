"""Keys of config.json and the fields of a spec that they set: each pair is told once and used in both directions.

A place is a part and its field, such as "mixer.heads". The parts are "model", "layers" (whose depth is their number),
"layer", "norm", "head", "embedding", "task", "transform" (of the head, or of the task's), and those that a table names
in its kinds; a part of a part is "experts.router". "layer:mixer" is "layer" where the mixer is of that kind alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from itertools import product
from typing import Any, Protocol, final, runtime_checkable

from dougong.base import DougongError
from dougong.hub.families.common import ACTIVATIONS, read_activation, write_activation
from dougong.hub.families.reader import INFINITE, Reader
from dougong.model.spec import ModelSpec

Given = dict[str, dict[str, Any]]
"""What was read: for each part its fields, ready to be handed to its class."""

_NOTHING = object()


@dataclass(frozen=True)
class Parts:
    """A spec taken apart for writing: the first part of each kind, by name; None where no layer has one."""

    family: str
    spec: ModelSpec
    held: Mapping[str, Any]

    def kind_of(self, part: object, names: Iterable[str]) -> str | None:
        """Which of these names of kinds the part of a layer is of."""
        return next((name for name in names if type(part) is type(self.held[name])), None)

    def find(self, place: str) -> Any:
        """The field at a place, or _NOTHING where a part on the way is absent or has no such field."""
        name, *rest = place.split(".")
        value = self.held.get(name, _NOTHING)
        for each in rest:
            value = getattr(value, each, _NOTHING)
        return value

    def given(self) -> Given:
        """The fields of all parts, as if they had just been read."""
        fields = {name: dict(vars(part)) for name, part in self.held.items() if is_dataclass(part)}
        return {**fields, "layers": {"depth": len(self.spec.layers)}}

    def agree(self, given: Given) -> bool:
        """Whether the spec has what was read."""
        kinds, changes = given["layers"], given.get("changes", {})
        for index, layer in enumerate(self.spec.layers):
            for slot, each in ((slot, kinds[slot][index]) for slot in ("mixers", "ffns") if slot in kinds):
                if type(getattr(layer, slot[:-1])) is not type(self.held.get(each)):
                    return False
            own = {"layer": layer, "mixer": layer.mixer}
            if not all(_has(own[name], fields) for name, fields in changes.get(str(index), {}).items()):
                return False
        held = {name: part for name, part in self.held.items() if is_dataclass(part) and name != "layers"}
        return all(_has(part, given.get(name, {})) for name, part in held.items())


def _has(part: object, fields: Mapping[str, Any]) -> bool:
    return all(getattr(part, name, _NOTHING) == value for name, value in fields.items())


@runtime_checkable
class Entry(Protocol):
    """What a table holds: reads some keys into fields, and writes the keys from the fields."""

    def read(self, config: Reader, given: Given) -> None:
        """Raises DougongError for a key that must be there and is not, and for a value of the wrong kind."""
        ...

    def write(self, parts: Parts) -> dict[str, Any]: ...


def _same(value: Any) -> Any:
    return value


@final
@dataclass(frozen=True)
class Key:
    """One key of config.json.

    place  the field that it sets, or several, apart by spaces; written is the first that the model has
    usual  what a missing key means: a value, or a function of what was read before. None: the key must be there
    also   older names of the key, apart by spaces
    """

    name: str
    place: str
    ask: Callable[[Reader, str, Any], Any]
    usual: Any = None
    also: str = ""
    tell: Callable[[Any], Any] = _same

    def read(self, config: Reader, given: Given) -> None:
        usual = self.usual(given) if callable(self.usual) else self.usual
        known = [each for each in (self.name, *self.also.split()) if config.raw(each) is not None]
        put(given, self.place, self.ask(config, (known or [self.name])[0], usual))

    def write(self, parts: Parts) -> dict[str, Any]:
        found = (value for place in self.place.split() if (value := parts.find(place)) is not _NOTHING)
        value = next(found, _NOTHING)
        return {} if value is _NOTHING else {self.name: self.tell(value)}


@final
@dataclass(frozen=True)
class Keys:
    """Keys that only together say something."""

    ask: Callable[[Reader, Given], None] = lambda config, given: None
    tell: Callable[[Parts], dict[str, Any]] = lambda parts: {}

    def read(self, config: Reader, given: Given) -> None:
        self.ask(config, given)

    def write(self, parts: Parts) -> dict[str, Any]:
        return self.tell(parts)


def settings(**values: Iterable[Any]) -> Iterable[dict[str, Any]]:
    """Every way to give each key one of its values."""
    return (dict(zip(values, each, strict=True)) for each in product(*values.values()))


def search(ask: Callable[[Reader, Given], None], ways: Callable[[Parts], Iterable[dict[str, Any]]]) -> Keys:
    """Keys whose meaning is told for reading alone: written is the first of the `ways` to give them that means what
    the spec has. (Nothing where none does: the check of exactness then names what is amiss.)"""

    def agrees(parts: Parts, keys: Mapping[str, Any]) -> bool:
        try:
            ask(Reader(parts.family, keys), given := parts.given())
        except DougongError:
            return False
        return parts.agree(given)

    return Keys(ask, lambda parts: next((keys for keys in ways(parts) if agrees(parts, keys)), {}))


def together(usual: Mapping[str, Any], rows: Mapping[tuple[Any, ...], Mapping[str, Any]]) -> Keys:
    """Keys that say something only together.

    usual  the keys, and what missing ones mean
    rows   a value for each of them, or a tuple of values that mean the same; and the fields that are then set, by
           place: values, or functions of what was read before. What is in no row is refused; written are the first
           values of the first row that means what the spec has
    """
    alike = [[each if isinstance(each, tuple) else (each,) for each in row] for row in rows]

    def ask(config: Reader, given: Given) -> None:
        values = [default if (value := config.raw(key)) is None else value for key, default in usual.items()]
        found = next((row for row, known in zip(rows, alike, strict=True) if all(map(_among, values, known))), None)
        if found is None:
            raise _not_together(config, dict(zip(usual, values, strict=True)), alike)
        for places, value in rows[found].items():
            put(given, places, made(value, given))

    return search(ask, lambda parts: (dict(zip(usual, (each[0] for each in row), strict=True)) for row in alike))


def _not_together(config: Reader, values: Mapping[str, Any], rows: Sequence[Sequence[tuple[Any, ...]]]) -> DougongError:
    """What to say of values of which no row has all: the first that is in none, or the rows that have the first."""
    for column, (key, value) in enumerate(values.items()):
        known = [each for row in rows for each in row[column]]
        if not _among(value, known):
            return config.wrong(key, value, " or ".join(dict.fromkeys(map(json.dumps, known))))
    first = next(iter(values.values()))
    near = [[json.dumps(each[0]) for each in row] for row in rows if _among(first, row[0])]
    return config.wrong(", ".join(values), [*values.values()], " or ".join(map(", ".join, near)))


def either(name: str, place: str, usual: bool, yes: Any, no: Any) -> Keys:
    """A flag that stands for one of two values, or functions of what was read before."""
    return together({name: usual}, {(True,): {place: yes}, (False,): {place: no}})


def _among(value: Any, known: Iterable[Any]) -> bool:
    return any(type(value) is type(each) and value == each for each in known)  # true is not 1


def made(value: Any, given: Given) -> Any:
    """A value that is told as such, or as a function of what was read."""
    return value(given) if callable(value) and not is_dataclass(value) else value


def put(given: Given, places: str, value: Any) -> None:
    """Set the fields at some places, apart by spaces."""
    for place in places.split():
        part, _, field = place.rpartition(".")
        given.setdefault(part, {})[field] = value


def change(given: Given, index: int | str, places: str, value: Any) -> None:
    """Of one layer alone, fields of its "mixer" or of the "layer" itself."""
    put(given.setdefault("changes", {}).setdefault(str(index), {}), places, value)


def usually(keys: Iterable[Entry], usual: Mapping[str, Any]) -> tuple[Entry, ...]:
    """The keys with other meanings of missing ones, by place."""
    keys = tuple(keys)
    assert usual.keys() <= {key.place for key in keys if isinstance(key, Key)}
    return tuple(
        replace(key, usual=usual[key.place]) if isinstance(key, Key) and key.place in usual else key for key in keys
    )


def likewise(keys: Iterable[Entry], more: Mapping[str, str]) -> tuple[Entry, ...]:
    """The keys, of which some set further fields: by the place that they set alone, the places that they set too."""
    keys = tuple(keys)
    assert more.keys() <= {key.place for key in keys if isinstance(key, Key)}
    return tuple(
        replace(key, place=f"{key.place} {more[key.place]}") if isinstance(key, Key) and key.place in more else key
        for key in keys
    )


def integer(name: str, place: str, usual: Any = None, least: int = 1, also: str = "") -> Key:
    return Key(name, place, lambda config, key, default: config.integer(key, default, least), usual, also)


def optional(name: str, place: str, usual: int | None = None) -> Key:
    """An integer; null, which is not a missing key, stands for none."""

    def ask(config: Reader, key: str, default: int | None) -> int | None:
        return None if config.raw(key, default) is None else config.integer(key, default)

    return Key(name, place, ask, usual)


def number(name: str, place: str, usual: Any = None, also: str = "") -> Key:
    return Key(name, place, Reader.number, usual, also)


def positive(name: str, place: str, usual: float | None = None) -> Key:
    return Key(name, place, Reader.positive, usual)


def cap(name: str, place: str, usual: float | None = None) -> Key:
    """A number above 0; null stands for none."""
    return Key(name, place, Reader.cap, usual)


def share(name: str, place: str, usual: float = 0.0) -> Key:
    """Of numbers that dropout sets to 0."""
    return Key(name, place, Reader.share, usual)


def pair(first: str, second: str, place: str, usual: tuple[float, float]) -> Keys:
    """Two numbers in one field."""

    def ask(config: Reader, given: Given) -> None:
        put(given, place, tuple(map(config.number, (first, second), usual)))

    def tell(parts: Parts) -> dict[str, Any]:
        found = parts.find(place)
        return {} if found is _NOTHING else dict(zip((first, second), found, strict=True))

    return Keys(ask, tell)


def limits(name: str, place: str, usual: tuple[float, float | None] = (0.0, None)) -> Key:
    """The least and the largest number; None: there is no largest."""
    return Key(name, place, Reader.limits, usual, tell=lambda found: [INFINITE[-1] if n is None else n for n in found])


def shares(usual: float = 0.0, **places: str) -> tuple[Key, ...]:
    """`share`, of keys and their places."""
    return tuple(share(name, place, usual) for name, place in places.items())


def flag(name: str, place: str, usual: Any) -> Key:
    return Key(name, place, Reader.flag, usual)


def flags(usual: bool, **places: str) -> tuple[Key, ...]:
    """`flag`, of keys and their places."""
    return tuple(flag(name, place, usual) for name, place in places.items())


def window(name: str, place: str, usual: int | None = None) -> Key:
    """Tokens that a layer sees; null is all."""
    return Key(name, place, Reader.window, usual)


def choice(name: str, place: str, usual: Any, meanings: Mapping[Any, Any]) -> Key:
    """One of a few values, each of which stands for another in the spec."""

    def ask(config: Reader, key: str, default: Any) -> Any:
        value = config.raw(key, default)
        if not isinstance(value, Hashable) or value not in meanings:
            raise config.wrong(key, value, " or ".join(map(repr, meanings)))
        return meanings[value]

    spelled = {value: key for key, value in reversed([*meanings.items()])}
    return Key(name, place, ask, usual, tell=lambda value: spelled.get(value, usual))


def activation(name: str, place: str, usual: str, tanh: str = "gelu_pytorch_tanh") -> Key:
    """tanh: the family's name for the tanh approximation of GELU."""

    def tell(value: Any) -> str:
        return write_activation(value, tanh) if value in ACTIVATIONS.values() else usual  # `exact` refuses others

    return Key(name, place, read_activation, usual, tell=tell)


def repeated(**keys: str) -> Keys:
    """Keys that repeat the fields at these places: DougongError where one says something else."""

    def ask(config: Reader, given: Given) -> None:
        for key, place in keys.items():
            part, field = place.split(".")
            if key in config and config.integer(key) != given[part][field]:
                raise config.wrong(key, config.raw(key), f"{given[part][field]}, as the other keys say")

    return Keys(ask)


def inside(
    name: str,
    *keys: Entry,
    said: Mapping[str, Any] | None = None,
    silent: str = "",
) -> Keys:
    """Keys under another key, as in a `Table`; `also` is another name of one that may stand beside that key."""
    always = said or {}
    beside = {key.name: key.also for key in keys if isinstance(key, Key) and key.also}

    def ask(config: Reader, given: Given) -> None:
        inner = config.inside(name, beside)
        inner.pass_over(silent)
        inner.only(**always)
        for key in keys:
            key.read(inner, given)
        inner.refuse_rest()

    return Keys(ask, lambda parts: {name: {**written(keys, parts), **always}})


def written(keys: Iterable[Entry], parts: Parts) -> dict[str, Any]:
    return {name: value for key in keys for name, value in key.write(parts).items()}
