"""What BERT and RoBERTa share: the encoder, its heads, and their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from dougong.hub.families.common import exact
from dougong.hub.families.fields import Entry, activation, integer, share
from dougong.hub.families.layers import PLAIN, outer, whole_heads
from dougong.hub.families.names import key_map, spelled
from dougong.hub.families.reader import Reader
from dougong.hub.families.table import BIASES, LAYER_NORM, Table, the_norm
from dougong.hub.families.tasks import (
    BARE,
    CLASSES,
    SPAN,
    TOKENS,
    read_architecture,
    read_dropout,
    read_task,
    write_task,
)
from dougong.hub.keymap import KeyMap, Rule
from dougong.model.spec import ModelSpec
from dougong.parts.embedding import Head, Transform
from dougong.parts.heads import Classifier, Pooled
from dougong.parts.position import Learned

MASKED, PRETRAINING = "ForMaskedLM", "ForPreTraining"
KINDS = {**PLAIN, "embedding.position": Learned}
ENCODER = {"model.norm": None, "model.head": None, "model.causal": False}
ALWAYS = {**LAYER_NORM, **BIASES, **ENCODER, "layer.wiring": "post", "embedding.norm": the_norm}
POOLER = Transform("tanh", None)
NEXT = ("follows", "random")  # the next sentence: cls.seq_relationship's two numbers


def encoder_table(family: str, name: str, position: Entry) -> Table:
    """Of the encoder, whose heads `read_heads` adds."""
    keys = (
        *outer(None, 768, 12, position, 1e-12, tied=True, eps_key="layer_norm_eps"),
        integer("num_attention_heads", "mixer.heads mixer.kv_heads", 12),
        whole_heads("num_attention_heads"),
        share("attention_probs_dropout_prob", "mixer.dropout", 0.1),
        integer("intermediate_size", "ffn.hidden", 3072),
        activation("hidden_act", "ffn.activation", "gelu", tanh="gelu_new"),
        integer("type_vocab_size", "embedding.types", 2),
        share("hidden_dropout_prob", "layer.dropout embedding.dropout", 0.1),
    )
    return Table(family, name, KINDS, keys, ALWAYS, said={"position_embedding_type": "absolute"})


def read_heads(
    table: Table, config: Mapping[str, Any], transform: Callable[[ModelSpec], Transform], first_dropout: bool
) -> ModelSpec:
    """The encoder with the head that `architectures` tells. transform: what stands before the one over the vocabulary;
    first_dropout: whether the classifier drops before its pooler too."""
    reader = Reader(table.family, config)
    found, tied = table.model(reader), reader.flag("tie_word_embeddings", True)
    for key in ("is_decoder", "add_cross_attention"):
        if reader.flag(key, False):
            raise reader.wrong(key, True, "false, an encoder")
    known = (MASKED, BARE, *([] if first_dropout else [PRETRAINING]), CLASSES, TOKENS, SPAN)
    kind = read_architecture(reader, table.architecture, known, MASKED)
    dropout, pooled = read_dropout(reader, found.embedding.dropout), reader.flag("add_pooling_layer", True)
    before = {"transform": POOLER, **({"first_dropout": dropout} if first_dropout else {})}
    task, head = read_task(reader, kind, dropout, before), Head(tied, bias=True, transform=transform(found))
    if kind == BARE:
        task = Pooled("first", POOLER) if pooled else None
    elif kind == PRETRAINING:
        task = Classifier(NEXT, transform=POOLER)
    reader.refuse_rest()
    return replace(found, head=head if kind in (MASKED, PRETRAINING) else None, task=task)


def write_heads(table: Table, spec: ModelSpec, read: Callable[[Mapping[str, Any]], ModelSpec]) -> dict[str, Any]:
    tied = spec.head is None or spec.head.tied
    kind, keys = write_kind(table.family, spec)
    config = {**table.write(spec), "tie_word_embeddings": tied, **keys}
    return exact(table.family, table.architecture + kind, spec, config, read)


def write_kind(family: str, spec: ModelSpec) -> tuple[str, dict[str, Any]]:
    """The architecture that has the spec's head, and keys for it."""
    if isinstance(spec.task, Classifier) and spec.head is not None:
        return PRETRAINING, {}
    bare = spec.task is None and spec.head is None
    kind, keys = write_task(family, spec, MASKED)
    return kind, {"add_pooling_layer": False} if bare else keys


LAYER = {
    "attention.self.query": "mixer.q",
    "attention.self.key": "mixer.k",
    "attention.self.value": "mixer.v",
    "attention.output.dense": "mixer.o",
    "attention.output.LayerNorm": "mixer_norm",
    "intermediate.dense": "ffn.up",
    "output.dense": "ffn.down",
    "output.LayerNorm": "ffn_norm",
}
OUTSIDE = {
    "embeddings.word_embeddings": "embedding",
    "embeddings.position_embeddings": "embedding.position",
    "embeddings.token_type_embeddings": "embedding.types",
    "embeddings.LayerNorm": "embedding.norm",
}
POOLED = {"pooler.dense": "task.transform.dense"}


def encoder_keys(spec: ModelSpec, prefix: str, names: Mapping[str, str], head: str, own_pooler: bool = True) -> KeyMap:
    """The names of the encoder, which RoBERTa shares, and further ones.

    The head over the vocabulary, `head`, has a bias of its own beside that of its Linear, the decoder. They are one
    where the weight is tied; else the Linear's counts, and nothing reads the other. own_pooler: false where the first
    product of the task's head is no pooler's. Files of models with another head may hold tables of positions, and a
    pooler that nobody reads.
    """
    pooled = own_pooler and isinstance(spec.task, (Classifier, Pooled)) and spec.task.transform is not None
    decoder, bias = f"{head}.decoder", (f"{head}.decoder.bias", f"{head}.bias")
    unused = ("embeddings.position_ids", "embeddings.token_type_ids")
    unused += () if pooled else ("pooler.dense.weight", "pooler.dense.bias")
    outside = {**OUTSIDE, **(POOLED if pooled else {})}
    keys = key_map(prefix, "encoder.layer.{i}", spelled(LAYER), outside, *spelled(names), head=decoder)
    keys = replace(keys, constants=tuple(f"{prefix}{name}" for name in unused))
    if spec.head is not None and not spec.head.tied:
        return replace(keys, idle=(bias,))
    rules = (rule for rule in keys.rules if rule.own != ("head.bias",))
    return replace(keys, rules=(*rules, Rule(bias[1], ("head.bias",))), copies=(bias,))
