"""Who looks at whom: the attention weights of one layer on one text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.model import Model
from dougong.parts.attend import weights
from dougong.parts.attention import AttentionLayer
from dougong.parts.shapes import Float


@torch.no_grad()
def attention_map(model: Model, ids: list[int], layer: int) -> Float[Tensor, "H T T"]:
    """Attention weights of `layer` (negative: from the last) for a text of T ids; row t is what token t looks at.

    Raises DougongError when there is no such layer or it does not attend.
    """
    if not -len(model.layers) <= layer < len(model.layers):
        raise DougongError(f"layer is {layer}; the model has {len(model.layers)}")
    mixer = model.layers[layer].mixer
    if not isinstance(mixer, AttentionLayer):
        raise DougongError(f"layer {layer} is a {type(mixer).__name__}, which has no attention weights")
    seen: list[tuple[Any, ...]] = []
    hook = mixer.register_forward_pre_hook(lambda _, given: seen.append(given))
    try:
        model(torch.tensor([ids], device=model.head.weight.device))
    finally:
        hook.remove()
    x, ctx = seen[0][:2]
    q, k, _ = mixer.project(x, ctx)
    return weights(q, k, ctx, mixer.spec.scoring(), mixer.bias(ctx), mixer.sinks)[0].cpu()
