"""Switch Transformers (Fedus et al. 2021): T5 whose layers have, every so often, experts of which each token takes one,
as far as its places go round.

Noise on the router's input (`router_jitter_noise`, training only) is not kept. Semantics: transformers'
modeling_switch_transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dougong.base import DougongError
from dougong.hub.families.common import exact, expect, read_activation, write_activation
from dougong.hub.families.reader import Reader
from dougong.hub.families.t5 import SEQUENCES, in_decoder, model_keys, read_layer, read_model, write_model
from dougong.hub.families.tasks import BARE, read_architecture
from dougong.hub.keymap import KeyMap, Rule
from dougong.model.spec import LayerSpec, ModelSpec
from dougong.parts.embedding import Head
from dougong.parts.experts import MoE
from dougong.parts.feedforward import MLP
from dougong.parts.router import TopK

FAMILY = "switch_transformers"
NAME = "SwitchTransformers"
_RUN = (
    "initializer_factor is_encoder_decoder is_decoder add_cross_attention router_jitter_noise router_dtype "
    "router_ignore_padding_tokens add_router_probs encoder_sparse_step decoder_sparse_step"
)


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = Reader(FAMILY, config)
    tied = reader.flag("tie_word_embeddings", True)
    hidden, activation = reader.integer("d_ff", 2048), read_activation(reader, "dense_act_fn", "relu")
    router = TopK(
        normalise=False,
        bias=reader.flag("router_bias", False),
        capacity=reader.integer("expert_capacity", 64),
        balance=reader.number("router_aux_loss_coef", 0.001),
        z=reader.number("router_z_loss_coef", 0.001),
    )
    dense = read_layer(reader, MLP(hidden, activation))
    count, dropout = reader.integer("num_experts", 8), dense.dropout
    experts = MoE(count, 1, hidden, router, activation, gated=False, dropout=dropout)
    depth, width = reader.integer("num_layers", 12), reader.integer("d_model", 768)
    encoder = _layers(dense, experts, depth, reader.integer("num_sparse_encoder_layers", 3, least=0))
    depth = reader.integer("num_decoder_layers", depth)
    decoder = _layers(in_decoder(dense), experts, depth, reader.integer("num_sparse_decoder_layers", 3, least=0))
    kind = read_architecture(reader, NAME, (SEQUENCES, BARE), SEQUENCES)
    head = Head(tied, scale=width**-0.5 if tied else 1.0) if kind == SEQUENCES else None
    spec = replace(read_model(reader, encoder, decoder, head), shared_embedding=tied)
    for key in _RUN.split():
        reader.raw(key)
    reader.refuse_rest()
    return spec


def _layers(dense: LayerSpec, experts: MoE, depth: int, sparse: int) -> tuple[LayerSpec, ...]:
    return tuple(replace(dense, ffn=experts) if one else dense for one in _sparse(depth, sparse))


def _sparse(depth: int, sparse: int) -> list[bool]:
    """Which layers have experts: the second of every depth // sparse, or all. As in transformers, 0 asks for one layer,
    and more than there are layers for none."""
    step = depth // sparse if sparse else depth
    return [step > 0 and (step == 1 or index % step == 1) for index in range(depth)]


def _count(layers: tuple[LayerSpec, ...]) -> int:
    """The number of sparse layers that `_sparse` turns into these."""
    wanted = [isinstance(layer.ffn, MoE) for layer in layers]
    for sparse in (*range(1, len(layers) + 2), 0):
        if _sparse(len(layers), sparse) == wanted:
            return sparse
    raise DougongError(f"{FAMILY} cannot express experts in layers {[i for i, one in enumerate(wanted) if one]}")


def to_config(spec: ModelSpec) -> dict[str, Any]:
    source = expect(FAMILY, "encoder", spec.encoder, ModelSpec)
    found = [layer.ffn for layer in (*source.layers, *spec.layers) if isinstance(layer.ffn, MoE)]
    if not found:
        raise DougongError(f"{FAMILY} cannot express a model without experts")
    router = expect(FAMILY, "router", found[0].router, TopK)
    activation = found[0].activation
    config = {
        **write_model(FAMILY, spec),
        "d_ff": found[0].hidden,
        "dense_act_fn": write_activation(activation, tanh="gelu_new") if isinstance(activation, str) else None,
        "num_experts": found[0].experts,
        "expert_capacity": router.capacity,
        "router_bias": router.bias,
        "router_aux_loss_coef": router.balance,
        "router_z_loss_coef": router.z,
        "num_sparse_encoder_layers": _count(source.layers),
        "num_sparse_decoder_layers": _count(spec.layers),
        "tie_word_embeddings": spec.shared_embedding,
    }
    return exact(FAMILY, NAME + (SEQUENCES if spec.head else BARE), spec, config, from_config)


def keys(spec: ModelSpec) -> KeyMap:
    rules = []
    for side, place, own in (("encoder", 1, "encoder."), ("decoder", 2, "")):
        mlp, ffn = f"{side}.block.{{i}}.layer.{place}.mlp", f"{own}layers.{{i}}.ffn"
        rules += [
            Rule(f"{mlp}.router.classifier.{kind}", (f"{ffn}.router.logits.{kind}",)) for kind in ("weight", "bias")
        ]
        for ours, name in (("up", "wi"), ("down", "wo")):
            rules += [
                Rule(f"{mlp}.{name}.weight", (f"{ffn}.{ours}.weight",)),
                Rule(f"{mlp}.experts.expert_{{e}}.{name}.weight", (f"{ffn}.experts.{ours}.weight",)),
            ]
    return model_keys(spec, tuple(rules))
