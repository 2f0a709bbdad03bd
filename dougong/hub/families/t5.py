"""T5 (Raffel et al. 2020), T5 v1.1 and FLAN-T5: encoder and decoder with RMSNorm before each sublayer, scores that are
not scaled, and a bias by distance that all layers of a side share.

The first T5 ties its head to the embedding and scales the hidden states before it by width^-1/2; v1.1 does neither and
has a gated feed-forward, and may yet be tied, as its tensors tell. `dropout_rate` is the dropout of everything.
Semantics: transformers' modeling_t5.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dougong.hub.families.common import ACTIVATIONS
from dougong.hub.families.fields import Given, put, search, settings
from dougong.hub.families.names import below
from dougong.hub.families.pairs import DECODER, DEPTH, ENCODER, KINDS, Pair, t5, t5_keys
from dougong.hub.families.reader import Reader
from dougong.hub.families.table import Table
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec
from dougong.parts.feedforward import MLP, GatedMLP

FAMILY = "t5"


def _ask_ffn(config: Reader, given: Given) -> None:
    """`feed_forward_proj` is "relu", "gated-gelu" (which means the tanh approximation), or another activation."""
    name = str(config.raw("feed_forward_proj", "relu"))
    gated, activation = name.startswith("gated-"), name.removeprefix("gated-")
    activation = "gelu_new" if name == "gated-gelu" else activation
    if activation not in ACTIVATIONS:
        raise config.wrong("feed_forward_proj", name, "an activation, after gated- where it has a gate")
    if config.raw("dense_act_fn", activation) != activation or config.raw("is_gated_act", gated) != gated:
        raise config.wrong("feed_forward_proj", name, "the same as dense_act_fn and is_gated_act say")
    put(given, "plain.activation gated.activation", ACTIVATIONS[activation])
    given["layers"]["ffns"] = ["gated" if gated else "plain"] * given["layers"]["depth"]


def _ask_head(config: Reader, given: Given) -> None:
    """transformers 5 says that every T5 is tied, and whether it is one of the first kind in `scale_decoder_outputs`."""
    put(given, "head.tied", config.flag("tie_word_embeddings", True) and config.flag("scale_decoder_outputs", True))


NAMES = ("relu", "gated-gelu", *(gate + name for gate in ("", "gated-") for name in ACTIVATIONS))
FFN = search(_ask_ffn, lambda parts: settings(feed_forward_proj=NAMES))
UNTIED = {"tie_word_embeddings": False, "scale_decoder_outputs": False}
HEAD = search(_ask_head, lambda parts: [{"tie_word_embeddings": True}, UNTIED])
KEYS = t5(None, 6, None, "plain.hidden gated.hidden")
SOURCE = Table(
    FAMILY,
    "T5ForConditionalGeneration",
    {**KINDS, "plain": MLP, "gated": GatedMLP},
    (*KEYS, FFN),
    ENCODER,
    silent="is_encoder_decoder is_decoder initializer_factor classifier_dropout",
)
PAIR = Pair("T5", SOURCE, replace(SOURCE, keys=(*KEYS, DEPTH, FFN, HEAD), always=DECODER), alone=True, apart=False)
from_config = PAIR.from_config


def to_config(spec: ModelSpec) -> dict[str, Any]:
    if spec.head is not None and spec.head.tied and spec.head.scale == 1:  # like v1.1, but for what the tensors tell
        spec = replace(spec, head=replace(spec.head, tied=False))
    return PAIR.to_config(spec)


def keys(spec: ModelSpec) -> KeyMap:
    gated = {"wi_0": "ffn.gate", "wi_1": "ffn.up", "wo": "ffn.down"}
    names = gated if isinstance(spec.layers[0].ffn, GatedMLP) else {"wi": "ffn.up", "wo": "ffn.down"}
    return replace(t5_keys(spec, below("DenseReluDense.", "", names)), may_tie=True)
