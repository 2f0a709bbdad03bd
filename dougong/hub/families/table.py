"""A family's config.json as a table: read into a spec, and written from one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, final, runtime_checkable

from dougong.base import DougongError
from dougong.hub.families.common import exact, first_layer
from dougong.hub.families.fields import Entry, Given, Parts, change, made, put, written
from dougong.hub.families.reader import Reader
from dougong.hub.families.tasks import ENDS, DecoderHeads
from dougong.hub.predicting import without
from dougong.model.spec import LayerSpec, ModelSpec
from dougong.parts.embedding import Embedding, Head
from dougong.parts.experts import MoE
from dougong.parts.feedforward import MLP, GatedMLP
from dougong.parts.norm import Norm
from dougong.parts.wkv import ChannelMix

USUAL = {"norm": Norm, "embedding": Embedding, "head": Head}
"""Parts that every family has."""
LAYER_NORM = {"norm.kind": "layer", "norm.bias": True}
BIASES = {"mixer.bias": True, "mixer.out_bias": True, "ffn.bias": True}
# Kinds of which no layer may have one, and what stands in for one in writing: made of the others.
Absent = Mapping[str, Callable[[Mapping[str, Any]], Any]]


@dataclass(frozen=True)
class _Layers:
    depth: int


def the_norm(given: Given) -> Norm:
    """In `Table.always`: that of the layers."""
    return given["made"]["norm"]


def the_width(given: Given) -> int:
    """In `Table.always`: the model's."""
    return given["model"]["width"]


def root_of_width(given: Given) -> float:
    """In `Table.always`, of embeddings."""
    return math.sqrt(the_width(given))


@runtime_checkable
class Heads(Protocol):
    """Which head stands on the layers that a table tells: `architectures` says it, after the family's name."""

    def read(self, config: Reader, body: ModelSpec, given: Given) -> ModelSpec:
        """`body` with the head; given: what the table read."""
        ...

    def write(self, family: str, spec: ModelSpec) -> tuple[ModelSpec, str, dict[str, Any]]:
        """The spec as the table writes it, the architecture, and the keys that `read` reads."""
        ...


