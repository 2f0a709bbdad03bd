"""GLM-4-9B in transformers' form (GLM Team 2024): half of each head turns, in neighbouring pairs; gate and up in one.

Semantics: transformers' modeling_glm.
"""

from __future__ import annotations

from collections.abc import Mapping

from dougong.hub.families.fields import flag
from dougong.hub.families.layers import GATED, decoder
from dougong.hub.families.names import LLAMA_NORMS, llama_keys, named
from dougong.hub.families.rope import turns
from dougong.hub.families.table import Table
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec

FAMILY = "glm"
TABLE = Table(
    FAMILY,
    "GlmForCausalLM",
    GATED,
    (
        *decoder(131072, kv_heads=2, head_size=128, eps=1.5625e-7),
        flag("attention_bias", "mixer.bias", True),
        turns(partial=0.5, interleaved=True),
    ),
)
from_config, to_config = TABLE.from_config, TABLE.to_config


def glm_keys(norms: Mapping[str, str]) -> KeyMap:
    return llama_keys(norms, ffn={"gate_up_proj": "gate up", **named("down")})


def keys(spec: ModelSpec) -> KeyMap:
    return glm_keys(LLAMA_NORMS)
