"""MiniMax-M2 (2025): experts chosen by sigmoid scores and a loss-free correction, queries and keys normalised whole,
half of each head turned.

Semantics: transformers' modeling_minimax_m2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dougong.hub.families.common import exact, pass_over, read_activation, read_decoder
from dougong.hub.families.reader import Reader
from dougong.hub.families.sparse import (
    accept,
    expert_keys,
    experts_of,
    read_balance,
    read_count,
    turning,
    with_experts,
    write_sparse_decoder,
)
from dougong.hub.keymap import KeyMap, Rule
from dougong.model.spec import ModelSpec
from dougong.parts.experts import MoE
from dougong.parts.router import TopK

FAMILY = "minimax_m2"
ARCHITECTURE = "MiniMaxM2ForCausalLM"


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = Reader(FAMILY, config)
    experts = MoE(
        read_count(reader, 256),
        reader.integer("num_experts_per_tok", 8),
        reader.integer("intermediate_size"),
        TopK("sigmoid", correction=True, balance=read_balance(reader)),
        read_activation(reader, "hidden_act", "silu"),
    )
    # The released config spells out what the class always does, and what the heads for further tokens have.
    accept(reader, scoring_func="sigmoid", use_routing_bias=True, use_qk_norm=True, qk_norm_type="per_layer")
    accept(reader, shared_intermediate_size=0, attn_type_list=[1] * reader.integer("num_hidden_layers"))
    pass_over(reader, "use_mtp num_mtp_modules mtp_transformer_layers")
    share = reader.integer("rotary_dim", 0) / reader.integer("head_dim", 128)
    dense = read_decoder(
        reader,
        context=196608,
        kv_heads=8,
        head_size=128,
        qk_norm=True,
        ropes=turning(reader, 5e6, share or 1.0),
        mixer={"qk_norm_over": "projection"},
    )
    return with_experts(dense, experts)


def to_config(spec: ModelSpec) -> dict[str, Any]:
    experts, router = experts_of(FAMILY, spec)
    config = {
        **write_sparse_decoder(FAMILY, spec, partial="partial_rotary_factor"),
        "num_local_experts": experts.experts,
        "num_experts_per_tok": experts.top_k,
        "router_aux_loss_coef": router.balance,
    }
    config["rotary_dim"] = int(config["head_dim"] * config["partial_rotary_factor"])  # what released configs have
    return exact(FAMILY, ARCHITECTURE, spec, config, from_config)


def keys(spec: ModelSpec) -> KeyMap:
    correction = "model.layers.{i}.block_sparse_moe.e_score_correction_bias"
    return expert_keys("block_sparse_moe", "w1", "w3", "w2", Rule(correction, ("layers.{i}.ffn.router.correction",)))
