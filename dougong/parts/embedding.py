"""Token embeddings and the head that reads tokens back out."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from dougong.base import DougongError
from dougong.parts.context import Context
from dougong.parts.linear import Dense, Storage
from dougong.parts.position import NOWHERE, Learned
from dougong.parts.shapes import Float, Int


@dataclass(frozen=True)
class Embedding:
    """A row for each token, plus a trained row for each position where `position` says so."""

    position: Learned | None = None

    def build(self, vocab: int, width: int) -> EmbeddingLayer:
        return EmbeddingLayer(self, vocab, width)

    def parameters(self, vocab: int, width: int) -> int:
        return width * (vocab + (self.position or NOWHERE).table())


class EmbeddingLayer(nn.Module):
    def __init__(self, spec: Embedding, vocab: int, width: int):
        super().__init__()
        self.vocab = vocab
        self.kind = spec.position or NOWHERE
        self.storage: Storage = Dense(vocab, width)
        self.position: Storage | None = Dense(self.kind.table(), width) if self.kind.table() else None

    def forward(self, tokens: Int[Tensor, "B T"], ctx: Context) -> Float[Tensor, "B T D"]:
        x = self.storage.rows(tokens)
        return x if self.position is None else self.kind.embed(x, ctx, self.position.rows)

    @property
    def weight(self) -> Float[Tensor, "V D"]:
        return self.storage.dense()


@dataclass(frozen=True)
class Head:
    """Logits from the last hidden states: a Linear onto the vocabulary, whose weight is the embedding's when tied."""

    tied: bool = True
    bias: bool = False

    def parameters(self, vocab: int, width: int) -> int:
        return (0 if self.tied else vocab * width) + vocab * self.bias


def check_tokens(tokens: Int[Tensor, "B T"], vocab: int) -> None:
    """Raise DougongError if an id lies outside the vocabulary, which an embedding lookup would report obscurely."""
    if tokens.numel() and (int(tokens.min()) < 0 or int(tokens.max()) >= vocab):
        bad = int(tokens.max()) if int(tokens.max()) >= vocab else int(tokens.min())
        raise DougongError(f"token id {bad} lies outside the model's vocabulary of {vocab}; is this its tokenizer?")
