"""GLM-4.5 and 4.6 (2025): a few dense layers, then experts chosen in groups by sigmoid scores and a correction, as in
DeepSeek-V3, with a shared feed-forward; half of each head turned.

Semantics: transformers' modeling_glm4_moe.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dougong.hub.families.common import attention_of, exact, pass_over, read_activation, read_decoder
from dougong.hub.families.names import with_predicting_layers
from dougong.hub.families.reader import Reader
from dougong.hub.families.sparse import (
    expert_keys,
    experts_of,
    shared_rules,
    turning,
    with_experts,
    write_sparse_decoder,
)
from dougong.hub.keymap import KeyMap, Rule
from dougong.hub.predicting import without
from dougong.model.spec import ModelSpec
from dougong.parts.experts import MoE
from dougong.parts.feedforward import GatedMLP
from dougong.parts.norm import Norm
from dougong.parts.router import TopK

FAMILY = "glm4_moe"
ARCHITECTURE = "Glm4MoeForCausalLM"


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = Reader(FAMILY, config)
    activation = read_activation(reader, "hidden_act", "silu")
    router = TopK(
        "sigmoid",
        reader.flag("norm_topk_prob", True),
        reader.number("routed_scaling_factor", 1.0),
        correction=True,
        groups=reader.integer("n_group", 1),
        top_groups=reader.integer("topk_group", 1),
        group_best=2,
    )
    hidden = reader.integer("moe_intermediate_size", 1408)
    experts = MoE(
        reader.integer("n_routed_experts", 128),
        reader.integer("num_experts_per_tok", 8),
        hidden,
        router,
        activation,
        shared=GatedMLP(hidden * reader.integer("n_shared_experts", 1), activation),
    )
    first, depth = reader.integer("first_k_dense_replace", 1, least=0), reader.integer("num_hidden_layers")
    pass_over(reader, "output_router_logits num_nextn_predict_layers num_mtp_layers")
    dense = read_decoder(
        reader,
        context=131072,
        kv_heads=8,
        bias=reader.flag("attention_bias", False),
        qk_norm=reader.flag("use_qk_norm", False),
        norm=Norm("rms", 1e-5),
        ropes=turning(reader, 10000.0, 0.5),
    )
    return with_experts(dense, experts, [index >= first for index in range(depth)])


def to_config(spec: ModelSpec) -> dict[str, Any]:
    mixer, (experts, router) = attention_of(FAMILY, spec), experts_of(FAMILY, spec)
    config = {
        **write_sparse_decoder(FAMILY, spec, partial="partial_rotary_factor"),
        "attention_bias": mixer.bias,
        "use_qk_norm": mixer.qk_norm is not None,
        "first_k_dense_replace": sum(isinstance(layer.ffn, GatedMLP) for layer in spec.layers),
        "n_routed_experts": experts.experts,
        "n_shared_experts": experts.shared.hidden // experts.hidden if experts.shared else 0,
        "num_experts_per_tok": experts.top_k,
        "moe_intermediate_size": experts.hidden,
        "norm_topk_prob": router.normalise,
        "routed_scaling_factor": router.scale,
        "n_group": router.groups,
        "topk_group": router.top_groups,
        "num_nextn_predict_layers": spec.mtp.depth if spec.mtp else 0,
    }
    return exact(FAMILY, ARCHITECTURE, without(FAMILY, spec), config, from_config)


def keys(spec: ModelSpec) -> KeyMap:
    correction = Rule("model.layers.{i}.mlp.gate.e_score_correction_bias", ("layers.{i}.ffn.router.correction",))
    names = expert_keys("mlp", "gate_proj", "up_proj", "down_proj", *shared_rules("shared_experts"), correction)
    return with_predicting_layers(names, spec)
