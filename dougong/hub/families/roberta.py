"""RoBERTa (Liu et al. 2019): BERT's form; positions are counted from behind the number of the padding token.

Semantics: transformers' modeling_roberta.
"""

from __future__ import annotations

from typing import Any

from dougong.hub.families.encoders import EncoderHeads, encoder_keys, encoder_table, write_kind
from dougong.hub.families.fields import Given, Keys, Parts, put
from dougong.hub.families.reader import Reader
from dougong.hub.families.tasks import BARE, CLASSES, SPAN
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec
from dougong.parts.position import Learned

FAMILY = "roberta"


def _ask(config: Reader, given: Given) -> None:
    rows, before = config.integer("max_position_embeddings", 512), config.integer("pad_token_id", 1, least=0) + 1
    if rows <= before:
        raise config.wrong("max_position_embeddings", rows, f"more than the {before} rows up to the padding token's")
    put(given, "model.context embedding.position.size", rows - before)
    put(given, "embedding.position.offset", before)


def _tell(parts: Parts) -> dict[str, Any]:
    position = parts.spec.embedding.position
    if not isinstance(position, Learned):  # which `exact` refuses
        return {}
    return {"max_position_embeddings": position.table(), "pad_token_id": position.offset - 1}


GELU = Keys(lambda config, given: put(given, "transform.activation", "gelu"))
TABLE = encoder_table(FAMILY, Keys(_ask, _tell), EncoderHeads("Roberta", twice=True), GELU)
from_config, to_config = TABLE.from_config, TABLE.to_config


def keys(spec: ModelSpec) -> KeyMap:
    kind, _ = write_kind(FAMILY, spec)
    classes = kind == CLASSES  # whose dense layer is a part of the head
    output = {CLASSES: "classifier.out_proj", SPAN: "qa_outputs"}.get(kind, "classifier")
    names = {
        "lm_head.dense": "transform.dense",
        "lm_head.layer_norm": "transform.norm",
        output: "task.output",
        **({"classifier.dense": "task.transform.dense"} if classes else {}),
    }
    return encoder_keys(spec, "" if kind == BARE else "roberta.", names, "lm_head", own_pooler=not classes)
