"""Adapters into the weights and out again, and several into one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dougong.base import DougongError
from dougong.parts.embedding import EmbeddingLayer, Normalised
from dougong.parts.grouped import GroupedDense, GroupedLinear
from dougong.parts.linear import Dense
from dougong.tune.attach import model_of, plug_in, plug_out
from dougong.tune.combined import combined
from dougong.tune.method import matrix
from dougong.tune.swap import retie
from dougong.tune.tuning import Swap, Tuning, tuning_named, tunings

if TYPE_CHECKING:
    from dougong.tune.attach import Adapted


def merge(lm: Adapted, names: Sequence[str] | None = None, *, keep: bool = False) -> None:
    """Make weights that give what the model with its adapters (or those named) gives; the adapters are then off it.

    keep   hold the old weights as well, so that `unmerge` brings everything back bit for bit

    A quantised weight becomes a floating-point one. A tied weight of which one side is adapted is tied no more; the
    spec says so. Raises DougongError, before anything changes, for methods that are no change of weights (prompts,
    bottlenecks), and for rows with adapters of their own.
    """
    model = model_of(lm)
    chosen = list(tunings(model)) if names is None else list(names)
    ordered = [tuning_named(model, name) for name in tunings(model) if name in chosen]
    for name in chosen:
        tuning_named(model, name)
    if merged := [tuning.name for tuning in tunings(model).values() if tuning.merged]:
        raise DougongError(f"the adapter {merged[0]!r} is merged already; unmerge it first")
    made = [swap for path in _paths(ordered) for swap in _merged(model.get_submodule(path), path, ordered)]
    for tuning in ordered:
        if not tuning.on:
            raise DougongError(f"the adapter {tuning.name!r} is off; merge what is on")
    for tuning in ordered:
        plug_out(model, tuning)
        tuning.merged = True
    for swap in made:
        swap.put(True)
    if ordered:
        ordered[0].merges = made
    if not keep:
        _forget(model, ordered)
    retie(model)


def _forget(model: Any, merged: list[Tuning]) -> None:
    there = tunings(model)
    for tuning in merged:
        there.pop(tuning.name)
        for undo in tuning.undo:
            undo()
    frozen = [parameter for tuning in merged for parameter in tuning.frozen]
    if there:
        next(iter(there.values())).frozen.extend(frozen)
        return
    for parameter in frozen:
        parameter.requires_grad_(True)
    for tuning in merged:
        for swap in tuning.merges:
            for parameter in swap.new.parameters() if isinstance(swap.new, nn.Module) else (swap.new,):
                parameter.requires_grad_(True)


def unmerge(lm: Adapted) -> None:
    """Bring back the weights from before `merge(..., keep=True)`, and its adapters beside them."""
    model = model_of(lm)
    merged = [tuning for tuning in tunings(model).values() if tuning.merged]
    if not merged:
        raise DougongError("no adapter is merged; merge with keep=True to be able to unmerge")
    for tuning in merged:
        for swap in tuning.merges:
            swap.put(False)
        tuning.merges, tuning.merged = [], False
        plug_in(model, tuning)
    retie(model)


def _paths(ordered: list[Tuning]) -> list[str]:
    return list(dict.fromkeys(path for tuning in ordered for path in tuning.plugs))


@torch.no_grad()
def _merged(site: Any, path: str, ordered: list[Tuning]) -> list[Swap]:
    """The weight and the bias of one module with the chosen adapters in them, as swaps that are not yet made."""
    if isinstance(site.storage, Normalised):
        raise DougongError(f"{path} is brought to rows of length 1 whenever it is used; nothing can be merged into it")
    base = matrix(site)
    old_bias = None if isinstance(site, EmbeddingLayer) else site.bias
    weight, bias = base, None if old_bias is None else old_bias.detach().to(base.dtype)
    for tuning in ordered:
        if path in tuning.plugs:
            if tuning.units is not None:
                raise DougongError(f"the adapter {tuning.name!r} serves some rows alone; merge outside of `using`")
            weight, bias = tuning.plugs[path].merged(weight, bias, base)
    out = []
    kind = site.storage.dense().dtype
    if isinstance(site, EmbeddingLayer):
        weight = weight.mT
    storage = _dense(weight.to(kind).contiguous(), isinstance(site, GroupedLinear))
    out.append(Swap(site, "storage", site.storage, storage))
    if old_bias is not None and bias is not None and not torch.equal(bias.to(old_bias.dtype), old_bias):
        new = nn.Parameter(bias.to(old_bias.dtype), requires_grad=old_bias.requires_grad)
        out.append(Swap(site, "bias", old_bias, new))
    return out


def _dense(weight: torch.Tensor, grouped: bool) -> Dense | GroupedDense:
    kind = GroupedDense if grouped else Dense
    made = kind.__new__(kind)
    nn.Module.__init__(made)
    made.weight = nn.Parameter(weight, requires_grad=False)
    return made


def combine(lm: Adapted, weights: Mapping[str, float], name: str) -> Tuning:
    """One adapter `name` that does what the named ones do together, each `weight` times; they stay attached, off.

    Low-rank methods (LoRA and its kin, AdaLoRA, VeRA): exactly the weighted sum of their changes, as one LoRA of their
    ranks' sum. IA3: the weighted sum of the vectors; prompts of one length: of their vectors, as PEFT has it. Raises
    DougongError for others, and for kinds that do not mix.
    """
    model = model_of(lm)
    chosen = [(tuning_named(model, each), weight) for each, weight in weights.items()]
    if not chosen:
        raise DougongError("there is nothing to combine; name adapters and their weights")
    if name in tunings(model):
        raise DougongError(f"an adapter named {name!r} is attached already; choose another name")
    made = combined(model, chosen, name)
    for tuning, _ in chosen:
        tuning.turn(False)
    tunings(model)[name] = made
    plug_in(model, made)
    for parameter in made.parameters().values():
        parameter.requires_grad_(False)
    return made
