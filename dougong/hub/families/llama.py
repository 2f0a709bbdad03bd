"""Llama 1, 2, 3 and the many models that keep its form (SmolLM2, TinyLlama, Yi, DeepSeek-LLM, Vicuna).

Semantics: transformers' modeling_llama.
"""

from __future__ import annotations

from dougong.hub.families.fields import flag
from dougong.hub.families.layers import GATED, bias, decoder
from dougong.hub.families.names import LLAMA_KEYS
from dougong.hub.families.rope import turns
from dougong.hub.families.table import Table
from dougong.hub.families.tasks import decoder_task_keys
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec

FAMILY = "llama"
TABLE = Table(
    FAMILY,
    "LlamaForCausalLM",
    GATED,
    (*decoder(2048), bias(), flag("mlp_bias", "ffn.bias", False), turns()),
    divides=True,
)
from_config, to_config = TABLE.from_config, TABLE.to_config


def keys(spec: ModelSpec) -> KeyMap:
    return decoder_task_keys(spec, LLAMA_KEYS, "transformer.")
