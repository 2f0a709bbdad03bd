"""Gemma (Gemma Team 2024): embeddings times the root of the width, norms stored as their distance from 1, GeGLU.

Semantics: transformers' modeling_gemma.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dougong.hub.families.common import read_activation
from dougong.hub.families.fields import activation
from dougong.hub.families.layers import GATED, bias, decoder
from dougong.hub.families.names import LLAMA_KEYS
from dougong.hub.families.reader import Reader
from dougong.hub.families.rope import turns
from dougong.hub.families.table import Table, root_of_width
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec

FAMILY = "gemma"
KINDS = GATED


def _ask_activation(config: Reader, key: str, usual: str) -> Any:
    """The first files say "gelu" and mean its tanh approximation, which `hidden_activation` was then added to name."""
    key = "hidden_activation" if "hidden_activation" in config else key
    return read_activation(config, key, usual) if config.raw(key) != "gelu" else "gelu_tanh"


ALWAYS = {"norm.offset": 1.0, "embedding.factor": root_of_width}
ACTIVATION = replace(activation("hidden_act", "ffn.activation", "gelu_pytorch_tanh"), ask=_ask_activation)
TABLE = Table(
    FAMILY,
    "GemmaForCausalLM",
    KINDS,
    (*decoder(8192, kv_heads=16, head_size=256, act=ACTIVATION, tied=True), bias(), turns()),
    always=ALWAYS,
    silent="hidden_activation",
)
from_config, to_config = TABLE.from_config, TABLE.to_config


def keys(spec: ModelSpec) -> KeyMap:
    return LLAMA_KEYS
