"""T5 (Raffel et al. 2020), T5 v1.1 and FLAN-T5: encoder and decoder with RMSNorm before each sublayer, scores that are
not scaled, and a bias by distance that all layers of a side share.

The first T5 ties its head to the embedding and scales the hidden states before it by width^-1/2; v1.1 does neither and
has a gated feed-forward, and may yet be tied, as its tensors tell. `dropout_rate` is the dropout of everything.
Semantics: transformers' modeling_t5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dougong.hub.families.common import ACTIVATIONS, exact
from dougong.hub.families.fields import Given, Keys, Parts, put
from dougong.hub.families.names import below
from dougong.hub.families.pairs import ALWAYS, KINDS, SEQUENCES, encoder, head_of, model_keys, with_decoder, write_pair
from dougong.hub.families.reader import Reader
from dougong.hub.families.table import Table
from dougong.hub.families.tasks import BARE, read_architecture
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec
from dougong.parts.feedforward import MLP, GatedMLP

FAMILY = "t5"
NAME = "T5"
ENCODER = "EncoderModel"


def _ask_ffn(config: Reader, given: Given) -> None:
    """`feed_forward_proj` is "relu", "gated-gelu" (which means the tanh approximation), or another activation."""
    name = config.raw("feed_forward_proj", "relu")
    gated, activation = str(name).startswith("gated-"), str(name).removeprefix("gated-")
    activation = "gelu_new" if name == "gated-gelu" else activation
    if activation not in ACTIVATIONS:
        raise config.wrong("feed_forward_proj", name, "an activation, after gated- where it has a gate")
    if config.raw("dense_act_fn", activation) != activation or config.raw("is_gated_act", gated) != gated:
        raise config.wrong("feed_forward_proj", name, "the same as dense_act_fn and is_gated_act say")
    put(given, "plain.activation gated.activation", ACTIVATIONS[activation])
    given["layers"]["ffns"] = ["gated" if gated else "plain"] * given["layers"]["depth"]


def _tell_ffn(parts: Parts) -> dict[str, Any]:
    gated = parts.held["gated"] is not None
    name = str(parts.find("gated.activation" if gated else "plain.activation"))
    # "gated-gelu" means the tanh approximation.
    spelled = {"gelu_tanh": "gelu", "gelu": "gelu_python"} if gated else {"gelu_tanh": "gelu_new"}
    return {"feed_forward_proj": "gated-" * gated + spelled.get(name, name)}


TABLE = Table(
    FAMILY,
    NAME,
    {**KINDS, "plain": MLP, "gated": GatedMLP},
    (*encoder(None, 6, None, "plain.hidden gated.hidden"), Keys(_ask_ffn, _tell_ffn)),
    ALWAYS,
    silent="is_encoder_decoder is_decoder initializer_factor classifier_dropout",
)


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = Reader(FAMILY, config)
    source, kind = TABLE.model(reader), read_architecture(reader, NAME, (SEQUENCES, BARE, ENCODER), SEQUENCES)
    # transformers 5 says that every T5 is tied, and whether it is one of the first kind in `scale_decoder_outputs`.
    tied = reader.flag("tie_word_embeddings", True) and reader.flag("scale_decoder_outputs", True)
    depth = reader.integer("num_decoder_layers", len(source.layers))
    reader.refuse_rest()
    head = head_of(source, tied) if kind == SEQUENCES else None
    return source if kind == ENCODER else with_decoder(source, [source.layers[0].ffn] * depth, head)


def to_config(spec: ModelSpec) -> dict[str, Any]:
    head = spec.head or head_of(spec, tied=True)
    if head.tied and head.scale == 1:  # tied to the embedding, but for that like v1.1, which the tensors tell
        head = replace(head, tied=False)
        spec = replace(spec, head=head)
    unscaled = {"scale_decoder_outputs": False} if head.scale == 1 else {}
    config = {**write_pair(TABLE, spec), "tie_word_embeddings": head.tied, **unscaled}
    kind = ENCODER if spec.encoder is None else SEQUENCES if spec.head else BARE
    return exact(FAMILY, NAME + kind, spec, config, from_config)


def keys(spec: ModelSpec) -> KeyMap:
    gated = {"wi_0": "ffn.gate", "wi_1": "ffn.up", "wo": "ffn.down"}
    plain = {"wi": "ffn.up", "wo": "ffn.down"}
    names = gated if isinstance(spec.layers[0].ffn, GatedMLP) else plain
    return replace(model_keys(spec, below("DenseReluDense.", "", names)), may_tie=True)
