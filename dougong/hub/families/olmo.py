"""OLMo (Groeneveld et al. 2024): Llama's form with LayerNorms that have no weights; q, k and v may be clamped.

Semantics: transformers' modeling_olmo.
"""

from __future__ import annotations

from dougong.hub.families.fields import cap
from dougong.hub.families.layers import GATED, bias, decoder
from dougong.hub.families.names import LLAMA_KEYS
from dougong.hub.families.rope import turns
from dougong.hub.families.table import Table
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec

FAMILY = "olmo"
TABLE = Table(
    FAMILY,
    "OlmoForCausalLM",
    GATED,
    (*decoder(2048, eps=None), bias(), cap("clip_qkv", "mixer.clip"), turns()),
    always={"norm.kind": "layer", "norm.eps": 1e-5, "norm.weight": False},
    silent="rms_norm_eps",
)
from_config, to_config = TABLE.from_config, TABLE.to_config


def keys(spec: ModelSpec) -> KeyMap:
    return LLAMA_KEYS
