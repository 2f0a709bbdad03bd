"""What a sublayer may know about the tokens in its hands: where they stand, and whom they may see.

Positions, documents and masks are explicit, made once by whoever runs the model and shared by all layers. Modules never
count positions. Anything that several layers derive from them (a mask, a table of angles) is kept in `memo`, so that
it is computed once a forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from dougong.parts.shapes import Bool, Float, Int

T = TypeVar("T")


@dataclass
class Context:
    """The surroundings of B x T query tokens and of the S tokens whose keys they may attend to.

    positions       (B or 1, T) int64: place of each query token in its document, from 0
    key_positions   (B or 1, S) int64: place of each key; None when the keys are the queries' own tokens
    documents       (B, T) int64: tokens see each other only within one document; None when a row is one document
    causal          queries see no later position
    lengths         (B) tokens that each row's text has with these; None: its last position says so
    keys_exist      (B, S): False where a key is padding that nobody may see, as in the source of cross-attention
    both_ways       (B, T): marked tokens of a document see each other whatever their order (a prefix, an image)
    source          (B, S, D) what cross-attention reads, and source_padding (B, S), True at its padding
    source_seen     (B, T, S): the source tokens that each token reads, besides padding, at least one each; None: all
    pairs           (B, T, S): False where a query may not see a key, whatever else holds; None: no such rule
    coordinates     (3, B, T) int64: each token's time, height and width, for positions with axes (M-RoPE); None: its
                    position on all three
    types           (B, T) int64: kind of each token, such as first or second sentence; None: all 0
    relative        rows of the model's table of relative position biases, which its attention layers share
    counts          (B) how many of the T tokens are real in a step with a state, where padding stands at the end of a
                    row; None: all of them. A recurrence must not take padding into its state.
    """

    positions: Int[Tensor, "#B T"]
    key_positions: Int[Tensor, "#B S"] | None = None
    documents: Int[Tensor, "B T"] | None = None
    causal: bool = True
    lengths: Int[Tensor, " B"] | None = None
    counts: Int[Tensor, " B"] | None = None
    keys_exist: Bool[Tensor, "B S"] | None = None
    both_ways: Bool[Tensor, "B T"] | None = None
    source: Float[Tensor, "B S D"] | None = None
    source_padding: Bool[Tensor, "B S"] | None = None
    source_seen: Bool[Tensor, "#B T S"] | None = None
    pairs: Bool[Tensor, "#B T S"] | None = None
    coordinates: (
        Int[
            Tensor,
            (
                3  # B T
            ),
        ]
        | None
    ) = None
    types: Int[Tensor, "B T"] | None = None
    relative: Callable[[Tensor], Tensor] | None = None
    memo: dict[Hashable, Any] = field(default_factory=dict)

    @staticmethod
    def of(
        tokens: Int[Tensor, "B T"],
        padding: Bool[Tensor, "B T"] | None = None,
        documents: Int[Tensor, "B T"] | None = None,
        positions: Int[Tensor, "#B T"] | None = None,
        causal: bool = True,
    ) -> Context:
        """The context of whole rows without a state.

        `padding` is True at padding tokens: they get a document of their own (-1), so no real token sees them and
        none of their rows is empty, and the positions of real tokens start at 0 behind left padding.
        """
        if padding is not None:
            documents = torch.zeros_like(tokens) if documents is None else documents
            documents = documents.masked_fill(padding, -1)
            if positions is None:
                positions = ((~padding).cumsum(-1) - 1).clamp(min=0)
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        return Context(positions=positions, documents=documents, causal=causal)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """`make()`, computed at the first call for `key` and remembered for the rest of the forward pass."""
        if key not in self.memo:
            self.memo[key] = make()
        return self.memo[key]

    @property
    def simple(self) -> bool:
        """Every row is one document from position 0 whose keys are its own tokens: plain causal or full attention."""
        return self.key_positions is None and self.documents is None and self.both_ways is None and self.pairs is None

    def real(self) -> Bool[Tensor, "B T"] | None:
        """Which tokens of a step with a state are no padding; None: all of them."""
        if self.counts is None:
            return None
        return torch.arange(self.positions.shape[1], device=self.counts.device) < self.counts[:, None]

    def text_lengths(self) -> Int[Tensor, "#B #T"]:
        """Tokens of the text that each token belongs to: its document where a row has several, else its row."""
        if self.lengths is not None:
            return self.lengths[:, None]
        if self.documents is None:
            return self.positions.max(-1, keepdim=True).values + 1
        same = self.documents[:, :, None] == self.documents[:, None, :]
        places = self.positions.expand(self.documents.shape)[:, None, :]
        return torch.where(same, places, 0).max(-1).values + 1

    def across(self) -> Context:
        """The context of cross-attention: the same queries, the source's tokens as keys, visible but for padding and
        what `source_seen` leaves out."""
        assert self.source is not None
        tokens = self.source.shape[1]
        padding, device = self.source_padding, self.source.device

        def make() -> Context:
            exist = None if padding is None else ~padding
            keys = torch.arange(tokens, device=device)[None]
            return Context(self.positions, key_positions=keys, causal=False, keys_exist=exist, pairs=self.source_seen)

        return self.once("across", make)

    def distances(self) -> Int[Tensor, "#B T S"]:
        """Query position minus key position."""
        keys = self.positions if self.key_positions is None else self.key_positions
        return self.positions[:, :, None] - keys[:, None, :]

    def visible(self, window: int | None = None, chunk: int | None = None) -> Bool[Tensor, "#B T S"] | None:
        """Which keys each query sees; None when the answer is all of them, or all up to its own place (`simple`).

        A window of w lets a query see itself and the w - 1 tokens before it (and after it, where not causal). A chunk
        of c cuts each text into pieces of c tokens that do not see each other.
        """
        length = self.positions.shape[1]
        if self.simple and (window is None or window >= length) and (chunk is None or chunk >= length):
            return None
        return self.once(("visible", window, chunk), lambda: self._visible(window, chunk))

    def mask(self, window: int | None = None, chunk: int | None = None) -> Bool[Tensor, "#B T S"]:
        """`visible`, told in full where that says None."""
        found = self.visible(window, chunk)
        return self.once("mask", lambda: self._visible(None, None)) if found is None else found

    def _visible(self, window: int | None, chunk: int | None) -> Tensor:
        distance = self.distances()
        if self.documents is not None and self.causal and self.key_positions is None:
            # Within packed rows the order of tokens in the row is the order in each document.
            place = torch.arange(self.positions.shape[1], device=self.positions.device)
            distance = (place[:, None] - place)[None]
        mask = distance >= 0 if self.causal else torch.ones_like(distance, dtype=torch.bool)
        if self.both_ways is not None and self.key_positions is None:
            mask = mask | (self.both_ways[:, :, None] & self.both_ways[:, None, :])
        if window is not None:
            mask = mask & (distance < window)
            if not self.causal:
                mask = mask & (distance > -window)
        if chunk is not None:
            keys = self.positions if self.key_positions is None else self.key_positions
            mask = mask & (self.positions[:, :, None] // chunk == keys[:, None, :] // chunk)
        if self.documents is not None and self.key_positions is None:
            mask = mask & (self.documents[:, :, None] == self.documents[:, None, :])
        if self.keys_exist is not None:
            mask = mask & self.keys_exist[:, None, :]
        return mask if self.pairs is None else mask & self.pairs

    def bias(
        self, window: int | None, dtype: torch.dtype, chunk: int | None = None
    ) -> Float[Tensor, "#B 1 T S"] | None:
        """`visible` as the number added to the attention scores: 0 where seen, minus infinity where not."""
        mask = self.visible(window, chunk)
        if mask is None:
            return None

        def make() -> Tensor:
            zero = torch.zeros((), dtype=dtype, device=mask.device)
            return torch.where(mask[:, None], zero, zero - math.inf)

        return self.once(("bias", window, chunk, dtype), make)
