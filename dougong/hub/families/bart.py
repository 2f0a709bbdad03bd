"""BART (Lewis et al. 2019): encoder and decoder with LayerNorm after each sublayer, learned positions from row 2 on, a
norm on the embeddings, and a bias of its own on the logits.

The dropping of whole layers (`encoder_layerdrop`, `decoder_layerdrop`; training only) is not kept. Semantics:
transformers' modeling_bart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dougong.hub.families.common import exact, expect
from dougong.hub.families.encoders import ALWAYS, KINDS
from dougong.hub.families.fields import Given, Keys, activation, integer, share
from dougong.hub.families.layers import whole_heads
from dougong.hub.families.names import below, spelled, within
from dougong.hub.families.pairs import SEQUENCES, tables
from dougong.hub.families.reader import Reader
from dougong.hub.families.table import Table
from dougong.hub.families.tasks import BARE, read_architecture
from dougong.hub.keymap import KeyMap, Rule
from dougong.hub.layouts import Viewed
from dougong.model.spec import ModelSpec
from dougong.parts.attention import Attention
from dougong.parts.embedding import Head

FAMILY = "bart"
NAME = "Bart"


def _ask_factor(config: Reader, given: Given) -> None:
    given["embedding"]["factor"] = math.sqrt(given["model"]["width"]) if config.flag("scale_embedding", False) else 1.0


def _side(name: str) -> Table:
    """The keys of one side, and those that both have."""
    heads = f"{name}_attention_heads"
    keys = (
        integer("vocab_size", "model.vocab", 50265),
        integer("d_model", "model.width", 1024),
        integer("max_position_embeddings", "model.context embedding.position.size", 1024),
        integer(f"{name}_layers", "layers.depth", 12),
        integer(heads, "mixer.heads mixer.kv_heads", 16),
        whole_heads(heads),
        integer(f"{name}_ffn_dim", "ffn.hidden", 4096),
        activation("activation_function", "ffn.activation", "gelu", tanh="gelu_new"),
        share("dropout", "layer.dropout embedding.dropout", 0.1),
        share("attention_dropout", "mixer.dropout"),
        share("activation_dropout", "ffn.dropout"),
        Keys(_ask_factor, lambda parts: {"scale_embedding": parts.spec.embedding.factor != 1}),
    )
    return Table(
        FAMILY,
        NAME,
        KINDS,
        keys,
        {**ALWAYS, "norm.eps": 1e-5, "embedding.position.offset": 2},
        # BART's code once had mBART and others in it.
        said={"add_final_layer_norm": False, "normalize_before": False, "normalize_embedding": True},
        # Keys of old files that say how to generate or train.
        silent="""encoder_layerdrop decoder_layerdrop classifier_dropout init_std is_encoder_decoder is_decoder
                  num_hidden_layers add_bias_logits classif_dropout static_position_embeddings extra_pos_embeddings
                  force_bos_token_to_be_generated""",
    )


ENCODER, DECODER = _side("encoder"), _side("decoder")


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = Reader(FAMILY, config)
    source, spec, tied = ENCODER.model(reader), DECODER.model(reader), reader.flag("tie_word_embeddings", True)
    kind = read_architecture(reader, NAME, (SEQUENCES, BARE), SEQUENCES)
    reader.refuse_rest()
    layer = spec.layers[0]
    layer = replace(layer, cross=expect(FAMILY, "mixer", layer.mixer, Attention))
    head, layers = Head(tied, bias=True) if kind == SEQUENCES else None, (layer,) * len(spec.layers)
    return replace(spec, layers=layers, head=head, encoder=source, causal=True, shared_embedding=tied)


def to_config(spec: ModelSpec) -> dict[str, Any]:
    source = expect(FAMILY, "encoder", spec.encoder, ModelSpec)
    config = {**ENCODER.write(source), **DECODER.write(spec), "tie_word_embeddings": spec.shared_embedding}
    config["is_encoder_decoder"] = True
    return exact(FAMILY, NAME + (SEQUENCES if spec.head else BARE), spec, config, from_config)


PRODUCTS = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "o"}
LAYER = {
    **below("self_attn.", "mixer.", PRODUCTS),
    "self_attn_layer_norm": "mixer_norm",
    **below("encoder_attn.", "cross.", PRODUCTS),
    "encoder_attn_layer_norm": "cross_norm",
    "fc1": "ffn.up",
    "fc2": "ffn.down",
    "final_layer_norm": "ffn_norm",
}
SIDE = {"embed_positions": "embedding.position", "layernorm_embedding": "embedding.norm"}


def keys(spec: ModelSpec) -> KeyMap:
    prefix = "model." if spec.head else ""
    tokens, others = tables(spec, prefix)
    return KeyMap(
        rules=(
            *tokens,
            *within(f"{prefix}encoder.layers.{{i}}", "encoder.layers.{i}", spelled(LAYER)),
            *within(f"{prefix}decoder.layers.{{i}}", "layers.{i}", spelled(LAYER)),
            *within(f"{prefix}encoder", "encoder", spelled(SIDE)),
            *spelled(below(f"{prefix}decoder.", "", SIDE)),
            Rule("lm_head.weight", ("head.weight",)),
            Rule("final_logits_bias", ("head.bias",), layout=Viewed((1, -1))),
        ),
        prefix=prefix,
        constants=(f"{prefix}encoder.version", f"{prefix}decoder.version"),
        tied=("lm_head.weight", f"{prefix}shared.weight"),
        **others,
    )
