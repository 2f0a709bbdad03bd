"""The weighted sum of several adapters as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.tune.dora import DoRAPlugin
from dougong.tune.ia3 import IA3, IA3Plugin
from dougong.tune.insert import prompted
from dougong.tune.lora import BiasedPlugin, LoRA, LowRankPlugin
from dougong.tune.prompt import PromptBase, PromptPlugin, PromptTuning, reader, reserve
from dougong.tune.tuning import Plugin, Tuning, tunings
from dougong.tune.vera import VeRAPlugin

Weighted = Sequence[tuple[Tuning, float]]


@torch.no_grad()
def combined(model: Any, chosen: Weighted, name: str) -> Tuning:
    """See `merge.combine`; the new adapter is not yet on the model."""
    for tuning, _ in chosen:
        if tuning.swaps or tuning.method.whole:
            raise DougongError(f"the adapter {tuning.name!r} trains weights of the model itself; it cannot be combined")
    plugs = [plug for tuning, _ in chosen for plug in tuning.plugs.values()]
    alone = (DoRAPlugin, BiasedPlugin)
    if all(isinstance(plug, (LowRankPlugin, VeRAPlugin)) and not isinstance(plug, alone) for plug in plugs):
        return _low_rank(model, chosen, name)
    if all(isinstance(plug, IA3Plugin) for plug in plugs):
        return _scales(model, chosen, name)
    if all(isinstance(plug, PromptBase) for plug in plugs):
        return _prompts(model, chosen, name)
    kinds = ", ".join(dict.fromkeys(type(tuning.method).__name__ for tuning, _ in chosen))
    raise DougongError(
        f"adapters of {kinds} cannot be combined; low-rank ones can (LoRA and its kin, AdaLoRA, VeRA, not DoRA or "
        "biases of B), IA3 "
        "with IA3, and prompts with prompts"
    )


def _low_rank(model: Any, chosen: Weighted, name: str) -> Tuning:
    paths = list(dict.fromkeys(path for tuning, _ in chosen for path in tuning.plugs))
    made = Tuning(name, LoRA(rank=1, alpha=1.0))
    for path in paths:
        a, b = [], []
        for tuning, weight in chosen:
            if path in tuning.plugs:
                own = _factors(tuning.plugs[path], model.get_submodule(path))
                a.append(own[0])
                b.append(weight * own[1])
        made.plugs[path] = LowRankPlugin(made, torch.cat(a, -2).clone(), torch.cat(b, -1).clone(), 1.0)
    ranks = {path: plug.a.shape[-2] for path, plug in made.plugs.items() if isinstance(plug, LowRankPlugin)}
    made.method = LoRA(rank=max(ranks.values()), alpha=float(max(ranks.values())))
    return made


def _factors(plug: Plugin, site: Any) -> tuple[Tensor, Tensor]:
    """A and B with all scales in them."""
    if isinstance(plug, VeRAPlugin):
        a, b = plug.shared(site.in_features)
        return plug.d[..., None] * a, plug.b[..., None] * b
    assert isinstance(plug, LowRankPlugin)
    a, b = plug.factors()
    return a, plug.scale * b


def _scales(model: Any, chosen: Weighted, name: str) -> Tuning:
    first = chosen[0][0]
    if any(tuning.plugs.keys() != first.plugs.keys() or tuning.method != first.method for tuning, _ in chosen):
        raise DougongError("the IA3 adapters sit on different modules; they cannot be combined")
    assert isinstance(first.method, IA3)
    made = Tuning(name, first.method)
    for path, plug in first.plugs.items():
        assert isinstance(plug, IA3Plugin)
        scale = torch.zeros_like(plug.scale)
        for tuning, weight in chosen:
            scale += weight * tuning.plugs[path].scale  # pyright: ignore[reportOperatorIssue]
        made.plugs[path] = new = IA3Plugin(made, scale, plug.inputs)
        if new.inputs:
            made.undo.append(model.get_submodule(path).register_forward_pre_hook(new.before).remove)
    return made


def _prompts(model: Any, chosen: Weighted, name: str) -> Tuning:
    vectors = [
        (plug.vectors(), weight)
        for tuning, weight in chosen
        for plug in tuning.plugs.values()
        if isinstance(plug, PromptBase)
    ]
    if len({each.shape for each, _ in vectors}) > 1:
        raise DougongError("the prompts have different lengths; they cannot be combined")
    path = next(iter(chosen[0][0].plugs))
    made = Tuning(name, PromptTuning(len(vectors[0][0])))
    reserve(model, made, len(vectors[0][0]))
    total = torch.zeros_like(vectors[0][0])
    for each, weight in vectors:
        total += weight * each
    made.plugs[path] = PromptPlugin(made, total)
    made.undo += prompted(reader(model), tunings(model))
    return made
