"""OLMo 2 (Team OLMo 2025): norms after each sublayer instead of before, and over all queries and all keys at once.

Semantics: transformers' modeling_olmo2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dougong.hub.families.common import attention_of, exact, read_decoder, write_decoder
from dougong.hub.families.names import llama_keys
from dougong.hub.families.reader import Reader
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec
from dougong.parts.norm import Norm

FAMILY = "olmo2"
ARCHITECTURE = "Olmo2ForCausalLM"
OUTPUT_NORMS = {"post_attention_layernorm": "mixer_norm", "post_feedforward_layernorm": "ffn_norm"}


def read_olmo(reader: Reader, **more: Any) -> ModelSpec:
    bias = reader.flag("attention_bias", False)
    return read_decoder(
        reader,
        context=2048,
        bias=bias,
        out_bias=bias,
        qk_norm=True,
        mixer={"qk_norm_over": "projection"},
        norm=Norm("rms", 1e-5),
        wiring="output",
        **more,
    )


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    return read_olmo(Reader(FAMILY, config))


def to_config(spec: ModelSpec) -> dict[str, Any]:
    config = {**write_decoder(FAMILY, spec), "attention_bias": attention_of(FAMILY, spec).bias}
    return exact(FAMILY, ARCHITECTURE, spec, config, from_config)


def keys(spec: ModelSpec) -> KeyMap:
    return llama_keys(OUTPUT_NORMS)
