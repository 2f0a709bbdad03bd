"""BERT (Devlin et al. 2018): an encoder with LayerNorm after each sublayer, learned positions, two types of tokens.

`architectures` says which head stands on it; files of BertModel hold a pooler, unless `add_pooling_layer` is false.
Semantics: transformers' modeling_bert.
"""

from __future__ import annotations

from dataclasses import replace

from dougong.hub.families.encoders import MASKED, PRETRAINING, EncoderHeads, encoder_keys, encoder_table, write_kind
from dougong.hub.families.fields import activation, integer
from dougong.hub.families.tasks import BARE, SPAN
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec

FAMILY = "bert"
POSITION = integer("max_position_embeddings", "model.context embedding.position.size", 512)


TRANSFORM = activation("hidden_act", "transform.activation", "gelu", tanh="gelu_new")
TABLE = encoder_table(FAMILY, POSITION, EncoderHeads("Bert", pretrained=True), TRANSFORM)
from_config, to_config = TABLE.from_config, TABLE.to_config


def keys(spec: ModelSpec) -> KeyMap:
    kind, _ = write_kind(FAMILY, spec)
    output = {PRETRAINING: "cls.seq_relationship", SPAN: "qa_outputs"}.get(kind, "classifier")
    names = {
        "cls.predictions.transform.dense": "transform.dense",
        "cls.predictions.transform.LayerNorm": "transform.norm",
        output: "task.output",
    }
    keys = encoder_keys(spec, "" if kind == BARE else "bert.", names, "cls.predictions")
    # The first files of BERT hold the head for the next sentence beside the one for words.
    unused = ("cls.seq_relationship.weight", "cls.seq_relationship.bias") if kind == MASKED else ()
    in_tensorflow = ((".gamma", ".weight"), (".beta", ".bias"))  # of norms
    return replace(keys, constants=(*keys.constants, *unused), spellings=in_tensorflow)
