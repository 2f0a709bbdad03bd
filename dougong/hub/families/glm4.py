"""GLM-4-0414 and GLM-Z1 (GLM Team 2025): GLM with norms around each sublayer.

Semantics: transformers' modeling_glm4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dougong.hub.families.common import exact
from dougong.hub.families.glm import glm_keys, read_glm, write_glm
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec

FAMILY = "glm4"
ARCHITECTURE = "Glm4ForCausalLM"
NORMS = {
    "input_layernorm": "mixer_norm",
    "post_self_attn_layernorm": "mixer_out_norm",
    "post_attention_layernorm": "ffn_norm",
    "post_mlp_layernorm": "ffn_out_norm",
}


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    return read_glm(FAMILY, config, "sandwich")


def to_config(spec: ModelSpec) -> dict[str, Any]:
    return exact(FAMILY, ARCHITECTURE, spec, write_glm(FAMILY, spec), from_config)


def keys(spec: ModelSpec) -> KeyMap:
    return glm_keys(NORMS)
