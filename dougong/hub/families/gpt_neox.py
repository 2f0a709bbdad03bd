"""GPT-NeoX (Black et al. 2022) and Pythia: attention and feed-forward side by side, a quarter of each head turns, q, k
and v of each head lie together in one matrix.

Semantics: transformers' modeling_gpt_neox.
"""

from __future__ import annotations

from dougong.hub.families.fields import Given, activation, choice, integer, share
from dougong.hub.families.layers import PLAIN, bias, outer, plain_heads
from dougong.hub.families.names import key_map, megatron
from dougong.hub.families.rope import turns
from dougong.hub.families.table import LAYER_NORM, Table
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec

FAMILY = "gpt_neox"


def _ffn_dropout(given: Given) -> float | None:
    """Side by side, each output is dropped by itself, before they are added."""
    return (given["layer"]["dropout"] or None) if given["layer"]["wiring"] == "parallel_norms" else None


TABLE = Table(
    FAMILY,
    "GPTNeoXForCausalLM",
    PLAIN,
    (
        *outer(context=2048, eps=1e-5, eps_key="layer_norm_eps"),
        *plain_heads("num_attention_heads"),
        bias(usual=True),
        share("attention_dropout", "mixer.dropout"),
        turns(partial=0.25, theta_key="rotary_emb_base", share_key="rotary_pct"),
        integer("intermediate_size", "ffn.hidden"),
        activation("hidden_act", "ffn.activation", "gelu", tanh="gelu_new"),
        share("hidden_dropout", "layer.dropout embedding.dropout"),
        choice("use_parallel_residual", "layer.wiring", True, {True: "parallel_norms", False: "pre"}),
    ),
    always={**LAYER_NORM, "ffn.bias": True, "layer.ffn_dropout": _ffn_dropout},
    silent="classifier_dropout is_decoder",
)
from_config, to_config = TABLE.from_config, TABLE.to_config


def keys(spec: ModelSpec) -> KeyMap:
    layer = megatron("attention", spec)
    return key_map(
        "gpt_neox.",
        "layers.{i}",
        layer,
        {"embed_in": "embedding", "final_layer_norm": "norm"},
        head="embed_out",
        tables=("attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq"),
    )
