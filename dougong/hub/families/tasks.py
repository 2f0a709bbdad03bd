"""Which head a checkpoint has: config.json's `architectures` tells (BertModel, LlamaForSequenceClassification, ...).

Here are the labels of classes, and the heads of decoders, which are the same in all families (semantics: transformers'
modeling_layers). Encoders have heads of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

from dougong.base import DougongError
from dougong.hub.families.fields import Given
from dougong.hub.families.reader import Reader
from dougong.hub.keymap import KeyMap, Rule
from dougong.model.spec import ModelSpec
from dougong.parts.embedding import Head, Transform
from dougong.parts.heads import Classifier, Pooled, Span, Task, TokenClassifier

CLASSES, TOKENS, SPAN, BARE = "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "Model"
CAUSAL = "ForCausalLM"
ENDS = CAUSAL, "LMHeadModel"
"""Ends of the names of decoders with the usual head."""


def read_architecture(config: Reader, name: str, known: Mapping[str, Any] | tuple[str, ...], usual: str) -> str:
    """What follows the family's `name` in `architectures`: one of `known`; `usual` where the config does not say."""
    given = config.raw("architectures") or [name + usual]
    if not isinstance(given, list) or len(given) != 1 or str(given[0]).removeprefix(name) not in known:
        raise config.wrong("architectures", given, " or ".join(name + each for each in known))
    return str(given[0]).removeprefix(name)


def read_labels(config: Reader) -> tuple[str, ...]:
    """Names of the classes in the order of their numbers. transformers has two classes where a config says nothing."""
    given = config.raw("id2label")
    if not given:
        return tuple(f"LABEL_{index}" for index in range(config.integer("num_labels", 2)))
    if not isinstance(given, dict) or sorted(given) != sorted(str(index) for index in range(len(given))):
        raise config.wrong("id2label", given, "a name for each of the numbers from 0")
    return tuple(str(given[str(index)]) for index in range(len(given)))


def write_labels(labels: tuple[str, ...]) -> dict[str, Any]:
    return {
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def read_dropout(config: Reader, default: float) -> float:
    """`classifier_dropout`, or what the family falls back to where it is null."""
    return config.share("classifier_dropout", default)


def read_task(
    config: Reader, kind: str, dropout: float, classifier: Mapping[str, Any], transform: Transform | None = None
) -> Task | None:
    """The head for classes, with the further fields of `classifier`, or for every token, behind `transform`."""
    if kind == CLASSES:
        return Classifier(read_labels(config), dropout=dropout, **classifier)
    if kind == TOKENS:
        return TokenClassifier(read_labels(config), dropout=dropout, transform=transform)
    if kind == SPAN:
        return Span() if transform is None else Span(dropout, transform)
    return None


def write_task(family: str, spec: ModelSpec, usual: str) -> tuple[str, dict[str, Any]]:
    """What follows the family's name in `architectures`, and the keys that `read_task` reads. usual: where the spec has
    a head over the vocabulary and no task."""
    task = spec.task
    match task:
        case Classifier() | TokenClassifier():
            kind = CLASSES if isinstance(task, Classifier) else TOKENS
            return kind, {**write_labels(task.labels), "classifier_dropout": task.dropout}
        case Span():
            return SPAN, {"classifier_dropout": task.dropout}
        case Pooled():
            return BARE, {}
        case None:
            return (BARE if spec.head is None else usual), {}
        case _:
            raise DougongError(f"{family} cannot express a task head of {type(task).__name__}")


@final
@dataclass(frozen=True)
class DecoderHeads:
    """Of a decoder whose usual architecture is `usual`. One that is not known is a decoder's with the usual head, for
    many programs have names of their own.

    other: what stands before the names of the other heads, where that is not what stands before the usual one's
    """

    usual: str
    other: str | None = None

    @property
    def name(self) -> str:
        return self.other or next(self.usual.removesuffix(end) for end in ENDS if self.usual.endswith(end))

    def read(self, config: Reader, body: ModelSpec, given: Given) -> ModelSpec:
        names = config.raw("architectures") or [""]
        if not isinstance(names, list):
            raise config.wrong("architectures", names, "a list of names")
        kind = str(names[0]).removeprefix(self.name)
        if kind not in (BARE, CLASSES, TOKENS, SPAN):
            config.pass_over("classifier_dropout")
            return body
        dropout = read_dropout(config, config.share("hidden_dropout", 0.1)) if kind != CLASSES else 0.0
        task = read_task(config, kind, dropout, {"at": "last", "bias": False})
        return replace(body, head=None, task=task)

    def write(self, family: str, spec: ModelSpec) -> tuple[ModelSpec, str, dict[str, Any]]:
        kind, keys = write_task(family, spec, CAUSAL)
        body = replace(spec, head=spec.head or Head(tied=False), task=None)
        return body, self.usual if kind == CAUSAL else self.name + kind, keys


def decoder_task_keys(spec: ModelSpec, keys: KeyMap, span_prefix: str | None = None) -> KeyMap:
    """The names of a decoder's weights under the head that it has. `span_prefix` stands for the family's own before
    the body's names in models for question answering (an old habit of some families)."""
    if spec.task is None:
        return keys if spec.head is not None else _renamed(keys, "")
    span = isinstance(spec.task, Span)
    keys = keys if span_prefix is None or not span else _renamed(keys, span_prefix)
    output = "qa_outputs" if span else "score"
    kinds = ("weight", "bias")
    return replace(keys, rules=(*keys.rules, *(Rule(f"{output}.{kind}", (f"task.output.{kind}",)) for kind in kinds)))


def _renamed(keys: KeyMap, prefix: str) -> KeyMap:
    """With another prefix before the names of the body."""

    def new(name: str) -> str:
        return prefix + name.removeprefix(keys.prefix) if name.startswith(keys.prefix) else name

    def rules(those: Iterable[Rule]) -> tuple[Rule, ...]:
        return tuple(replace(rule, foreign=new(rule.foreign)) for rule in those)

    return replace(
        keys,
        rules=rules(keys.rules),
        instead=rules(keys.instead),
        constants=tuple(map(new, keys.constants)),
        derived={new(name): make for name, make in keys.derived.items()},
        prefix=prefix,
    )
