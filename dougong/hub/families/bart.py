"""BART (Lewis et al. 2019): encoder and decoder with LayerNorm after each sublayer, learned positions from row 2 on, a
norm on the embeddings, and a bias of its own on the logits.

The dropping of whole layers (`encoder_layerdrop`, `decoder_layerdrop`; training only) is not kept. Semantics:
transformers' modeling_bart.
"""

from __future__ import annotations

import math
from dataclasses import replace

from dougong.hub.families.encoders import ALWAYS, KINDS
from dougong.hub.families.fields import Entry, Given, activation, flag, integer, share
from dougong.hub.families.layers import whole_heads
from dougong.hub.families.names import below, named
from dougong.hub.families.pairs import SOURCE, Pair, pair_keys
from dougong.hub.families.table import Table
from dougong.hub.keymap import KeyMap, Rule
from dougong.hub.layouts import Viewed
from dougong.model.spec import ModelSpec

FAMILY = "bart"
SCALE = replace(flag("scale_embedding", "embedding.factor", False), tell=lambda factor: factor != 1)


def _side(name: str) -> tuple[Entry, ...]:
    """The keys of one side, and those that both have."""
    return (
        integer("vocab_size", "model.vocab", 50265),
        integer("d_model", "model.width", 1024),
        integer("max_position_embeddings", "model.context embedding.position.size", 1024),
        integer(f"{name}_layers", "layers.depth", 12),
        integer(f"{name}_attention_heads", "mixer.heads mixer.kv_heads", 16),
        whole_heads(f"{name}_attention_heads"),
        integer(f"{name}_ffn_dim", "ffn.hidden", 4096),
        activation("activation_function", "ffn.activation", "gelu", tanh="gelu_new"),
        share("dropout", "layer.dropout embedding.dropout", 0.1),
        share("attention_dropout", "mixer.dropout"),
        share("activation_dropout", "ffn.dropout"),
        SCALE,
        flag("tie_word_embeddings", "head.tied", True),
    )


def _factor(given: Given) -> float:
    return math.sqrt(given["model"]["width"]) if given["embedding"]["factor"] else 1.0


BOTH = {**ALWAYS, "norm.eps": 1e-5, "embedding.position.offset": 2, "embedding.factor": _factor, "head.bias": True}
ENCODER = Table(
    FAMILY,
    "BartForConditionalGeneration",
    KINDS,
    _side("encoder"),
    {**BOTH, **SOURCE},
    # BART's code once had mBART and others in it.
    said={"add_final_layer_norm": False, "normalize_before": False, "normalize_embedding": True},
    # Keys of old files that say how to generate or train.
    silent="""encoder_layerdrop decoder_layerdrop classifier_dropout init_std is_encoder_decoder is_decoder
              num_hidden_layers add_bias_logits classif_dropout static_position_embeddings extra_pos_embeddings
              force_bos_token_to_be_generated""",
)
PAIR = Pair("Bart", ENCODER, replace(ENCODER, keys=_side("decoder"), always=BOTH))
from_config, to_config = PAIR.from_config, PAIR.to_config


PRODUCTS = {**named("q", "k", "v"), "out_proj": "o"}
LAYER = {
    **below("self_attn.", "mixer.", PRODUCTS),
    "self_attn_layer_norm": "mixer_norm",
    **below("encoder_attn.", "cross.", PRODUCTS),
    "encoder_attn_layer_norm": "cross_norm",
    "fc1": "ffn.up",
    "fc2": "ffn.down",
    "final_layer_norm": "ffn_norm",
}
OUTSIDE = {"embed_positions": "embedding.position", "layernorm_embedding": "embedding.norm"}


def keys(spec: ModelSpec) -> KeyMap:
    bias = Rule("final_logits_bias", ("head.bias",), layout=Viewed((1, -1)))
    head, unread = Rule("lm_head.weight", ("head.weight",)), ("encoder.version", "decoder.version")
    prefix = "model." if spec.head else ""
    return pair_keys(spec, "layers.{i}", LAYER, LAYER, OUTSIDE, head, bias, prefix=prefix, unread=unread)
