"""A spec made into a module: embedding, layers, norm, head; and the encoder before it where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from itertools import chain

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dougong.base import DougongError
from dougong.model.block import Block
from dougong.model.mtp import MTPLayers
from dougong.model.spec import ModelSpec
from dougong.parts.balance import AUXILIARY, LOADS, auxiliary
from dougong.parts.context import Context
from dougong.parts.cross_entropy import capped
from dougong.parts.embedding import Normalised, check_tokens
from dougong.parts.feedforward import dropped
from dougong.parts.heads import Classifier, Pooled
from dougong.parts.linear import Dense, Linear, Storage
from dougong.parts.routing import real_tokens
from dougong.parts.shapes import Bool, Float, Int
from dougong.parts.state import Cache, Stored


class Output:
    """What a forward pass gives. All but the hidden states is computed when first asked for: training never asks."""

    def __init__(
        self,
        hidden: Float[Tensor, "B T D"],
        model: Model,
        real: Bool[Tensor, "#B T"] | None = None,
        ctx: Context | None = None,
    ):
        self.hidden = hidden
        self._model = model
        self._real = real
        memo = {} if ctx is None else ctx.memo
        # Now, not when asked for: layers that are run again in the backward pass write again.
        self.auxiliary: Float[Tensor, ""] | None = None if ctx is None else auxiliary(ctx)
        self.loads: tuple[tuple[nn.Module, Tensor], ...] = tuple(memo.get(LOADS, ()))

    @cached_property
    def logits(self) -> Float[Tensor, "*shape"]:
        """Scores over the vocabulary (B, T, V). Of a model without such a head the scores of its task head: (B, labels)
        of a Classifier, (B, T, labels) of a TokenClassifier, (B, T, 2) of a Span."""
        spec = self._model.spec
        if spec.head is None and spec.task is not None and not isinstance(spec.task, Pooled):
            return self.task
        return self._model.logits(self.hidden)

    @cached_property
    def task(self) -> Float[Tensor, "*shape"]:
        """What the task head gives (parts/heads.py), whether or not there is a head over the vocabulary too."""
        if self._model.task is None:
            raise DougongError("this model has no head for a task; set spec.task")
        return self._model.task(self.hidden, self._real)

    @property
    def embedding(self) -> Float[Tensor, "B D"]:
        """The text's embedding, from a Pooled task head."""
        if not isinstance(self._model.spec.task, Pooled):
            raise DougongError("this model has no head that gives an embedding; set spec.task to Pooled(...)")
        return self.task

    @property
    def value(self) -> Float[Tensor, "*shape"]:
        """The one score of a text (B), or of every token (B, T), from a task head with one label."""
        if self.task.shape[-1] != 1 or isinstance(self._model.spec.task, Pooled):
            raise DougongError("this model's task head gives several numbers; see output.task")
        return self.task.squeeze(-1)


