"""Token embeddings and the head that reads tokens back out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dougong.base import DougongError
from dougong.parts.context import Context
from dougong.parts.feedforward import ACTIVATIONS, Activation, dropped
from dougong.parts.linear import Dense, Linear, Storage
from dougong.parts.norm import Norm
from dougong.parts.position import NOWHERE, Learned, Sinusoidal
from dougong.parts.shapes import Float, Int


@dataclass(frozen=True)
class Embedding:
    """norm(factor * row of the token + row of its position + row of its type), each only where asked for.

    types: kinds of tokens, such as first and second sentence (Devlin et al. 2018).
    """

    position: Learned | Sinusoidal | None = None
    types: int = 0
    norm: Norm | None = None
    factor: float = 1.0
    dropout: float = 0.0

    def build(self, vocab: int, width: int) -> EmbeddingLayer:
        return EmbeddingLayer(self, vocab, width)

    def parameters(self, vocab: int, width: int) -> int:
        rows = vocab + (self.position or NOWHERE).table() + self.types
        return width * rows + (self.norm.parameters(width) if self.norm else 0)


@runtime_checkable
class EmbeddingAdapter(Protocol):
    """A change to the rows that an embedding gives: `x` is what was found so far."""

    def __call__(self, layer: EmbeddingLayer, tokens: Tensor, x: Tensor) -> Tensor: ...


class EmbeddingLayer(nn.Module):
    def __init__(self, spec: Embedding, vocab: int, width: int):
        super().__init__()
        self.spec = spec
        self.vocab = vocab
        self.kind = spec.position or NOWHERE
        self.storage: Storage = Dense(vocab, width)
        self.position: Storage | None = Dense(self.kind.table(), width) if self.kind.table() else None
        self.types: Storage | None = Dense(spec.types, width) if spec.types else None
        self.norm = spec.norm.build(width) if spec.norm else None
        self.virtual = 0  # ids from `vocab` on that an adapter has vectors for: soft prompts
        self.adapters = nn.ModuleDict()

    def forward(self, tokens: Int[Tensor, "B T"], ctx: Context) -> Float[Tensor, "B T D"]:
        x = self.storage.rows(tokens.clamp(max=self.vocab - 1) if self.virtual else tokens)
        for adapter in self.adapters.values():
            x = adapter(self, tokens, x)
        if self.spec.factor != 1:
            x = x * torch.tensor(self.spec.factor, dtype=x.dtype)  # rounded as the weights are
        if self.types is not None:
            x = x + self.types.rows(torch.zeros_like(tokens) if ctx.types is None else ctx.types)
        x = self.kind.embed(x, ctx, self.storage.rows if self.position is None else self.position.rows)
        x = x if self.norm is None else self.norm(x)
        return dropped(x, self.spec.dropout, self.training)

    @property
    def weight(self) -> Float[Tensor, "V D"]:
        return self.storage.dense()


@dataclass(frozen=True)
class Transform:
    """norm(act(Linear(x))) before the head (Devlin et al. 2018); no norm: BERT's pooler."""

    activation: Activation
    norm: Norm | None
    bias: bool = True

    def build(self, width: int) -> TransformLayer:
        return TransformLayer(self, width)

    def parameters(self, width: int) -> int:
        return width * width + width * self.bias + (self.norm.parameters(width) if self.norm else 0)


class TransformLayer(nn.Module):
    def __init__(self, spec: Transform, width: int):
        super().__init__()
        self.spec = spec
        self.dense = Linear(width, width, spec.bias)
        self.norm = spec.norm.build(width) if spec.norm else None

    def forward(self, x: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        x = ACTIVATIONS[self.spec.activation](self.dense(x))
        return x if self.norm is None else self.norm(x)


class Normalised(Storage):
    """A matrix whose rows have length 1 whenever it is used (Baichuan 2's NormHead)."""

    def __init__(self, out_features: int, in_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))

    def matmul(self, x: Float[Tensor, "*N i"], bias: Tensor | None) -> Float[Tensor, "*N o"]:
        return F.linear(x, self.dense(), bias)

    def rows(self, ids: Int[Tensor, "*N"]) -> Float[Tensor, "*N i"]:
        return F.normalize(F.embedding(ids, self.weight), dim=-1)

    def dense(self) -> Float[Tensor, "o i"]:
        return F.normalize(self.weight, dim=-1)


@dataclass(frozen=True)
class Head:
    """Logits from the last hidden states: a Linear onto the vocabulary, whose weight is the embedding's when tied.

    scale      factor on the hidden states before it
    softcap    logits become cap * tanh(logits / cap)
    normalised rows of the weight are brought to length 1
    transform  what stands between the hidden states and the head
    """

    tied: bool = True
    bias: bool = False
    scale: float = 1.0
    softcap: float | None = None
    normalised: bool = False
    transform: Transform | None = None

    def parameters(self, vocab: int, width: int) -> int:
        before = self.transform.parameters(width) if self.transform else 0
        return before + (0 if self.tied else vocab * width) + vocab * self.bias

    def flops(self, vocab: int, width: int) -> int:
        """Operations a token, two a multiply-add."""
        return 2 * vocab * width + (2 * width * width if self.transform else 0)


def check_tokens(tokens: Int[Tensor, "B T"], vocab: int) -> None:
    """Raise DougongError if an id lies outside the vocabulary, which an embedding lookup would report obscurely."""
    if tokens.numel() and (int(tokens.min()) < 0 or int(tokens.max()) >= vocab):
        bad = int(tokens.max()) if int(tokens.max()) >= vocab else int(tokens.min())
        raise DougongError(f"token id {bad} lies outside the model's vocabulary of {vocab}; is this its tokenizer?")
