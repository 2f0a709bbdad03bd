"""Mixtral (Jiang et al. 2024): Mistral with 8 experts in each layer, of which each token uses 2.

Semantics: transformers' modeling_mixtral.
"""

from __future__ import annotations

from dougong.hub.families.fields import window
from dougong.hub.families.layers import decoder
from dougong.hub.families.rope import turns
from dougong.hub.families.sparse import ACTIVATION, ALL_SPARSE, NUMBERED, expert_keys, experts
from dougong.hub.families.table import Table
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec

FAMILY = "mixtral"
TABLE = Table(
    FAMILY,
    "MixtralForCausalLM",
    ALL_SPARSE,
    (
        *decoder(131072, kv_heads=8, eps=1e-5, ffn="experts.hidden", act=ACTIVATION),
        *experts(8, 2, window("sliding_window", "mixer.window")),
        turns(theta=1e6),
    ),
)
from_config, to_config = TABLE.from_config, TABLE.to_config


def keys(spec: ModelSpec) -> KeyMap:
    return expert_keys("block_sparse_moe", NUMBERED)
