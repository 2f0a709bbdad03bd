"""RoBERTa (Liu et al. 2019): BERT's form; positions are counted from behind the number of the padding token.

Semantics: transformers' modeling_roberta.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dougong.hub.families.bert import (
    MASKED,
    POOLER,
    body_rules,
    output_keys,
    read_body,
    read_each_token,
    read_hidden_dropout,
    unused,
    write_body,
    write_task,
)
from dougong.hub.families.common import exact, expect, first_layer
from dougong.hub.families.names import both
from dougong.hub.families.reader import Reader
from dougong.hub.families.tasks import BARE, CLASSES, SPAN, TOKENS, read_architecture, read_dropout, read_labels
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec
from dougong.parts.embedding import Head, Transform
from dougong.parts.heads import Classifier, Pooled
from dougong.parts.position import Learned

FAMILY = "roberta"
NAME = "Roberta"


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = Reader(FAMILY, config)
    rows, before = reader.integer("max_position_embeddings", 512), reader.integer("pad_token_id", 1, least=0) + 1
    if rows <= before:
        raise reader.wrong("max_position_embeddings", rows, f"more than the {before} rows up to the padding token's")
    body = read_body(reader, Learned(rows - before, before))
    kind = read_architecture(reader, NAME, (MASKED, BARE, CLASSES, TOKENS, SPAN), MASKED)
    pooled, dropout = reader.flag("add_pooling_layer", True), read_dropout(reader, read_hidden_dropout(reader))
    norm, tied = first_layer(FAMILY, body).norm, reader.flag("tie_word_embeddings", True)
    head = Head(tied, bias=True, transform=Transform("gelu", norm)) if kind == MASKED else None
    if kind == CLASSES:
        task = Classifier(read_labels(reader), transform=POOLER, dropout=dropout, first_dropout=dropout)
    elif kind == BARE:
        task = Pooled("first", POOLER) if pooled else None
    else:
        task = read_each_token(reader, kind, dropout)
    reader.refuse_rest()
    return replace(body, head=head, task=task)


def to_config(spec: ModelSpec) -> dict[str, Any]:
    kind, keys = write_task(spec)
    position = expect(FAMILY, "position", spec.embedding.position, Learned)
    config = {**write_body(FAMILY, spec), "pad_token_id": position.offset - 1, **keys}
    return exact(FAMILY, NAME + kind, spec, config, from_config)


def keys(spec: ModelSpec) -> KeyMap:
    kind, _ = write_task(spec)
    prefix = "" if kind == BARE else "roberta."
    classes = kind == CLASSES  # whose dense layer is a part of the head
    dense = both("classifier.dense", "task.transform.dense")
    output = {CLASSES: "classifier.out_proj", SPAN: "qa_outputs"}.get(kind, "classifier")
    body = body_rules(prefix)
    names = KeyMap(
        rules=(
            *((*body[:-2], *dense) if classes else body),
            *both("lm_head.dense", "transform.dense"),
            *both("lm_head.layer_norm", "transform.norm"),
            *both(output, "task.output"),
        ),
        prefix=prefix,
        constants=unused(prefix, replace(spec, task=None) if classes else spec),
        tied=("lm_head.decoder.weight", f"{prefix}embeddings.word_embeddings.weight"),
    )
    return output_keys(names, spec, "lm_head", "lm_head.decoder")
