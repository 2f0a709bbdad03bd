"""Qwen 3 (dense): Llama's form with normalised queries and keys and a head size of its own.

Semantics: transformers' modeling_qwen3.
"""

from __future__ import annotations

from dougong.hub.families.layers import GATED, bias, decoder, qwen_windows
from dougong.hub.families.names import LLAMA_KEYS
from dougong.hub.families.rope import turns
from dougong.hub.families.table import Table, the_norm
from dougong.hub.families.tasks import decoder_task_keys
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec

FAMILY = "qwen3"
TABLE = Table(
    FAMILY,
    "Qwen3ForCausalLM",
    GATED,
    (*decoder(32768, kv_heads=32, head_size=128), bias(), qwen_windows(), turns()),
    always={"mixer.qk_norm": the_norm},
)
from_config, to_config = TABLE.from_config, TABLE.to_config


def keys(spec: ModelSpec) -> KeyMap:
    return decoder_task_keys(spec, LLAMA_KEYS, "transformer.")
