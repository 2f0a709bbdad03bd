"""Pretraining rows: fixed lengths cut from the stream of shuffled documents, so that no token is wasted.

Each document is read as "start, text" and predicted as "text, end": every stored token is a target once an epoch, a
document's last target is its own end-of-document token, and no place predicts the first token of the next document.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dougong.base import DougongError
from dougong.data.batch import IGNORED, Batch, batch_from
from dougong.data.loader import LoaderState, iterate, permutation
from dougong.data.tokens import TokenStore


class StreamRows:
    """Rows of `length` cut from the documents of a store, reshuffled for every epoch by (seed, epoch).

    The last row of an epoch is filled up from that epoch's beginning. A document that is cut goes on in another row as
    a document of its own: its positions start at 0 there, since what came before cannot be seen.
    """

    def __init__(self, store: TokenStore, length: int, seed: int, masked: bool) -> None:
        if length < 1:
            raise DougongError(f"length is {length}; expected at least 1 token a row")
        if not store.tokens:
            raise DougongError("the store has no tokens to cut rows from; encode some documents")
        self.store = store
        self.length = length
        self.seed = seed
        self.masked = masked
        self._streams: dict[int, _Stream] = {}

    @property
    def count(self) -> int:
        """Rows in an epoch: enough to hold every token."""
        return -(-self.store.tokens // self.length)

    @property
    def identity(self) -> str:
        """The data and the layout, in words."""
        masked = "masked" if self.masked else "unmasked"
        return f"{self.store.documents} documents of {self.store.tokens} tokens in {masked} rows of {self.length}"

    def build(self, places: list[tuple[int, int]]) -> Batch:
        """(rows, length) each: the rows at (epoch, row)."""
        parts = []
        for epoch in sorted({epoch for epoch, _ in places}):
            at = np.array([row for where, row in places if where == epoch], dtype=np.int64)
            places_in_stream = at[:, None] * self.length + np.arange(self.length)
            parts.append(self._stream(epoch).read(places_in_stream % self.store.tokens))
        tokens, targets, first = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return _rows(tokens, targets, first, self.masked)

    def _stream(self, epoch: int) -> _Stream:
        if epoch not in self._streams:
            # Batches move forward: only the epoch before may still be needed, by a batch that reaches over both.
            self._streams = {known: stream for known, stream in self._streams.items() if known == epoch - 1}
            self._streams[epoch] = _Stream(self.store, permutation(self.store.documents, self.seed, epoch, 0))
        return self._streams[epoch]


class _Stream:
    """The documents of a store one after another in a given order, addressed by place."""

    def __init__(self, store: TokenStore, order: np.ndarray) -> None:
        lengths = np.diff(store.starts)[order]
        self.store = store
        self.ends = np.cumsum(lengths)
        # What to add to a place in this stream to find the token in the store.
        self.shift = store.starts[:-1][order] - (self.ends - lengths)
        self.begins = self.ends - lengths

    def read(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(tokens, targets, whether a document starts here), each of the shape of `places`."""
        document = np.searchsorted(self.ends, places, side="right")
        first = places == self.begins[document]
        at = places + self.shift[document]
        targets = self.store.ids[at].astype(np.int64)
        before = self.store.ids[np.where(first, at, at - 1)].astype(np.int64)
        return np.where(first, self.store.start_id, before), targets, first


def _rows(tokens: np.ndarray, targets: np.ndarray, first: np.ndarray, masked: bool) -> Batch:
    column = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    if not masked:
        return batch_from(tokens, targets, column, None)
    begins = first | (column == 0)
    positions = column - np.maximum.accumulate(np.where(begins, column, 0), axis=1)
    return batch_from(tokens, targets, positions, np.cumsum(begins, axis=1) - 1)


def batches(
    store: TokenStore,
    batch_size: int,
    length: int,
    *,
    seed: int = 0,
    state: LoaderState | None = None,
    rank: int = 0,
    world: int = 1,
    masked: bool = True,
) -> Iterator[tuple[Batch, LoaderState]]:
    """Yield (batch, state) for pretraining, for ever: batches of (batch_size / world, length), rows without padding.

    `masked=False` leaves out document numbers and lets positions run through the row, as many pretraining runs do.
    See `loader.iterate` for the order, the ranks and resuming. Raises DougongError on a wrong size or a foreign state.
    """
    return iterate(StreamRows(store, length, seed, masked), batch_size, seed=seed, state=state, rank=rank, world=world)


def evaluation_batches(store: TokenStore, batch_size: int, length: int, *, overlap: int = 0) -> Iterator[Batch]:
    """Yield batches of (at most batch_size, length) in which every token is a target once, in order.

    Rows begin anew inside long documents; with `overlap` each row first re-reads that many tokens without loss, so that
    targets have at least that much context. The last row is filled with places without loss, which are a document of
    their own.
    """
    if not 0 <= overlap < length:
        raise DougongError(f"overlap is {overlap}; expected 0 to {length - 1}, less than the row's length")
    stream = _Stream(store, np.arange(store.documents))
    stride = length - overlap
    # The first row has nothing to re-read, so it reaches further than the stride of the others.
    starts = np.concatenate([[0], np.arange(length, store.tokens, stride) - overlap])
    for at in range(0, len(starts), batch_size):
        begin = starts[at : at + batch_size, None]
        places = begin + np.arange(length)
        beyond = places >= store.tokens
        tokens, targets, first = stream.read(np.minimum(places, store.tokens - 1))
        reread = (begin > 0) & (np.arange(length) < overlap)
        filled = np.where(beyond | reread, IGNORED, targets)
        # The first place beyond the end opens the filling as one more document.
        opens = beyond & (places == store.tokens)
        yield _rows(np.where(beyond, store.start_id, tokens), filled, np.where(beyond, opens, first), masked=True)
