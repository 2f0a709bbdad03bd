"""Gemma 3's text decoder (Gemma Team 2025): Gemma 2 with normalised queries and keys instead of capped scores, five
layers with a window to one without, and a base of rotation for each of the two kinds.

Semantics: transformers' modeling_gemma3, which has `attn_logit_softcapping` in the config but caps no scores: a value
is refused.
"""

from __future__ import annotations

from dougong.hub.families.fields import cap
from dougong.hub.families.gemma import KINDS
from dougong.hub.families.gemma2 import ACTIVATION, SANDWICH, SCALE
from dougong.hub.families.layers import bias, decoder, local_layers, nth
from dougong.hub.families.names import SANDWICH_NORMS, llama_keys
from dougong.hub.families.rope import turns_by_window
from dougong.hub.families.table import Table, the_norm
from dougong.hub.families.tasks import DecoderHeads
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec

FAMILY = "gemma3_text"


TABLE = Table(
    FAMILY,
    "Gemma3ForCausalLM",
    KINDS,
    (
        *decoder(131072, kv_heads=4, head_size=256, act=ACTIVATION, tied=True),
        bias(),
        SCALE,
        cap("final_logit_softcapping", "head.softcap"),
        local_layers(4096, nth("sliding_window_pattern _sliding_window_pattern", 6, -1)),
        turns_by_window(1e6, 1e4),
    ),
    always={**SANDWICH, "mixer.qk_norm": the_norm},
    silent="cache_implementation",
    heads=DecoderHeads("Gemma3ForCausalLM", "Gemma3Text"),
)
from_config, to_config = TABLE.from_config, TABLE.to_config


def keys(spec: ModelSpec) -> KeyMap:
    return llama_keys(SANDWICH_NORMS)
