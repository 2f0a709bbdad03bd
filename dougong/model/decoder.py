"""A spec made into a module: embedding, layers, norm, head."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dougong.base import DougongError
from dougong.model.block import Block
from dougong.model.spec import ModelSpec
from dougong.parts.context import Context
from dougong.parts.embedding import check_tokens
from dougong.parts.linear import Linear
from dougong.parts.shapes import Bool, Float, Int
from dougong.parts.state import Cache


class Output:
    """What a forward pass gives. The logits are computed when first asked for: training never asks."""

    def __init__(self, hidden: Float[Tensor, "B T D"], head: Linear):
        self.hidden = hidden
        self._head = head

    @cached_property
    def logits(self) -> Float[Tensor, "B T V"]:
        return self._head(self.hidden)


class Model(nn.Module):
    """A decoder. Parameters are created uninitialised: `model.init.initialise` or a checkpoint fills them."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.spec = spec
        self.embedding = spec.embedding.build(spec.vocab, spec.width)
        self.layers = nn.ModuleList(Block(layer, spec.width) for layer in spec.layers)
        self.norm = spec.norm.build(spec.width) if spec.norm else None
        self.head = Linear(spec.width, spec.vocab, spec.head.bias, axes=("embed", "vocab"))
        if spec.head.tied:
            self.head.storage = self.embedding.storage
        self.recompute = False  # drop the layers' activations in training and compute them again when needed

    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        source: Int[Tensor, "B S"] | None = None,
        padding: Bool[Tensor, "B T"] | None = None,
        *,
        documents: Int[Tensor, "B T"] | None = None,
        positions: Int[Tensor, "#B T"] | None = None,
    ) -> Output:
        """Run whole rows of token ids.

        source     tokens for the encoder of an encoder-decoder; a decoder has none and refuses them
        padding    True at padding tokens, which no real token sees; on the left or on the right
        documents  tokens of one row that belong together share a number; they do not see the others
        positions  place of each token in its document (default: 0, 1, 2 ... in the row, not counting padding)
        """
        if source is not None:
            raise DougongError("this model is a decoder without an encoder; leave `source` out")
        if tokens.ndim != 2 or tokens.dtype != torch.int64:
            raise DougongError(f"tokens are {tuple(tokens.shape)} {tokens.dtype}; expected (batch, tokens) of int64")
        if not torch.compiler.is_compiling():
            check_tokens(tokens, self.spec.vocab)
        return self.run(tokens, Context.of(tokens, padding, documents, positions))

    def run(self, tokens: Int[Tensor, "B T"], ctx: Context, cache: Cache | None = None) -> Output:
        """Run tokens in the given context, reading and extending the caller's state where there is one."""
        x = self.embedding(tokens, ctx)
        states = iter(cache.layers) if cache is not None else None
        for layer in self.layers:
            if states is not None:
                x = layer(x, ctx, (next(states), next(states)))
            elif self.recompute and torch.is_grad_enabled():
                x = checkpoint(layer, x, ctx, use_reentrant=False)
                assert isinstance(x, Tensor)
            else:
                x = layer(x, ctx)
        return Output(x if self.norm is None else self.norm(x), self.head)

    def cache(self, batch: int, capacity: int) -> Cache:
        """An empty state for `batch` sequences of at most `capacity` tokens, in the model's type and device."""
        weight = next(self.parameters())
        return Cache(list(self.spec.state_slots()), batch, capacity, weight.dtype, weight.device)

    def linears(self) -> Iterator[tuple[str, Linear]]:
        """Every Linear with its path: what adapters, quantization and sharding walk over."""
        for name, module in self.named_modules():
            if isinstance(module, Linear):
                yield name, module

    def weights(self) -> dict[str, nn.Parameter]:
        """Parameters by their plain names (`layers.0.mixer.q.weight`), tied ones once, under the embedding's name."""
        return {name.replace(".storage.", "."): parameter for name, parameter in self.named_parameters()}
