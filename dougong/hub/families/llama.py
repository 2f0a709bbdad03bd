"""Llama 1, 2, 3 and the many models that keep its form (SmolLM2, TinyLlama, Yi, DeepSeek-LLM, Vicuna).

Semantics: transformers' modeling_llama.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dougong.base import DougongError
from dougong.hub.families.common import LLAMA_KEYS, exact, expect, read_decoder, write_decoder
from dougong.hub.families.reader import Reader
from dougong.hub.families.tasks import decoder_task_keys, read_decoder_task, write_decoder_task
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec
from dougong.parts.attention import Attention
from dougong.parts.feedforward import GatedMLP

FAMILY = "llama"
NAME = "Llama"


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = Reader(FAMILY, config)
    bias = reader.flag("attention_bias", False)
    head, task = read_decoder_task(reader, NAME)
    spec = read_decoder(reader, context=2048, bias=bias, out_bias=bias, ffn_bias=reader.flag("mlp_bias", False))
    return replace(spec, head=spec.head if head else None, task=task)


def to_config(spec: ModelSpec) -> dict[str, Any]:
    body, architecture, keys = write_decoder_task(FAMILY, NAME, spec)
    config = {**write_decoder(FAMILY, body), **keys}
    mixer, ffn = expect(FAMILY, "mixer", spec.layers[0].mixer, Attention), spec.layers[0].ffn
    if spec.width % mixer.heads:  # transformers refuses such a LlamaConfig, whatever head_dim says
        raise DougongError(f"{FAMILY} cannot express a width of {spec.width} that {mixer.heads} heads do not divide")
    config["attention_bias"] = mixer.bias
    config["mlp_bias"] = isinstance(ffn, GatedMLP) and ffn.bias
    return exact(FAMILY, architecture, spec, config, from_config)


def keys(spec: ModelSpec) -> KeyMap:
    return decoder_task_keys(spec, LLAMA_KEYS)
