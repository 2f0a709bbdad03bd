"""Qwen 3 (dense): Llama's form with normalised queries and keys and a head size of its own.

Semantics: transformers' modeling_qwen3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dougong.hub.families.common import (
    LLAMA_KEYS,
    attention_of,
    exact,
    read_decoder,
    read_windows,
    write_decoder,
    write_windows,
)
from dougong.hub.families.reader import Reader
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec

FAMILY = "qwen3"
ARCHITECTURE = "Qwen3ForCausalLM"


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = Reader(FAMILY, config)
    bias = reader.flag("attention_bias", False)
    return read_decoder(
        reader,
        context=32768,
        kv_heads=32,
        head_size=128,
        bias=bias,
        out_bias=bias,
        qk_norm=True,
        windows=read_windows(reader),
    )


def to_config(spec: ModelSpec) -> dict[str, Any]:
    config = {**write_decoder(FAMILY, spec), **write_windows(spec), "attention_bias": attention_of(FAMILY, spec).bias}
    return exact(FAMILY, ARCHITECTURE, spec, config, from_config)


def keys(spec: ModelSpec) -> KeyMap:
    return LLAMA_KEYS
