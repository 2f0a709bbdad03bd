"""Phi-3, 3.5 and 4 (Abdin et al. 2024): Llama's form with q, k and v, and gate and up, in one matrix each; LongRoPE, on
a part of each head in Phi-4-mini.

Semantics: transformers' modeling_phi3, which passes over `embd_pdrop`.
"""

from __future__ import annotations

from typing import Any

from dougong.hub.families.fields import Given, Keys, Parts, share, window
from dougong.hub.families.layers import GATED, decoder
from dougong.hub.families.names import llama_keys, named
from dougong.hub.families.reader import Reader
from dougong.hub.families.rope import turns
from dougong.hub.families.table import Table
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec
from dougong.parts.rope import LongRope

FAMILY = "phi3"
ORIGINAL = 4096
"""Tokens of the original model, where the config does not say."""


def _ask(config: Reader, given: Given) -> None:
    config.fill("original_max_position_embeddings", ORIGINAL)
    config.pass_over("original_max_position_embeddings")


def _tell(parts: Parts) -> dict[str, Any]:
    scaling = getattr(parts.find("mixer.position"), "scaling", None)
    original = scaling.original if isinstance(scaling, LongRope) else ORIGINAL
    return {"original_max_position_embeddings": original}


TABLE = Table(
    FAMILY,
    "Phi3ForCausalLM",
    GATED,
    (
        *decoder(4096, eps=1e-5),
        window("sliding_window", "mixer.window"),
        share("resid_pdrop", "layer.dropout"),
        Keys(_ask, _tell),
        turns(partial=1.0),
    ),
)
from_config, to_config = TABLE.from_config, TABLE.to_config


def keys(spec: ModelSpec) -> KeyMap:
    fused = {"qkv_proj": "q k v", **named("o")}
    return llama_keys(attention=fused, ffn={"gate_up_proj": "gate up", **named("down")})
