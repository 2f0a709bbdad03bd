"""OLMo 3 (Team OLMo 2025): OLMo 2 with a window in three layers of four; only layers without one have scaled rotations.

Semantics: transformers' modeling_olmo3.
"""

from __future__ import annotations

from dougong.hub.families.layers import local_layers
from dougong.hub.families.names import llama_keys
from dougong.hub.families.olmo2 import ALWAYS, KEYS, KINDS, OUTPUT_NORMS
from dougong.hub.families.rope import turns_by_window
from dougong.hub.families.table import Table
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec

FAMILY = "olmo3"
WINDOWS = local_layers(4096, full=lambda config, index: index % 4 == 3)
TABLE = Table(FAMILY, "Olmo3ForCausalLM", KINDS, (*KEYS, WINDOWS, turns_by_window(5e5)), always=ALWAYS)
from_config, to_config = TABLE.from_config, TABLE.to_config


def keys(spec: ModelSpec) -> KeyMap:
    return llama_keys(OUTPUT_NORMS)
