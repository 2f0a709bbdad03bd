"""Qwen 3 with experts (2025): Qwen 3's attention over many small experts, none of them shared.

Semantics: transformers' modeling_qwen3_moe.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dougong.hub.families.common import attention_of, check_window, exact, pass_over, read_activation, read_decoder
from dougong.hub.families.reader import Reader
from dougong.hub.families.sparse import (
    expert_keys,
    experts_of,
    read_balance,
    read_count,
    read_sparse_layers,
    with_experts,
    write_sparse_decoder,
    write_sparse_layers,
)
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec
from dougong.parts.experts import MoE
from dougong.parts.router import TopK

FAMILY = "qwen3_moe"
ARCHITECTURE = "Qwen3MoeForCausalLM"


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = Reader(FAMILY, config)
    experts = MoE(
        read_count(reader, 128),
        reader.integer("num_experts_per_tok", 8),
        reader.integer("moe_intermediate_size", 768),
        TopK(normalise=reader.flag("norm_topk_prob", False), balance=read_balance(reader)),
        read_activation(reader, "hidden_act", "silu"),
    )
    size = check_window(reader, reader.raw("sliding_window", 4096))
    window = size if reader.flag("use_sliding_window", False) else None
    pass_over(reader, "max_window_layers")  # in released configs, and read by no version
    sparse, bias = read_sparse_layers(reader), reader.flag("attention_bias", False)
    dense = read_decoder(
        reader,
        context=32768,
        kv_heads=4,
        bias=bias,
        out_bias=bias,
        qk_norm=True,
        windows=lambda depth: [window] * depth,
    )
    return with_experts(dense, experts, sparse)


def to_config(spec: ModelSpec) -> dict[str, Any]:
    mixer, (experts, router) = attention_of(FAMILY, spec), experts_of(FAMILY, spec)
    config = {
        **write_sparse_decoder(FAMILY, spec),
        **write_sparse_layers(spec),
        "attention_bias": mixer.bias,
        "num_experts": experts.experts,
        "num_experts_per_tok": experts.top_k,
        "moe_intermediate_size": experts.hidden,
        "norm_topk_prob": router.normalise,
        "router_aux_loss_coef": router.balance,
        "use_sliding_window": mixer.window is not None,
        "sliding_window": mixer.window,
    }
    return exact(FAMILY, ARCHITECTURE, spec, config, from_config)


def keys(spec: ModelSpec) -> KeyMap:
    return expert_keys("mlp", "gate_proj", "up_proj", "down_proj")
