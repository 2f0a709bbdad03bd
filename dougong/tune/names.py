"""Foreign names of the modules that adapters sit on, through the family's key map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.hub import LanguageModel
from dougong.hub.families import family_for, family_named
from dougong.hub.keymap import Row, rows
from dougong.hub.layouts import Concat, Groups, Permuted
from dougong.parts.embedding import EmbeddingLayer
from dougong.tune.places import sites

PREFIX = "base_model.model."


@dataclass(frozen=True)
class Foreign:
    """A module of a Hugging Face model: the paths of the own modules whose weights its weight holds one after another.

    outputs: rows of each piece. expert: the pieces are this expert's of the own modules.
    """

    name: str
    row: Row
    paths: tuple[str, ...]
    outputs: tuple[int, ...]

    @property
    def expert(self) -> int | None:
        return self.row.expert

    def join(self, parts: list[Tensor]) -> Tensor:
        """(O, n) from pieces (o_j, n), in the order of the foreign weight's rows."""
        return self.row.layout.join(parts)

    def split(self, whole: Tensor) -> list[Tensor]:
        """Pieces (o_j, n) of (O, n)."""
        return list(self.row.layout.split(whole, [(size, whole.shape[1]) for size in self.outputs]))


@dataclass(frozen=True)
class Names:
    """Both sides' names for one model."""

    family: str
    modules: dict[str, Foreign]  # by foreign name
    rows: list[Row]

    def row(self, foreign: str) -> Row | None:
        """The rule of one foreign tensor."""
        return next((row for row in self.rows if row.foreign == foreign), None)


def names_of(lm: LanguageModel) -> Names:
    """Every foreign module whose weight is made of those of our Linears, experts and embedding."""
    model: Any = lm.model
    name = lm.family or family_for(lm.spec)
    keys = family_named(name).keys(lm.spec)
    there = dict(sites(model))
    shapes = {f"{path}.weight": _shape(site) for path, site in there.items()}
    shapes |= {
        each: tuple(p.shape)
        for each, p in model.weights().items()
        if ".adapters." not in f".{each}" and each.count("storage") == 0
    }
    placed = {own.replace("{i}", str(i)) for rule in keys.rules for own in rule.own for i in range(lm.spec.depth)}
    spelled = rows(keys, {each: shape for each, shape in shapes.items() if each in placed}, lm.spec.depth, name)
    modules = {}
    for row in spelled:
        paths = tuple(own.removesuffix(".weight") for own in row.own)
        plain = isinstance(row.layout, (Permuted,)) or (
            isinstance(row.layout, (Concat, Groups)) and row.layout.dim == 0
        )
        if row.foreign.endswith(".weight") and plain and all(path in there for path in paths):
            if row.expert is None and any(len(shape) != 2 for shape in row.shapes):
                continue  # experts in one tensor, which is no module of its own
            modules[row.foreign.removesuffix(".weight")] = Foreign(
                row.foreign.removesuffix(".weight"), row, paths, tuple(shape[0] for shape in row.shapes)
            )
    return Names(name, modules, spelled)


def _shape(site: Any) -> tuple[int, ...]:
    if isinstance(site, EmbeddingLayer):
        return tuple(site.storage.dense().shape)
    experts = getattr(site, "experts", None)
    return (site.out_features, site.in_features) if experts is None else (experts, site.out_features, site.in_features)


def foreign_of(names: Names, paths: list[str]) -> dict[str, Foreign]:
    """The foreign modules that hold the given own modules. Raises DougongError for one that stands in none."""
    chosen = {name: each for name, each in names.modules.items() if any(path in paths for path in each.paths)}
    placed = {path for each in chosen.values() for path in each.paths}
    if homeless := [path for path in paths if path not in placed]:
        raise DougongError(f"files of {names.family} keep {homeless[0]} in no module of its own")
    return chosen


def piece(tensor: Tensor, foreign: Foreign) -> Tensor:
    """A plug-in's tensor, or the foreign module's expert of it."""
    held = tensor.detach()
    return held if foreign.expert is None else held[foreign.expert]


def same(tensors: list[Tensor]) -> bool:
    return all(each.shape == tensors[0].shape and torch.equal(each, tensors[0]) for each in tensors)
