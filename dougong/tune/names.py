"""Foreign names of the modules that adapters sit on, through the family's key map."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
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
        if row.expert is None and _STACK.search(row.foreign) and all(path in there for path in paths):
            modules |= _each_expert(row, paths)
            continue
        plain = isinstance(row.layout, (Permuted,)) or (
            isinstance(row.layout, (Concat, Groups)) and row.layout.dim == 0
        )
        if row.foreign.endswith(".weight") and plain and all(path in there for path in paths):
            if row.expert is None and any(len(shape) != 2 for shape in row.shapes):
                continue  # experts in one tensor of another name, which is no module of its own
            modules[row.foreign.removesuffix(".weight")] = Foreign(
                row.foreign.removesuffix(".weight"), row, paths, tuple(shape[0] for shape in row.shapes)
            )
    return Names(name, modules, spelled)


_STACK = re.compile(r"\.experts\.(gate_up|down)_proj$")  # a tensor of all experts of a layer


def _each_expert(row: Row, paths: tuple[str, ...]) -> dict[str, Foreign]:
    """The experts of one tensor as modules, "experts.0.down_proj" and so on, though files hold none of these names."""
    holder, _, last = row.foreign.rpartition(".")
    layout: Any = row.layout
    made = {}
    for expert in range(row.shapes[0][0]):
        name, shapes = f"{holder}.{expert}.{last}", tuple(shape[1:] for shape in row.shapes)
        own = replace(layout, dim=max(0, layout.dim - 1))
        each = replace(row, foreign=f"{name}.weight", shapes=shapes, transpose=False, layout=own, expert=expert)
        made[name] = Foreign(name, each, paths, tuple(shape[0] for shape in shapes))
    return made


def in_memory(name: str) -> str:
    """How the module of that name in a file of weights is called in transformers, which adapters' files go by."""
    return name.replace(".block_sparse_moe.", ".mlp.")


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
