"""MiniMax-M2 (2025): experts chosen by sigmoid scores and a loss-free correction, queries and keys normalised whole,
half of each head turned.

Semantics: transformers' modeling_minimax_m2.
"""

from __future__ import annotations

from typing import Any

from dougong.hub.families.fields import Given, Keys, Parts
from dougong.hub.families.layers import decoder
from dougong.hub.families.reader import Reader
from dougong.hub.families.rope import turns
from dougong.hub.families.sparse import ACTIVATION, ALL_SPARSE, NUMBERED, correction, expert_keys, experts
from dougong.hub.families.table import Table, the_norm
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec
from dougong.parts.rope import Rope

FAMILY = "minimax_m2"


def _ask(config: Reader, given: Given) -> None:
    if turning := config.integer("rotary_dim", 0):
        config.fill("partial_rotary_factor", turning / given["mixer"]["head_size"])
    config.only(attn_type_list=[1] * given["layers"]["depth"])


def _tell(parts: Parts) -> dict[str, Any]:
    position = parts.find("mixer.position")  # what released configs have
    return {"rotary_dim": (position.spread or position.size) if isinstance(position, Rope) else 0}


TABLE = Table(
    FAMILY,
    "MiniMaxM2ForCausalLM",
    ALL_SPARSE,
    (
        *decoder(196608, kv_heads=8, head_size=128, ffn="experts.hidden", act=ACTIVATION),
        *experts(256, 8),
        Keys(_ask, _tell),
        turns(partial=1.0, theta=5e6),
    ),
    always={
        "mixer.qk_norm": the_norm,
        "mixer.qk_norm_over": "projection",
        "experts.router.score": "sigmoid",
        "experts.router.correction": True,
    },
    # The released config spells out what the class always does, and what the heads for further tokens have.
    said={"scoring_func": "sigmoid", "use_routing_bias": True, "use_qk_norm": True, "qk_norm_type": "per_layer"},
    silent="use_mtp num_mtp_modules mtp_transformer_layers",
)
from_config, to_config = TABLE.from_config, TABLE.to_config


def keys(spec: ModelSpec) -> KeyMap:
    return expert_keys("block_sparse_moe", NUMBERED, more=correction("block_sparse_moe"))
