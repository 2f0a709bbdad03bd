"""BART (Lewis et al. 2019): encoder and decoder with LayerNorm after each sublayer, learned positions from row 2 on, a
norm on the embeddings, and a bias of its own on the logits.

Whole layers are not dropped (`encoder_layerdrop`, in training only), and what mBART, once in the same code, does
otherwise is refused. Semantics: transformers' modeling_bart.
"""

from __future__ import annotations

from dataclasses import replace

from dougong.hub.families.encoders import ALWAYS, KINDS
from dougong.hub.families.fields import Entry, activation, either, integer, share, shares
from dougong.hub.families.layers import sizes
from dougong.hub.families.names import bare, below, named
from dougong.hub.families.pairs import SOURCE, UNREAD, Pair, pair_keys
from dougong.hub.families.table import Table, root_of_width
from dougong.hub.keymap import KeyMap
from dougong.hub.layouts import Viewed
from dougong.model.spec import ModelSpec

FAMILY = "bart"
SUBLAYER = {**below(".", ".", {**named("q", "k", "v"), "out_proj": "o"}), "_layer_norm": "_norm"}
LAYER = below("self_attn", "mixer", SUBLAYER) | below("encoder_attn", "cross", SUBLAYER)
LAYER |= {"fc1": "ffn.up", "fc2": "ffn.down", "final_layer_norm": "ffn_norm"}
OUTSIDE = {"embed_positions": "embedding.position", "layernorm_embedding": "embedding.norm"}


def _side(name: str) -> tuple[Entry, ...]:
    """The keys of one side, and those that both have."""
    names, usual = ("d_model", f"{name}_layers", f"{name}_attention_heads"), (50265, 1024, 12, 16)
    return (
        *sizes(*names, longest=1024, learned=True, eps=None, usual=usual),
        integer(f"{name}_ffn_dim", "ffn.hidden", 4096),
        activation("activation_function", "ffn.activation", "gelu", tanh="gelu_new"),
        share("dropout", "layer.dropout embedding.dropout", 0.1),
        *shares(attention_dropout="mixer.dropout", activation_dropout="ffn.dropout"),
        either("scale_embedding", "embedding.factor", False, root_of_width, 1.0),
    )


BOTH = {**ALWAYS, "norm.eps": 1e-5, "embedding.position.offset": 2, "head.bias": True}
ENCODER = Table(
    FAMILY,
    "BartForConditionalGeneration",
    KINDS,
    _side("encoder"),
    {**BOTH, **SOURCE},
    said={"add_final_layer_norm": False, "normalize_before": False, "normalize_embedding": True},
    silent=f"""classifier_dropout num_hidden_layers add_bias_logits static_position_embeddings extra_pos_embeddings
               {UNREAD}""",
)
PAIR = Pair("Bart", ENCODER, replace(ENCODER, keys=_side("decoder"), always=BOTH))
from_config, to_config = PAIR.from_config, PAIR.to_config


def keys(spec: ModelSpec) -> KeyMap:
    head = (*bare({"lm_head.weight": "head.weight"}), *bare({"final_logits_bias": "head.bias"}, Viewed((1, -1))))
    prefix, unread = "model." if spec.head else "", ("encoder.version", "decoder.version")
    return pair_keys(spec, "layers.{i}", LAYER, LAYER, OUTSIDE, *head, prefix=prefix, unread=unread)
