"""Mistral 7B: Llama's form with one sliding window in all layers, or none.

Semantics: transformers' modeling_mistral.
"""

from __future__ import annotations

from dougong.hub.families.fields import window
from dougong.hub.families.layers import GATED, decoder
from dougong.hub.families.names import LLAMA_KEYS
from dougong.hub.families.rope import turns
from dougong.hub.families.table import Table
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec

FAMILY = "mistral"
TABLE = Table(
    FAMILY,
    "MistralForCausalLM",
    GATED,
    (*decoder(131072, kv_heads=8), window("sliding_window", "mixer.window", 4096), turns()),
)
from_config, to_config = TABLE.from_config, TABLE.to_config


def keys(spec: ModelSpec) -> KeyMap:
    return LLAMA_KEYS
