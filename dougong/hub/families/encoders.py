"""What encoders share: their heads; and of BERT and RoBERTa the keys and the names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

from dougong.hub.families.fields import Entry, Given, activation, integer, share
from dougong.hub.families.layers import PLAIN, outer, plain_heads
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
from dougong.parts.embedding import Transform
from dougong.parts.heads import Classifier, Pooled
from dougong.parts.position import Learned

MASKED, PRETRAINING = "ForMaskedLM", "ForPreTraining"
KINDS = {**PLAIN, "embedding.position": Learned}
ALWAYS = {**LAYER_NORM, **BIASES, "layer.wiring": "post", "embedding.norm": the_norm, "model.norm": None}
POOLER = Transform("tanh", None)
NEXT = ("follows", "random")  # the next sentence: cls.seq_relationship's two numbers


@final
@dataclass(frozen=True)
class EncoderHeads:
    """Of an encoder whose family has `name` in `architectures`.

    A transform with the layers' norm stands before the head over the vocabulary: its fields are those of "transform".

    pooler      what stands before the classes, and alone on a bare model; None: the transform, before the classes of
                tokens too
    pretrained  there is a head for the next sentence beside the one over the vocabulary
    dropout     of classifiers where `classifier_dropout` does not say; None: that of the embeddings
    twice       the classifier drops before its pooler too
    """

    name: str
    pooler: Transform | None = POOLER
    pretrained: bool = False
    dropout: float | None = None
    twice: bool = False

    def read(self, config: Reader, body: ModelSpec, given: Given) -> ModelSpec:
        for key in ("is_decoder", "add_cross_attention"):
            if config.flag(key, False):
                raise config.wrong(key, True, "false, an encoder")
        known = (MASKED, BARE, *[PRETRAINING][: self.pretrained], CLASSES, TOKENS, SPAN)
        kind = read_architecture(config, self.name, known, MASKED)
        dropout = read_dropout(config, body.embedding.dropout if self.dropout is None else self.dropout)
        transform = Transform(norm=body.layers[0].norm, **given["transform"])
        pooled = self.pooler is not None and config.flag("add_pooling_layer", True)
        before = {"transform": self.pooler or transform, **({"first_dropout": dropout} if self.twice else {})}
        classifier = {**before, **given.get("task", {})}
        task = read_task(config, kind, dropout, classifier, None if self.pooler else transform)
        if kind == BARE and pooled:
            task = Pooled("first", self.pooler)
        elif kind == PRETRAINING:
            task = Classifier(NEXT, transform=self.pooler)
        head = body.head if kind in (MASKED, PRETRAINING) else None
        return replace(body, head=head and replace(head, transform=transform), task=task)

    def write(self, family: str, spec: ModelSpec) -> tuple[ModelSpec, str, dict[str, Any]]:
        bare = self.pooler is not None and spec.task is None and spec.head is None
        kind, keys = write_kind(family, spec)
        return spec, self.name + kind, {"add_pooling_layer": False} if bare else keys


def write_kind(family: str, spec: ModelSpec) -> tuple[str, dict[str, Any]]:
    """The architecture that has the spec's head, and keys for it."""
    if isinstance(spec.task, Classifier) and spec.head is not None:
        return PRETRAINING, {}
    return write_task(family, spec, MASKED)


def encoder_table(family: str, position: Entry, heads: EncoderHeads, transform: Entry) -> Table:
    """transform: the key of its activation."""
    keys = (
        transform,
        *outer(None, 768, 12, position, 1e-12, tied=True, eps_key="layer_norm_eps"),
        *plain_heads("num_attention_heads", 12),
        share("attention_probs_dropout_prob", "mixer.dropout", 0.1),
        integer("intermediate_size", "ffn.hidden", 3072),
        activation("hidden_act", "ffn.activation", "gelu", tanh="gelu_new"),
        integer("type_vocab_size", "embedding.types", 2),
        share("hidden_dropout_prob", "layer.dropout embedding.dropout", 0.1),
    )
    always, said = {**ALWAYS, "model.causal": False, "head.bias": True}, {"position_embedding_type": "absolute"}
    return Table(family, heads.name + MASKED, KINDS, keys, always, said, heads=heads)


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
