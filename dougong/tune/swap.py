"""Parts of a model that are trained whole beside an adapter: copies stand for the originals while the adapter is on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from dougong.base import DougongError
from dougong.parts.embedding import Normalised
from dougong.parts.grouped import GroupedDense
from dougong.parts.linear import Dense
from dougong.tune.tuning import Swap, Tuning

if TYPE_CHECKING:
    from dougong.model import Model


def parameter_names(model: Model) -> list[str]:
    """Plain names of the model's own parameters (`layers.0.mixer.q.weight`), a tied head's among them."""
    names = [name for name in model.weights() if ".adapters." not in f".{name}"]
    if model.head is not None and "head.weight" not in names and isinstance(model.head.storage, Dense):
        names.append("head.weight")
    return names


def swap_in(model: Model, tuning: Tuning, names: Iterable[str], values: Mapping[str, Tensor] | None = None) -> None:
    """Let copies of the named parameters stand for them, filled with `values` where there are any."""
    for name in names:
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        held = getattr(module, "storage", None) if leaf == "weight" else None
        old = held if held is not None else getattr(module, leaf)
        if isinstance(old, nn.Module):
            new = _copy(old, name)
            parameter = new.weight
            swap = Swap(module, "storage", old, new)
        elif isinstance(old, nn.Parameter):
            parameter = nn.Parameter(old.detach().clone())
            swap = Swap(module, leaf, old, parameter)
        else:
            raise DougongError(f"{name} is no parameter of this model")
        if values is not None and name in values:
            if values[name].shape != parameter.shape:
                raise DougongError(f"{name} is {tuple(values[name].shape)}; the model's is {tuple(parameter.shape)}")
            parameter.data = values[name].to(parameter.device, parameter.dtype).clone()
        tuning.also[name] = swap
        tuning.swaps.append(swap)
        swap.put(True)
    retie(model)


def _copy(storage: nn.Module, name: str) -> Dense | GroupedDense | Normalised:
    if not isinstance(storage, (Dense, GroupedDense, Normalised)):
        raise DougongError(
            f"{name} is kept as {type(storage).__name__}; only a weight in floating point can be trained"
        )
    copy = type(storage).__new__(type(storage))
    nn.Module.__init__(copy)
    copy.weight = nn.Parameter(storage.weight.detach().clone())
    return copy


def retie(model: Model) -> None:
    """Make the spec say what is tied now: a head whose storage is its own is tied no more."""
    spec, head = model.spec, model.spec.head
    if head is not None and model.head is not None:
        tied = model.head.storage is model.embedding.storage
        if tied != head.tied:
            model.spec = spec = replace(spec, head=replace(head, tied=tied))
    if model.encoder is not None:
        shared = model.encoder.embedding.storage is model.embedding.storage
        if shared != spec.shared_embedding:
            model.spec = replace(spec, shared_embedding=shared)
