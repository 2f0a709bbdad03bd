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
from dougong.hub.families.fields import together
from dougong.hub.families.layers import everywhere
from dougong.hub.families.names import below
from dougong.hub.families.pairs import DECODER, DEPTH, ENCODER, KINDS, UNGATED, UNREAD, Pair, t5, t5_keys
from dougong.hub.families.table import Table
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec
from dougong.parts.feedforward import MLP, GatedMLP

FAMILY = "t5"
GATED = {"gelu": "gelu_new"} | {name: name for name in ACTIVATIONS if name != "gelu"}  # what gated-gelu means, ...
PLAIN_ROWS = {(name, (name, None), (False, None)): ("plain", name) for name in ACTIVATIONS}
GATED_ROWS = {(f"gated-{name}", (own, None), (True, None)): ("gated", own) for name, own in GATED.items()}
FFN = {
    row: {"layers.ffns": everywhere(kind), f"{kind}.activation": ACTIVATIONS[name]}
    for row, (kind, name) in {**PLAIN_ROWS, **GATED_ROWS}.items()
}
# transformers 5 says that every T5 is tied, and whether it is one of the first kind in scale_decoder_outputs.
TIES = ((True, True), (False, False), (False, True), (True, False))
HEADS = {flags: {"head.tied": all(flags)} for flags in TIES}
FEED = together({"feed_forward_proj": "relu", "dense_act_fn": None, "is_gated_act": None}, FFN)
KEYS = t5(None, 6, None, "plain.hidden gated.hidden")
SOURCE = Table(
    FAMILY,
    "T5ForConditionalGeneration",
    {**KINDS, "plain": MLP, "gated": GatedMLP},
    (*KEYS, FEED),
    ENCODER,
    silent=f"classifier_dropout {UNREAD}",
)
HEAD = together({"tie_word_embeddings": True, "scale_decoder_outputs": True}, HEADS)
PAIR = Pair("T5", SOURCE, replace(SOURCE, keys=(*KEYS, DEPTH, FEED, HEAD), always=DECODER), alone=True, apart=False)
from_config = PAIR.from_config


def to_config(spec: ModelSpec) -> dict[str, Any]:
    if spec.head is not None and spec.head.tied and spec.head.scale == 1:  # like v1.1, but for what the tensors tell
        spec = replace(spec, head=replace(spec.head, tied=False))
    return PAIR.to_config(spec)


def keys(spec: ModelSpec) -> KeyMap:
    gated = {"wi_0": "gate", "wi_1": "up", "wo": "down"}
    names = gated if isinstance(spec.layers[0].ffn, GatedMLP) else UNGATED
    return replace(t5_keys(spec, below("DenseReluDense.", "ffn.", names)), may_tie=True)
