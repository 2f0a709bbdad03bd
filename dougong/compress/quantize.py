"""Quantising: every Linear's matrix in another storage. Rounding to the nearest value, without data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dougong.base import DougongError
from dougong.parts.embedding import EmbeddingLayer
from dougong.parts.frozen import FrozenStorage, GroupedFrozenStorage
from dougong.parts.fused import Part
from dougong.parts.grouped import GroupedLinear, GroupedStorage
from dougong.parts.int4 import GROUPS, Int4, fits
from dougong.parts.int8 import Int8
from dougong.parts.linear import Linear, Storage
from dougong.parts.packed import Packed

if TYPE_CHECKING:
    from dougong.hub import LanguageModel
    from dougong.model import Model

METHODS = ("int8", "int4", "packed")
# Routers, task heads, decays and step sizes are small and decide much;
# kv_up is multiplied into the queries as a whole matrix (parts/latent.py).
SKIP = ("router", "shared_gate", "task", "kv_up", "indexer", "dt_*", "decay_*", "rate_*", "mix_*")


@dataclass(frozen=True)
class Quantized:
    """What was done: matrices by the storage they are in now, and bytes of the model's weights before and after."""

    matrices: dict[str, int]
    bytes_before: int
    bytes_after: int


def quantize(lm: LanguageModel, method: str, group: int = 32, skip: Sequence[str] = SKIP) -> Quantized:
    """Keep the matrices of a model, its head and experts among them, in another form, in place.

    int8    8 bits and a scale a row; activations too, with a scale a token
    int4    4 bits in groups of `group` (32, 64 or 128) columns; activations as with int8. A matrix whose sizes do not
            allow groups is kept in int8
    packed  floats as they are, in the order in which oneDNN reads them

    A table that embeds tokens is quantised when the head shares it, and then once. skip: patterns on a module's
    path, or on one of its parts, for what stays as it is; norms, biases and small tables always do. Adapters stay
    attached, and train. One matrix at a time exists twice.

    Raises DougongError for an unknown method or group, and for a model with quantised weights.
    """
    make = maker(method, group)
    before = _bytes(lm.model)
    counts: dict[str, int] = {}
    for _, slots in list(wanted(lm.model, skip)):
        made = put(slots, make, method)
        if made is not None:
            counts[made] = counts.get(made, 0) + 1
    return Quantized(counts, before, _bytes(lm.model))


Make = Callable[[Tensor], FrozenStorage]


def maker(method: str, group: int) -> Make:
    """What turns floats (out, in) into the storage asked for. Raises DougongError, naming what is not known."""
    if method not in METHODS:
        raise DougongError(f"quantize is {method!r}; known: {', '.join(METHODS)}")
    if group not in GROUPS:
        raise DougongError(f"group is {group}; expected one of {', '.join(map(str, GROUPS))}")
    if method == "packed":
        return Packed.of
    if method == "int8":
        return Int8.of
    return lambda weight: Int4.of(weight, group) if fits(weight.shape[0], weight.shape[1], group) else Int8.of(weight)


Slot = tuple[nn.Module, str]


def wanted(model: Model, skip: Sequence[str]) -> Iterator[tuple[str, list[Slot]]]:
    """Every storage of a Linear that is not skipped, as the places where it stands: tied weights have several."""
    places: dict[int, list[Slot]] = {}
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, (Storage, GroupedStorage)):
                places.setdefault(id(child), []).append((module, name))
    chosen: dict[int, str] = {}
    for path, module in model.named_modules():
        if isinstance(module, (Linear, GroupedLinear)) and not skipped(path, skip):
            storage = module.storage
            chosen.setdefault(id(storage.whole.storage if isinstance(storage, Part) else storage), path)
    for key, path in chosen.items():
        yield path, places[key]


def skipped(path: str, skip: Sequence[str]) -> bool:
    return any(fnmatchcase(part, pattern) for part in (path, *path.split(".")) for pattern in skip)


@torch.no_grad()
def put(slots: list[Slot], make: Make, method: str) -> str | None:
    """Quantise: put the new storage in all places of the old one, which is then gone. Returns the new one's name."""
    owner, name = slots[0]
    old = getattr(owner, name)
    if isinstance(old, (FrozenStorage, GroupedFrozenStorage)):
        raise DougongError(f"the model's weights are kept as {_name(old)} already; load it anew to quantise otherwise")
    if method == "packed" and any(isinstance(each, EmbeddingLayer) for each, _ in slots):
        return None  # rows of a table cannot be read out of oneDNN's blocks
    if isinstance(old, GroupedStorage):
        new: nn.Module = GroupedFrozenStorage([make(weight) for weight in old.dense().detach()])
    else:
        new = make(old.dense())
    for owner, name in slots:
        setattr(owner, name, new)
    return _name(new)


def _name(storage: nn.Module) -> str:
    inner = storage.experts[0] if isinstance(storage, GroupedFrozenStorage) else storage
    return type(inner).__name__.lower()


def _bytes(model: Model) -> int:
    """Bytes of all weights, each once."""
    held = {id(each): each.nbytes for each in (*model.parameters(), *model.buffers()) if not each.is_mkldnn}
    packed = {id(each): each for each in model.modules() if isinstance(each, Packed)}
    return sum(held.values()) + sum(
        each.out_features * each.in_features * each.dtype.itemsize for each in packed.values()
    )
