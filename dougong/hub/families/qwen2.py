"""Qwen 2 and 2.5: Llama's form with biases on q, k and v; some layers may have a sliding window.

Semantics: transformers' modeling_qwen2.
"""

from __future__ import annotations

from dougong.hub.families.layers import GATED, decoder, qwen_windows
from dougong.hub.families.names import LLAMA_KEYS
from dougong.hub.families.rope import turns
from dougong.hub.families.table import Table
from dougong.hub.families.tasks import decoder_task_keys
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec

FAMILY = "qwen2"
TABLE = Table(
    FAMILY,
    "Qwen2ForCausalLM",
    GATED,
    (*decoder(32768, kv_heads=32), qwen_windows(), turns()),
    always={"mixer.bias": True},
)
from_config, to_config = TABLE.from_config, TABLE.to_config


def keys(spec: ModelSpec) -> KeyMap:
    return decoder_task_keys(spec, LLAMA_KEYS, "transformer.")
