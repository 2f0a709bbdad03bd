"""Qwen 2 and 2.5: Llama's form with biases on q, k and v; some layers may have a sliding window.

Semantics: transformers' modeling_qwen2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dougong.hub.families.common import LLAMA_KEYS, exact, read_decoder, read_windows, write_decoder, write_windows
from dougong.hub.families.reader import Reader
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec

FAMILY = "qwen2"
ARCHITECTURE = "Qwen2ForCausalLM"


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = Reader(FAMILY, config)
    return read_decoder(reader, context=32768, kv_heads=32, bias=True, windows=read_windows(reader))


def to_config(spec: ModelSpec) -> dict[str, Any]:
    config = {**write_decoder(FAMILY, spec), **write_windows(spec)}
    return exact(FAMILY, ARCHITECTURE, spec, config, from_config)


def keys(spec: ModelSpec) -> KeyMap:
    return LLAMA_KEYS
