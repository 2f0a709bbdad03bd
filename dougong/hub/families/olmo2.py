"""OLMo 2 (Team OLMo 2025): norms after each sublayer instead of before, and over all queries and all keys at once.

Semantics: transformers' modeling_olmo2.
"""

from __future__ import annotations

from dougong.hub.families.layers import GATED, bias, decoder
from dougong.hub.families.names import llama_keys
from dougong.hub.families.rope import turns
from dougong.hub.families.table import Table, the_norm
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec

FAMILY = "olmo2"
OUTPUT_NORMS = {"post_attention_layernorm": "mixer_norm", "post_feedforward_layernorm": "ffn_norm"}
KINDS = GATED
KEYS = (*decoder(2048, eps=1e-5), bias())
ALWAYS = {"mixer.qk_norm": the_norm, "mixer.qk_norm_over": "projection", "layer.wiring": "output"}
TABLE = Table(FAMILY, "Olmo2ForCausalLM", KINDS, (*KEYS, turns()), always=ALWAYS)
from_config, to_config = TABLE.from_config, TABLE.to_config


def keys(spec: ModelSpec) -> KeyMap:
    return llama_keys(OUTPUT_NORMS)
