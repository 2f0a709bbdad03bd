"""Gemma 2 (Gemma Team 2024): Gemma with norms around each sublayer, every other layer with a window, capped scores.

Semantics: transformers' modeling_gemma2.
"""

from __future__ import annotations

from dougong.hub.families.fields import Key, activation, cap
from dougong.hub.families.gemma import ALWAYS, KINDS
from dougong.hub.families.layers import bias, decoder, local_layers
from dougong.hub.families.names import SANDWICH_NORMS, llama_keys
from dougong.hub.families.rope import turns
from dougong.hub.families.table import Table
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec

FAMILY = "gemma2"
SANDWICH = {**ALWAYS, "layer.wiring": "sandwich"}
ACTIVATION = activation("hidden_activation", "ffn.activation", "gelu_pytorch_tanh")
SCALE = Key(
    "query_pre_attn_scalar",
    "mixer.scale",
    lambda config, key, usual: config.positive(key, usual) ** -0.5,
    256,
    # An integer in these families: what rounding made of it is taken back, and `exact` refuses another.
    tell=lambda scale: 1 if scale is None else round(scale**-2),
)
TABLE = Table(
    FAMILY,
    "Gemma2ForCausalLM",
    KINDS,
    (
        *decoder(8192, kv_heads=4, head_size=256, act=ACTIVATION, tied=True),
        bias(),
        SCALE,
        cap("attn_logit_softcapping", "mixer.softcap", 50.0),
        cap("final_logit_softcapping", "head.softcap", 30.0),
        local_layers(4096, full=lambda config, index: index % 2 == 1),
        turns(),
    ),
    always=SANDWICH,
    silent="hidden_act sliding_window_size cache_implementation",
)
from_config, to_config = TABLE.from_config, TABLE.to_config


def keys(spec: ModelSpec) -> KeyMap:
    return llama_keys(SANDWICH_NORMS)
