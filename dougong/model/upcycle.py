"""Sparse upcycling (Komatsuzaki et al. 2023): a dense model becomes a mixture of experts that computes the same.

Every expert starts as a copy of the layer's feed-forward and the router at random. As the weights of the chosen
experts sum to 1, the sum over copies is the copy's own output, whatever the router says; training then parts them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch

from dougong.base import DougongError
from dougong.model.decoder import Model
from dougong.model.spec import LayerSpec, ModelSpec
from dougong.parts.experts import MoE, MoELayer, RouterSpec
from dougong.parts.feedforward import MLP, GatedMLP
from dougong.parts.router import Hash, TopK


def upcycle(
    model: Model,
    experts: int,
    top_k: int,
    router: RouterSpec | None = None,
    layers: Collection[int] | None = None,
    seed: int = 0,
) -> Model:
    """A new model whose feed-forwards at `layers` (default: all) are `experts` copies, of which `top_k` are used.

    Weights are copied, in the model's own type and on its device. Raises DougongError for a router whose weights do not
    sum to 1 or that drops tokens (the function would change), and for a layer without a plain feed-forward.
    """
    spec = upcycled(model.spec, experts, top_k, router, layers)
    chosen = [index for index, layer in enumerate(spec.layers) if layer != model.spec.layers[index]]
    return _filled(spec, model, chosen, torch.Generator().manual_seed(seed))


def upcycled(
    dense: ModelSpec,
    experts: int,
    top_k: int,
    router: RouterSpec | None = None,
    layers: Collection[int] | None = None,
) -> ModelSpec:
    """The spec of what `upcycle` makes. Raises DougongError as it does."""
    router = TopK() if router is None else router
    if not _sums_to_one(router):
        raise DougongError(
            f"the weights of {router} do not sum to 1, so upcycling would change what the model computes"
        )
    chosen = range(len(dense.layers)) if layers is None else layers
    if wrong := [index for index in chosen if not 0 <= index < len(dense.layers)]:
        raise DougongError(f"layers has {wrong[0]}; the model has {len(dense.layers)} layers, from 0")
    return replace(
        dense,
        layers=tuple(
            _with_experts(index, layer, experts, top_k, router) if index in chosen else layer
            for index, layer in enumerate(dense.layers)
        ),
    )


def _sums_to_one(router: RouterSpec) -> bool:
    """Whether a token's weights sum to 1, always."""
    if isinstance(router, TopK):
        return router.normalise and router.scale == 1 and router.capacity is None and router.factor is None
    return isinstance(router, Hash)


def _with_experts(index: int, layer: LayerSpec, experts: int, top_k: int, router: RouterSpec) -> LayerSpec:
    ffn = layer.ffn
    if not isinstance(ffn, (MLP, GatedMLP)):
        raise DougongError(f"layers[{index}].ffn is a {type(ffn).__name__}; only MLP and GatedMLP become experts")
    gated = isinstance(ffn, GatedMLP)
    sparse = MoE(experts, top_k, ffn.hidden, router, ffn.activation, gated, ffn.bias, dropout=ffn.dropout)
    return replace(layer, ffn=sparse)


@torch.no_grad()
def _filled(spec: ModelSpec, dense: Model, chosen: Collection[int], generator: torch.Generator) -> Model:
    source = dense.weights()
    like = next(iter(source.values()))
    model = Model(spec).to(like.device, like.dtype)
    for index in chosen:
        ffn = model.layers[index].ffn
        assert isinstance(ffn, MoELayer)
        for part in ffn.router.modules():
            if (initial := getattr(part, "initial", None)) is not None:
                initial(generator)
        if (logits := getattr(ffn.router, "logits", None)) is not None:
            weight = logits.weight
            weight.copy_(torch.empty(weight.shape).normal_(0.0, weight.shape[1] ** -0.5, generator=generator))
            if logits.bias is not None:
                logits.bias.zero_()
    for name, parameter in model.weights().items():
        if name in source:
            parameter.copy_(source[name])
        elif ".experts." in name:  # layers.3.ffn.experts.up.weight comes from layers.3.ffn.up.weight
            parameter.copy_(source[name.replace(".experts.", ".")])
    return model.train(dense.training)
