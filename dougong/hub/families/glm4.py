"""GLM-4-0414 and GLM-Z1 (GLM Team 2025): GLM with norms around each sublayer.

Semantics: transformers' modeling_glm4.
"""

from __future__ import annotations

from dataclasses import replace

from dougong.hub.families import glm
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec

FAMILY = "glm4"
TABLE = replace(glm.TABLE, family=FAMILY, architecture="Glm4ForCausalLM", always={"layer.wiring": "sandwich"})
from_config, to_config = TABLE.from_config, TABLE.to_config
NORMS = {
    "input_layernorm": "mixer_norm",
    "post_self_attn_layernorm": "mixer_out_norm",
    "post_attention_layernorm": "ffn_norm",
    "post_mlp_layernorm": "ffn_out_norm",
}


def keys(spec: ModelSpec) -> KeyMap:
    return glm.glm_keys(NORMS)
