"""Llama 1, 2, 3 and the many models that keep its form (SmolLM2, TinyLlama, Yi, DeepSeek-LLM, Vicuna).

Semantics: transformers' modeling_llama.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dougong.base import DougongError
from dougong.hub.families.common import LLAMA_KEYS, exact, read_decoder, write_decoder
from dougong.hub.families.reader import Reader
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec
from dougong.parts.feedforward import GatedMLP

FAMILY = "llama"
ARCHITECTURE = "LlamaForCausalLM"


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = Reader(FAMILY, config)
    bias = reader.flag("attention_bias", False)
    return read_decoder(reader, context=2048, bias=bias, out_bias=bias, ffn_bias=reader.flag("mlp_bias", False))


def to_config(spec: ModelSpec) -> dict[str, Any]:
    config = write_decoder(FAMILY, spec)
    first = spec.layers[0]
    if spec.width % first.mixer.heads:  # transformers refuses such a LlamaConfig, whatever head_dim says
        raise DougongError(
            f"{FAMILY} cannot express a width of {spec.width} that {first.mixer.heads} heads do not divide"
        )
    config["attention_bias"] = first.mixer.bias
    config["mlp_bias"] = isinstance(first.ffn, GatedMLP) and first.ffn.bias
    return exact(FAMILY, ARCHITECTURE, spec, config, from_config)


def keys(spec: ModelSpec) -> KeyMap:
    return LLAMA_KEYS
