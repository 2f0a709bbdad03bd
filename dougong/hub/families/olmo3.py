"""OLMo 3 (Team OLMo 2025): OLMo 2 with a window in three layers of four; only layers without one have scaled rotations.

Semantics: transformers' modeling_olmo3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dougong.hub.families.common import (
    attention_of,
    exact,
    read_layer_types,
    windows_of,
    write_decoder,
    write_layer_types,
)
from dougong.hub.families.names import llama_keys
from dougong.hub.families.olmo2 import OUTPUT_NORMS, read_olmo
from dougong.hub.families.reader import Reader
from dougong.hub.families.rope import read_two_ropes, write_layer_ropes
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec

FAMILY = "olmo3"
ARCHITECTURE = "Olmo3ForCausalLM"


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = Reader(FAMILY, config)
    windows = read_layer_types(reader, 4096, full=lambda index: index % 4 == 3)
    return read_olmo(
        reader, windows=windows, ropes=lambda size, limit: read_two_ropes(reader, size, limit, 5e5, local=None)
    )


def to_config(spec: ModelSpec) -> dict[str, Any]:
    config = {
        **write_decoder(FAMILY, spec),
        **write_layer_ropes(FAMILY, spec),
        "attention_bias": attention_of(FAMILY, spec).bias,
        "sliding_window": next(filter(None, windows_of(spec)), 4096),
        **write_layer_types(spec),
    }
    return exact(FAMILY, ARCHITECTURE, spec, config, from_config)


def keys(spec: ModelSpec) -> KeyMap:
    return llama_keys(OUTPUT_NORMS)
