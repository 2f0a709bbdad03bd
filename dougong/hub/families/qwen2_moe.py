"""Qwen1.5-MoE and Qwen2-MoE (2024): Qwen 2 with many small experts and a gated feed-forward that all tokens share.

Semantics: transformers' modeling_qwen2_moe.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dougong.hub.families.common import (
    attention_of,
    exact,
    read_activation,
    read_decoder,
    read_layer_types,
    write_windows,
)
from dougong.hub.families.reader import Reader
from dougong.hub.families.sparse import (
    expert_keys,
    experts_of,
    read_balance,
    read_count,
    read_sparse_layers,
    shared_rules,
    with_experts,
    write_sparse_decoder,
    write_sparse_layers,
)
from dougong.hub.keymap import KeyMap, Rule
from dougong.model.spec import ModelSpec
from dougong.parts.experts import MoE
from dougong.parts.feedforward import GatedMLP
from dougong.parts.router import TopK

FAMILY = "qwen2_moe"
ARCHITECTURE = "Qwen2MoeForCausalLM"


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    sliding = bool(config.get("use_sliding_window"))
    reader = Reader(FAMILY, config if sliding else {**config, "sliding_window": None})
    activation = read_activation(reader, "hidden_act", "silu")
    experts = MoE(
        read_count(reader, 60),
        reader.integer("num_experts_per_tok", 4),
        reader.integer("moe_intermediate_size", 1408),
        TopK(normalise=reader.flag("norm_topk_prob", False), balance=read_balance(reader)),
        activation,
        shared=GatedMLP(reader.integer("shared_expert_intermediate_size", 5632), activation),
        shared_gate=True,
    )
    # Unlike in dense Qwen, the window is that of every second layer below max_window_layers.
    below = reader.integer("max_window_layers", 28, least=0)
    below = below if reader.flag("use_sliding_window", False) else 0
    windows = read_layer_types(reader, 4096, full=lambda index: index >= below or index % 2 == 1)
    sparse, bias = read_sparse_layers(reader), reader.flag("qkv_bias", True)
    dense = read_decoder(reader, context=32768, kv_heads=16, bias=bias, windows=windows)
    return with_experts(dense, experts, sparse)


def to_config(spec: ModelSpec) -> dict[str, Any]:
    experts, router = experts_of(FAMILY, spec)
    config = {
        **write_sparse_decoder(FAMILY, spec),
        **write_windows(spec),
        **write_sparse_layers(spec),
        "qkv_bias": attention_of(FAMILY, spec).bias,
        "num_experts": experts.experts,
        "num_experts_per_tok": experts.top_k,
        "moe_intermediate_size": experts.hidden,
        "norm_topk_prob": router.normalise,
        "router_aux_loss_coef": router.balance,
        "shared_expert_intermediate_size": experts.shared.hidden if experts.shared else 0,
    }
    return exact(FAMILY, ARCHITECTURE, spec, config, from_config)


def keys(spec: ModelSpec) -> KeyMap:
    shared_gate = Rule("model.layers.{i}.mlp.shared_expert_gate.weight", ("layers.{i}.ffn.shared_gate.weight",))
    return expert_keys("mlp", "gate_proj", "up_proj", "down_proj", *shared_rules("shared_expert"), shared_gate)