class Model(nn.Module):
    """Any of the shapes: decoder, encoder, encoder-decoder, prefix decoder. Parameters are created uninitialised:
    `model.init.initialise` or a checkpoint fills them."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.spec = spec
        self.embedding = spec.embedding.build(spec.vocab, spec.width)
        relative = spec.relative()
        self.relative: Storage | None = Dense(relative[0].buckets, relative[1]) if relative else None
        self.layers = nn.ModuleList(Block(layer, spec.width, spec.source_width) for layer in spec.layers)
        self.norm = spec.norm.build(spec.width) if spec.norm else None
        head = spec.head
        self.transform = head.transform.build(spec.width) if head and head.transform else None
        # Models without a head have none here either; `logits` says so in words.
        self.head: Linear = Linear(spec.width, spec.vocab, head.bias, axes=("embed", "vocab")) if head else None  # pyright: ignore[reportAttributeAccessIssue]
        if head and head.tied:
            self.head.storage = self.embedding.storage
        elif head and head.normalised:
            self.head.storage = Normalised(spec.vocab, spec.width)
        self.task = spec.task.build(spec.width) if spec.task else None
        self.mtp = MTPLayers(spec.mtp, spec.width) if spec.mtp else None
        self.encoder = Model(spec.encoder) if spec.encoder else None
        if self.encoder is not None and spec.shared_embedding:
            self.encoder.embedding.storage = self.embedding.storage
        self.recompute = False  # drop the layers' activations in training and compute them again when needed
        self.eval()  # dropout is for who trains: `model.train()`

    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        source: Int[Tensor, "B S"] | None = None,
        padding: Bool[Tensor, "B T"] | None = None,
        *,
        documents: Int[Tensor, "B T"] | None = None,
        positions: Int[Tensor, "#B T"] | None = None,
        source_padding: Bool[Tensor, "B S"] | None = None,
        types: Int[Tensor, "B T"] | None = None,
        both_ways: Bool[Tensor, "B T"] | None = None,
        coordinates: Int[
            Tensor,
            (
                3  # B T
            ),
        ]
        | None = None,
    ) -> Output:
        """Run whole rows of token ids.

        source     tokens for the encoder of an encoder-decoder, with their padding; other models refuse them
        padding    True at padding tokens, which no real token sees; on the left or on the right
        documents  tokens of one row that belong together share a number; they do not see the others
        positions  place of each token in its document (default: 0, 1, 2 ... in the row, not counting padding)
        types      kind of each token, for embeddings that tell kinds apart (default: all 0)
        both_ways  True at tokens that see each other whatever their order: the prefix of a prefix decoder
        coordinates  time, height and width of each token, for rotations with axes (default: its position, thrice)
        """
        self._check(tokens, source, documents, types)
        ctx = Context.of(tokens, padding, documents, positions, self.spec.causal)
        ctx.types, ctx.both_ways, ctx.coordinates = types, both_ways, coordinates
        if source is not None:
            assert self.encoder is not None
            encoded = self.encoder(source, padding=source_padding)
            ctx.source, ctx.source_padding = encoded.hidden, source_padding
            if encoded.auxiliary is not None:  # what the encoder's experts ask for goes on with the decoder's
                ctx.memo[AUXILIARY] = [(encoded.auxiliary, encoded.auxiliary.new_ones(()))]
            if self.training:
                ctx.memo[LOADS] = list(encoded.loads)
        return self.run(tokens, ctx)

    def _check(self, tokens: Tensor, source: Tensor | None, documents: Tensor | None, types: Tensor | None) -> None:
        if source is None and self.encoder is not None:
            raise DougongError("this model has an encoder and a decoder; give `source`, the tokens for its encoder")
        if source is not None and self.encoder is None:
            raise DougongError("this model has no encoder; leave `source` out")
        if source is not None and documents is not None:
            raise DougongError("packed documents would all attend to one source; give each document a row of its own")
        if documents is not None and isinstance(self.spec.task, (Classifier, Pooled)):
            raise DougongError("packed documents would share one score; give each document a row of its own")
        if types is not None and not self.spec.embedding.types:
            raise DougongError("this model does not tell types of tokens apart; leave `types` out")
        for name, each, vocab in (
            ("tokens", tokens, self.ids),
            ("source", source, self.encoder.ids if self.encoder else 0),
        ):
            if each is None:
                continue
            if each.ndim != 2 or each.dtype != torch.int64:
                raise DougongError(f"{name} are {tuple(each.shape)} {each.dtype}; expected (batch, tokens) of int64")
            if not torch.compiler.is_compiling():
                check_tokens(each, vocab)

    @property
    def ids(self) -> int:
        """Token ids that the embedding has a row for: the vocabulary's, and those of soft prompts behind them."""
        return self.spec.vocab + self.embedding.virtual

    def encode(self, source: Int[Tensor, "B S"], padding: Bool[Tensor, "B S"] | None = None) -> Float[Tensor, "B S D"]:
        """The encoder's hidden states of the source."""
        if self.encoder is None:
            raise DougongError("this model has no encoder")
        return self.encoder(source, padding=padding).hidden

    def run(self, tokens: Int[Tensor, "B T"], ctx: Context, cache: Stored | None = None) -> Output:
        """Run tokens in the given context, reading and extending the caller's state where there is one."""
        if self.relative is not None:
            ctx.relative = self.relative.rows
        ctx.memo["tokens"] = tokens  # for routers that go by them
        if self.training:
            ctx.memo.setdefault(LOADS, [])
        x = self.embedding(tokens, ctx)
        states = iter(cache.layers) if cache is not None else None
        for layer in self.layers:
            if states is not None:
                x = layer(x, ctx, (next(states), next(states), next(states)))
            elif self.recompute and torch.is_grad_enabled():
                x = checkpoint(self._apart, layer, x, ctx, use_reentrant=False)
                assert isinstance(x, Tensor)
            else:
                x = layer(x, ctx)
        x = x if self.norm is None else self.norm(x)
        return Output(dropped(x, self.spec.dropout, self.training), self, real_tokens(ctx), ctx)

    def _apart(self, layer: nn.Module, x: Tensor, ctx: Context) -> Tensor:
        """A layer that is run again in the backward pass. Biases of relative positions have a gradient: the second run
        must make them anew, as the first did, and not find them in the context's memo."""
        if self.relative is None:
            return layer(x, ctx)
        ctx.memo.setdefault(AUXILIARY, [])
        return layer(x, replace(ctx, memo=dict(ctx.memo)))

    def features(self, hidden: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        """What the head's Linear reads: hidden states after the head's transform and scale."""
        if self.spec.head is None:
            raise DougongError("this model has no head over the vocabulary; it gives hidden states (output.hidden)")
        x = hidden if self.transform is None else self.transform(hidden)
        return x if self.spec.head.scale == 1 else x * self.spec.head.scale

    def logits(self, hidden: Float[Tensor, "*N D"]) -> Float[Tensor, "*N V"]:
        """Scores over the vocabulary from hidden states."""
        features = self.features(hidden)
        assert self.spec.head is not None
        return capped(self.head(features), self.spec.head.softcap)

    def cache(self, batch: int, capacity: int) -> Cache:
        """An empty state for `batch` sequences of at most `capacity` tokens, in the model's type and device."""
        if not self.spec.causal:
            raise DougongError("this model's tokens see the whole text, so it cannot read it in steps; give whole rows")
        return Cache(list(self.spec.state_slots()), batch, capacity, self.like.dtype, self.like.device)

    @property
    def like(self) -> Tensor:
        """Some tensor of the type and on the device that the model computes in. A model whose matrices are all
        quantised may have no parameter that could say so."""
        return next(each for each in chain(self.parameters(), self.buffers()) if each.is_floating_point())

    def linears(self) -> Iterator[tuple[str, Linear]]:
        """Every Linear with its path: what adapters, quantization and sharding walk over."""
        for name, module in self.named_modules():
            if isinstance(module, Linear):
                yield name, module

    def weights(self) -> dict[str, nn.Parameter]:
        """Parameters by their plain names (`layers.0.mixer.q.weight`), tied ones once, under the embedding's name."""
        return {name.replace(".storage.", "."): parameter for name, parameter in self.named_parameters()}
