"""Mixtral (Jiang et al. 2024): Mistral with 8 experts in each layer, of which each token uses 2.

Semantics: transformers' modeling_mixtral.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dougong.hub.families.common import attention_of, check_window, exact, read_activation, read_decoder
from dougong.hub.families.reader import Reader
from dougong.hub.families.sparse import (
    expert_keys,
    experts_of,
    read_balance,
    read_count,
    turning,
    with_experts,
    write_sparse_decoder,
)
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec
from dougong.parts.experts import MoE
from dougong.parts.norm import Norm
from dougong.parts.router import TopK

FAMILY = "mixtral"
ARCHITECTURE = "MixtralForCausalLM"


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = Reader(FAMILY, config)
    experts = MoE(
        read_count(reader, 8),
        reader.integer("num_experts_per_tok", 2),
        reader.integer("intermediate_size"),
        TopK(balance=read_balance(reader)),
        read_activation(reader, "hidden_act", "silu"),
    )
    window = check_window(reader, reader.raw("sliding_window"))
    dense = read_decoder(
        reader,
        context=131072,
        kv_heads=8,
        norm=Norm("rms", 1e-5),
        ropes=turning(reader, 1e6),
        windows=lambda depth: [window] * depth,
    )
    return with_experts(dense, experts)


def to_config(spec: ModelSpec) -> dict[str, Any]:
    experts, router = experts_of(FAMILY, spec)
    config = {
        **write_sparse_decoder(FAMILY, spec),
        "num_local_experts": experts.experts,
        "num_experts_per_tok": experts.top_k,
        "router_aux_loss_coef": router.balance,
        "sliding_window": attention_of(FAMILY, spec).window,
    }
    return exact(FAMILY, ARCHITECTURE, spec, config, from_config)


def keys(spec: ModelSpec) -> KeyMap:
    return expert_keys("block_sparse_moe", "w1", "w3", "w2")
