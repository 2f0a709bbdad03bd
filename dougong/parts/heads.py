"""What may stand on the hidden states instead of, or beside, the head over the vocabulary: heads for tasks.

A task head sees the hidden states (B, T, D) and which tokens are real. Over the whole text:
    Classifier        (B, labels)     sentiment, topics; with one label a regression, a reward, a reranker's score
    Pooled            (B, D)          the embedding of a text
and over every token:
    TokenClassifier   (B, T, labels)  names and parts of speech; with one label the value of each state
    Span              (B, T, 2)       where an answer starts and where it ends
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dougong.base import DougongError
from dougong.parts.embedding import Transform
from dougong.parts.linear import Linear
from dougong.parts.shapes import Bool, Float

At = Literal["first", "last", "mean"]


def pool(
    hidden: Float[Tensor, "B T D"], real: Bool[Tensor, "#B T"] | None = None, at: At = "first"
) -> Float[Tensor, "B D"]:
    """One vector a row: its first or last real token's, or the mean over the real ones; padding on either side."""
    batch, tokens, _ = hidden.shape
    if real is None:
        return hidden.mean(1) if at == "mean" else hidden[:, 0 if at == "first" else -1]
    real = real.expand(batch, tokens)
    if at == "mean":
        weights = real.to(hidden.dtype)[..., None]
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
    places = torch.arange(tokens, device=hidden.device)
    # argmax gives the first of equals: of the real tokens for "first"; the highest place for "last".
    chosen = real.int().argmax(-1) if at == "first" else torch.where(real, places, -1).argmax(-1)
    return hidden[torch.arange(batch, device=hidden.device), chosen]


@dataclass(frozen=True)
class Classifier:
    """W dropout(transform(pool(hidden))) + b: a score for each label of the whole text.

    at            whose hidden state speaks for the text: the first token's (BERT's [CLS]), the last's, the mean
    transform     what comes between (BERT's pooler, RoBERTa's dense layer: tanh(W x + b))
    first_dropout the share dropped before the transform, dropout: after it
    """

    tagged: ClassVar[bool] = True

    labels: tuple[str, ...]
    at: At = "first"
    transform: Transform | None = None
    bias: bool = True
    dropout: float = 0.0
    first_dropout: float = 0.0

    def __post_init__(self) -> None:
        _check(self.labels)

    def build(self, width: int) -> ClassifierLayer:
        return ClassifierLayer(self, width)

    def parameters(self, width: int) -> int:
        before = self.transform.parameters(width) if self.transform else 0
        return before + len(self.labels) * (width + self.bias)


class ClassifierLayer(nn.Module):
    def __init__(self, spec: Classifier, width: int):
        super().__init__()
        self.spec = spec
        self.transform = spec.transform.build(width) if spec.transform else None
        self.output = Linear(width, len(spec.labels), spec.bias, axes=("embed", "labels"))

    def forward(
        self, hidden: Float[Tensor, "B T D"], real: Bool[Tensor, "#B T"] | None = None
    ) -> Float[Tensor, "B labels"]:
        x = pool(hidden, real, self.spec.at)
        x = F.dropout(x, self.spec.first_dropout, self.training)
        x = x if self.transform is None else self.transform(x)
        return self.output(F.dropout(x, self.spec.dropout, self.training))


@dataclass(frozen=True)
class TokenClassifier:
    """W dropout(transform(hidden)) + b: a score for each label of every token."""

    tagged: ClassVar[bool] = True

    labels: tuple[str, ...]
    bias: bool = True
    dropout: float = 0.0
    transform: Transform | None = None

    def __post_init__(self) -> None:
        _check(self.labels)

    def build(self, width: int) -> EachTokenLayer:
        return EachTokenLayer(width, len(self.labels), self.bias, self.dropout, self.transform)

    def parameters(self, width: int) -> int:
        before = self.transform.parameters(width) if self.transform else 0
        return before + len(self.labels) * (width + self.bias)


@dataclass(frozen=True)
class Span:
    """Two scores a token: that the span begins there, and that it ends there (SQuAD; Devlin et al. 2018)."""

    tagged: ClassVar[bool] = True

    dropout: float = 0.0
    transform: Transform | None = None

    def build(self, width: int) -> EachTokenLayer:
        return EachTokenLayer(width, 2, True, self.dropout, self.transform)

    def parameters(self, width: int) -> int:
        return (self.transform.parameters(width) if self.transform else 0) + 2 * (width + 1)


class EachTokenLayer(nn.Module):
    def __init__(self, width: int, scores: int, bias: bool, dropout: float, transform: Transform | None):
        super().__init__()
        self.dropout = dropout
        self.transform = transform.build(width) if transform else None
        self.output = Linear(width, scores, bias, axes=("embed", "labels"))

    def forward(
        self, hidden: Float[Tensor, "B T D"], real: Bool[Tensor, "#B T"] | None = None
    ) -> Float[Tensor, "B T labels"]:
        x = hidden if self.transform is None else self.transform(hidden)
        return self.output(F.dropout(x, self.dropout, self.training))


@dataclass(frozen=True)
class Pooled:
    """transform(pool(hidden)), brought to length 1 where `normalise` says so: the embedding of a text."""

    tagged: ClassVar[bool] = True

    at: At = "mean"
    transform: Transform | None = None
    normalise: bool = False

    def build(self, width: int) -> PooledLayer:
        return PooledLayer(self, width)

    def parameters(self, width: int) -> int:
        return self.transform.parameters(width) if self.transform else 0


class PooledLayer(nn.Module):
    def __init__(self, spec: Pooled, width: int):
        super().__init__()
        self.spec = spec
        self.transform = spec.transform.build(width) if spec.transform else None

    def forward(self, hidden: Float[Tensor, "B T D"], real: Bool[Tensor, "#B T"] | None = None) -> Float[Tensor, "B D"]:
        x = pool(hidden, real, self.spec.at)
        x = x if self.transform is None else self.transform(x)
        return F.normalize(x, dim=-1) if self.spec.normalise else x


Task = Classifier | TokenClassifier | Span | Pooled


def reward() -> Classifier:
    """One score for a text, read at its last token: a reward model (Stiennon et al. 2020)."""
    return Classifier(("reward",), at="last", bias=False)


def value() -> TokenClassifier:
    """One score a token: the value function of PPO (Schulman et al. 2017)."""
    return TokenClassifier(("value",))


def _check(labels: tuple[str, ...]) -> None:
    if not labels:
        raise DougongError("a head has no labels; give it at least one")
