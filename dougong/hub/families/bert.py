"""BERT (Devlin et al. 2018): an encoder with LayerNorm after each sublayer, learned positions, two types of tokens.

`architectures` says which head stands on it; files of BertModel hold a pooler, unless `add_pooling_layer` is false.
Semantics: transformers' modeling_bert.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dougong.hub.families.common import exact, expect, first_layer, read_activation, write_activation
from dougong.hub.families.names import both
from dougong.hub.families.reader import Reader
from dougong.hub.families.tasks import (
    BARE,
    CLASSES,
    SPAN,
    TOKENS,
    read_architecture,
    read_dropout,
    read_labels,
    write_labels,
)
from dougong.hub.keymap import KeyMap, Rule
from dougong.model.spec import LayerSpec, ModelSpec
from dougong.parts.attention import Attention
from dougong.parts.embedding import Embedding, Head, Transform
from dougong.parts.feedforward import MLP
from dougong.parts.heads import Classifier, Pooled, Span, Task, TokenClassifier
from dougong.parts.norm import Norm
from dougong.parts.position import Learned

FAMILY = "bert"
NAME = "Bert"
MASKED, PRETRAINING = "ForMaskedLM", "ForPreTraining"
POOLER = Transform("tanh", None)
NEXT = ("follows", "random")  # the next sentence: cls.seq_relationship's two numbers


def read_body(config: Reader, position: Learned) -> ModelSpec:
    """The shape that RoBERTa shares, without a head."""
    width, heads = config.integer("hidden_size", 768), config.integer("num_attention_heads", 12)
    if width % heads:
        raise config.wrong("num_attention_heads", heads, f"a divisor of hidden_size, {width}")
    for key in ("is_decoder", "add_cross_attention"):
        if config.flag(key, False):
            raise config.wrong(key, True, "false, an encoder")
    if config.raw("position_embedding_type", "absolute") != "absolute":
        raise config.wrong("position_embedding_type", config.raw("position_embedding_type"), "'absolute'")
    norm, dropout = Norm("layer", config.number("layer_norm_eps", 1e-12), bias=True), read_hidden_dropout(config)
    seen = config.share("attention_probs_dropout_prob", 0.1)
    mixer = Attention(heads, heads, width // heads, True, True, dropout=seen)
    ffn = MLP(config.integer("intermediate_size", 3072), read_activation(config, "hidden_act", "gelu"), bias=True)
    layer = LayerSpec(mixer, ffn, norm, "post", dropout=dropout)
    embedding = Embedding(position, config.integer("type_vocab_size", 2), norm, dropout=dropout)
    layers = (layer,) * config.integer("num_hidden_layers", 12)
    vocab = config.integer("vocab_size")
    return ModelSpec(vocab, width, position.size, layers, embedding, norm=None, head=None, causal=False)


def read_hidden_dropout(config: Reader) -> float:
    return config.share("hidden_dropout_prob", 0.1)


def write_body(family: str, spec: ModelSpec) -> dict[str, Any]:
    """The keys that `read_body` reads."""
    first = first_layer(family, spec)
    mixer, ffn = expect(family, "mixer", first.mixer, Attention), expect(family, "ffn", first.ffn, MLP)
    position = expect(family, "position", spec.embedding.position, Learned)
    return {
        "vocab_size": spec.vocab,
        "hidden_size": spec.width,
        "num_hidden_layers": len(spec.layers),
        "num_attention_heads": mixer.heads,
        "intermediate_size": ffn.hidden,
        "hidden_act": write_activation(ffn.activation, tanh="gelu_new"),
        "max_position_embeddings": position.table(),
        "type_vocab_size": spec.embedding.types,
        "layer_norm_eps": first.norm.eps,
        "hidden_dropout_prob": first.dropout,
        "attention_probs_dropout_prob": mixer.dropout,
        "tie_word_embeddings": spec.head is None or spec.head.tied,
    }


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = Reader(FAMILY, config)
    body = read_body(reader, Learned(reader.integer("max_position_embeddings", 512)))
    kind = read_architecture(reader, NAME, (MASKED, BARE, PRETRAINING, CLASSES, TOKENS, SPAN), MASKED)
    pooled, dropout = reader.flag("add_pooling_layer", True), read_dropout(reader, read_hidden_dropout(reader))
    tied, head, task = reader.flag("tie_word_embeddings", True), None, None
    if kind in (MASKED, PRETRAINING):
        first = first_layer(FAMILY, body)
        activation = read_activation(reader, "hidden_act", "gelu")
        head = Head(tied, bias=True, transform=Transform(activation, first.norm))
    if kind == PRETRAINING:
        task = Classifier(NEXT, transform=POOLER)
    elif kind == CLASSES:
        task = Classifier(read_labels(reader), transform=POOLER, dropout=dropout)
    elif kind == BARE:
        task = Pooled("first", POOLER) if pooled else None
    else:
        task = read_each_token(reader, kind, dropout)
    reader.refuse_rest()
    return replace(body, head=head, task=task)


def read_each_token(config: Reader, kind: str, dropout: float) -> Task | None:
    """The heads over every token."""
    if kind == TOKENS:
        return TokenClassifier(read_labels(config), dropout=dropout)
    return Span() if kind == SPAN else None


def write_task(spec: ModelSpec) -> tuple[str, dict[str, Any]]:
    """The architecture that has the spec's head, and keys for it."""
    match spec.task:
        case Classifier():
            if spec.head is not None:
                return PRETRAINING, {}
            return CLASSES, {**write_labels(spec.task.labels), "classifier_dropout": spec.task.dropout}
        case TokenClassifier():
            return TOKENS, {**write_labels(spec.task.labels), "classifier_dropout": spec.task.dropout}
        case Span():
            return SPAN, {}
        case Pooled():
            return BARE, {}
        case None:
            return (BARE, {"add_pooling_layer": False}) if spec.head is None else (MASKED, {})