@final
@dataclass(frozen=True)
class Table:
    """What the keys of a family's config.json say, and what needs no key.

    kinds    the classes of its layers' mixers and feed-forwards, each under a name; and of parts of parts, by place. A
             model has the first mixer and the first feed-forward in all layers, unless an entry says which have which
    keys     in the order in which they are read
    always   fields that no key sets, by place: values, or functions of what was read
    said     keys that ask for what the family always does: written, and any other value is refused
    silent   keys, apart by spaces, that change nothing
    absent   what is written of a kind that no layer has, made of the parts that there are. Else its keys are left out:
             `exact` then sees whether what is usual gives the spec back
    each     fields of which layers have their own, by place in "layer" or in a kind of mixer: functions of what was
             read and of the layer's number
    heads    that its models may have besides the one of `architecture`; None: those of decoders, on a decoder
    predicts its files may hold layers that predict further tokens
    divides  transformers refuses its configs where heads do not divide the width, whatever their size
    """

    family: str
    architecture: str
    kinds: Mapping[str, type]
    keys: tuple[Entry, ...]
    always: Mapping[str, Any] = field(default_factory=dict)
    said: Mapping[str, Any] = field(default_factory=dict)
    silent: str = ""
    absent: Absent = field(default_factory=dict)
    each: Mapping[str, Callable[[Given, int], Any]] = field(default_factory=dict)
    heads: Heads | None = None
    predicts: bool = False
    divides: bool = False

    def from_config(self, config: Mapping[str, Any]) -> ModelSpec:
        reader = Reader(self.family, config)
        given = self.read(reader)
        spec = self.model(reader, given)
        if (heads := self._heads()) is not None:
            spec = heads.read(reader, spec, given)
        reader.refuse_rest()
        return spec

    def to_config(self, spec: ModelSpec) -> dict[str, Any]:
        body, architecture, more = spec, self.architecture, {}
        if (heads := self._heads()) is not None:
            body, architecture, more = heads.write(self.family, spec)
        bare = without(self.family, spec) if self.predicts else spec
        config = exact(self.family, architecture, bare, {**self.write(body), **more}, self.from_config)
        if self.divides and spec.width % (heads := config["num_attention_heads"]):
            raise DougongError(f"{self.family} cannot express a width of {spec.width} that {heads} heads do not divide")
        return config

    def _heads(self) -> Heads | None:
        decoder = self.heads is None and self.architecture.endswith(ENDS)
        return DecoderHeads(self.architecture) if decoder else self.heads

    def read(self, config: Reader) -> Given:
        """The fields that the keys set. Raises DougongError for a key that must be there and is not, and for a value
        of the wrong kind."""
        config.pass_over(self.silent)
        config.only(**self.said)
        given: Given = {}
        for key in self.keys:
            key.read(config, given)
        return given

    def model(self, config: Reader, given: Given | None = None) -> ModelSpec:
        """The model, of which a caller may yet change something before it calls `config.refuse_rest`. given: what was
        read, where the caller asks for more than goes into the model."""
        given = self.read(config) if given is None else given
        depth = given["layers"]["depth"]
        mixers = given["layers"].get("mixers", self._names(given, feeds=False)[:1] * depth)
        ffns = given["layers"].get("ffns", self._names(given, feeds=True)[:1] * depth or [None] * depth)
        made = given["made"] = self._made(given, {*USUAL, *mixers, *ffns} - {None})
        self._change_each(given, mixers)
        shared = {mixer: {**self._fields("layer", given), **self._fields(f"layer:{mixer}", given)} for mixer in mixers}
        layers = tuple(
            _layer(
                {"mixer": made[mixer], "ffn": ffn and made[ffn], "norm": made["norm"], **shared[mixer]}, given, index
            )
            for index, (mixer, ffn) in enumerate(zip(mixers, ffns, strict=True))
        )
        outside = {name: made[name] for name in USUAL}
        return ModelSpec(**{"layers": layers, **outside, **self._fields("model", given)})

    def _change_each(self, given: Given, mixers: Iterable[str]) -> None:
        for index, mixer in enumerate(mixers):
            for place, value in self.each.items():
                part, _, name = place.rpartition(".")
                if part in ("layer", mixer):
                    change(given, index, f"{'layer' if part == 'layer' else 'mixer'}.{name}", value(given, index))

    def _names(self, given: Given, feeds: bool) -> list[str]:
        """Of the kinds of mixers, or of feed-forwards, that parts can be made of."""
        names = [name for name, kind in self.kinds.items() if "." not in name and name not in USUAL]
        return [name for name in names if issubclass(self.kinds[name], (MLP, GatedMLP, MoE, ChannelMix)) == feeds]

    def _made(self, given: Given, names: Iterable[str]) -> dict[str, Any]:
        """The parts of these names: norms first, for others may have them, and parts of parts before these."""
        kinds = {place: kind for place, kind in {**USUAL, **self.kinds}.items() if place.split(".")[0] in names}
        given["made"] = {}
        for place in sorted(kinds, key=lambda place: (place != "norm", -place.count("."))):
            part = given["made"][place] = kinds[place](**self._fields(place, given))
            if "." in place:
                put(given, place, part)
        return given["made"]

    def _fields(self, part: str, given: Given) -> dict[str, Any]:
        fields = dict(given.get(part, {}))
        for place, value in self.always.items():
            owner, _, name = place.rpartition(".")
            if owner == part:
                fields[name] = made(value, given)
        return fields

    def write(self, spec: ModelSpec) -> dict[str, Any]:
        """The keys that `read` reads. Raises DougongError for a model without layers and for one with other parts."""
        return {**written(self.keys, self.parts(spec)), **self.said}

    def parts(self, spec: ModelSpec) -> Parts:
        first = first_layer(self.family, spec)
        kinds = {name: self.kinds[name] for feeds in (False, True) for name in self._names({}, feeds)}
        held: list[object] = []
        for slot, part in ((slot, getattr(layer, slot)) for layer in spec.layers for slot in ("mixer", "ffn")):
            bare = slot == "ffn" and part is None and not self._names({}, feeds=True)
            if not isinstance(part, tuple(kinds.values())) and not bare:
                known, kind = ", ".join(kind.__name__ for kind in kinds.values()), type(part).__name__
                raise DougongError(f"{self.family} cannot express a {slot} of {kind}; its layers have {known}")
            held.append(part)
        found = {name: next((part for part in held if isinstance(part, kind)), None) for name, kind in kinds.items()}
        whole = {"model": spec, "layers": _Layers(len(spec.layers)), "head": spec.head, "embedding": spec.embedding}
        whole |= {"layer": first, "norm": first.norm, "task": spec.task, **found}
        whole |= {f"layer:{name}": _with(spec.layers, kinds[name]) for name in self._names({}, feeds=False)}
        whole["transform"] = getattr(spec.head or spec.task, "transform", None)
        for name, make in self.absent.items():
            whole[name] = whole[name] or make(whole)
        return Parts(self.family, spec, whole)


def _with(layers: Iterable[LayerSpec], kind: type) -> LayerSpec | None:
    """The first layer with such a mixer."""
    return next((layer for layer in layers if isinstance(layer.mixer, kind)), None)


def _layer(fields: dict[str, Any], given: Given, index: int) -> LayerSpec:
    changes = given.get("changes", {}).get(str(index), {})
    mixer = replace(fields["mixer"], **changes.get("mixer", {}))
    return LayerSpec(**{**fields, "mixer": mixer, **changes.get("layer", {})})