def to_config(spec: ModelSpec) -> dict[str, Any]:
    kind, keys = write_task(spec)
    return exact(FAMILY, NAME + kind, spec, {**write_body(FAMILY, spec), **keys}, from_config)


def body_rules(prefix: str) -> tuple[Rule, ...]:
    """Names of the encoder, which RoBERTa shares."""
    layer, own = f"{prefix}encoder.layer.{{i}}", "layers.{i}"
    names = {"q": "query", "k": "key", "v": "value"}
    return (
        Rule(f"{prefix}embeddings.word_embeddings.weight", ("embedding.weight",)),
        Rule(f"{prefix}embeddings.position_embeddings.weight", ("embedding.position.weight",)),
        Rule(f"{prefix}embeddings.token_type_embeddings.weight", ("embedding.types.weight",)),
        *both(f"{prefix}embeddings.LayerNorm", "embedding.norm"),
        *(
            rule
            for short, name in names.items()
            for rule in both(f"{layer}.attention.self.{name}", f"{own}.mixer.{short}")
        ),
        *both(f"{layer}.attention.output.dense", f"{own}.mixer.o"),
        *both(f"{layer}.attention.output.LayerNorm", f"{own}.mixer_norm"),
        *both(f"{layer}.intermediate.dense", f"{own}.ffn.up"),
        *both(f"{layer}.output.dense", f"{own}.ffn.down"),
        *both(f"{layer}.output.LayerNorm", f"{own}.ffn_norm"),
        *both(f"{prefix}pooler.dense", "task.transform.dense"),
    )


def output_keys(keys: KeyMap, spec: ModelSpec, head: str, foreign: str) -> KeyMap:
    """`keys` with the names of the head over the vocabulary, which RoBERTa shares: `head` has a bias of its own beside
    that of its Linear, `foreign`. They are one where the weight is tied; else the Linear's counts, and nothing reads
    the other."""
    bias = (f"{foreign}.bias", f"{head}.bias")
    if spec.head is None or spec.head.tied:
        return replace(keys, rules=(*keys.rules, Rule(bias[1], ("head.bias",))), copies=(*keys.copies, bias))
    return replace(keys, rules=(*keys.rules, *both(foreign, "head")), idle=(bias,))


def unused(prefix: str, spec: ModelSpec) -> tuple[str, ...]:
    """What files of models with another head may hold besides: tables of positions, and a pooler that nobody reads."""
    pooler = () if has_pooler(spec) else (f"{prefix}pooler.dense.weight", f"{prefix}pooler.dense.bias")
    return (f"{prefix}embeddings.position_ids", f"{prefix}embeddings.token_type_ids", *pooler)


def has_pooler(spec: ModelSpec) -> bool:
    return isinstance(spec.task, (Classifier, Pooled)) and spec.task.transform is not None


def keys(spec: ModelSpec) -> KeyMap:
    kind, _ = write_task(spec)
    prefix = "" if kind == BARE else "bert."
    output = {PRETRAINING: "cls.seq_relationship", SPAN: "qa_outputs"}.get(kind, "classifier")
    # The first files of BERT hold the head for the next sentence beside the one for words.
    next_sentence = ("cls.seq_relationship.weight", "cls.seq_relationship.bias") if kind == MASKED else ()
    names = KeyMap(
        rules=(
            *body_rules(prefix),
            *both("cls.predictions.transform.dense", "transform.dense"),
            *both("cls.predictions.transform.LayerNorm", "transform.norm"),
            *both(output, "task.output"),
        ),
        prefix=prefix,
        constants=(*unused(prefix, spec), *next_sentence),
        tied=("cls.predictions.decoder.weight", f"{prefix}embeddings.word_embeddings.weight"),
        spellings=((".gamma", ".weight"), (".beta", ".bias")),  # of norms, in TensorFlow
    )
    return output_keys(names, spec, "cls.predictions", "cls.predictions.decoder")
