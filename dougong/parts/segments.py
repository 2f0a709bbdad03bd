"""Rows cut into their documents, for sublayers that carry a state along the row.

Attention tells packed documents apart by a mask. A recurrence cannot: so each document gets a row of its own, real
tokens first, is run from a fresh state, and goes back to its places. Padding, on either side, is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.parts.context import Context
from dougong.parts.shapes import Bool, Float, Int


def check_one_way(ctx: Context) -> None:
    """Raise DougongError where tokens are to see later ones, which what carries a state along the row cannot do."""
    if ctx.both_ways is not None or not ctx.causal:
        raise DougongError(
            "a recurrence reads a text from left to right: its tokens cannot see later ones (both_ways, or a context "
            "that is not causal); use a model of attention alone"
        )


@dataclass(frozen=True)
class Segments:
    """Where the tokens of B x T rows stand when each of the N documents has a row of L places.

    source  (N, L) int64: index of the token in the flattened rows (0 at places past the document's end)
    real    (N, L): the places that hold a token
    """

    source: Int[Tensor, "N L"]
    real: Bool[Tensor, "N L"]

    @staticmethod
    def of(ctx: Context) -> Segments | None:
        """The context's documents; None when every row is one document without padding, and can be run as it is."""
        documents = ctx.documents
        return None if documents is None else ctx.once("segments", lambda: _cut(documents))

    def split(self, x: Float[Tensor, "B T *D"]) -> Float[Tensor, "N L *D"]:
        """Rows of documents; what stands past a document's end is 0."""
        rows = x.flatten(0, 1)[self.source]
        return rows.masked_fill(~self.real.view(*self.real.shape, *(1,) * (rows.ndim - 2)), 0)

    def join(self, rows: Float[Tensor, "N L *D"], like: Float[Tensor, "B T *E"]) -> Float[Tensor, "B T *D"]:
        """Back to the places they came from; padding gets 0."""
        flat = rows.new_zeros(like.shape[0] * like.shape[1], *rows.shape[2:])
        flat = flat.index_put((self.source[self.real],), rows[self.real])
        return flat.view(*like.shape[:2], *rows.shape[2:])


def _cut(documents: Tensor) -> Segments:
    """Documents are runs of equal numbers; -1 is padding."""
    batch, tokens = documents.shape
    fresh = torch.ones_like(documents, dtype=torch.bool)
    fresh[:, 1:] = documents[:, 1:] != documents[:, :-1]
    number = fresh.flatten().cumsum(0) - 1  # of the run that each token belongs to
    place = torch.arange(batch * tokens, device=documents.device)
    start = place[fresh.flatten()]
    within = place - start[number]
    kept = documents.flatten() >= 0
    _, row = number[kept].unique(return_inverse=True)
    count = int(row.max()) + 1 if len(row) else 0
    longest = int(within[kept].max()) + 1 if len(row) else 0
    source = torch.zeros(count, longest, dtype=torch.int64, device=documents.device)
    real = torch.zeros(count, longest, dtype=torch.bool, device=documents.device)
    source[row, within[kept]] = place[kept]
    real[row, within[kept]] = True
    return Segments(source, real)


def each_document(
    run: Callable[[Sequence[Tensor]], Tensor], parts: Sequence[Tensor], ctx: Context
) -> Float[Tensor, "B T *E"]:
    """`run` of several tensors (B, T, *) over the same tokens, every document alone, from a fresh state, padded on the
    right with 0. Causal `run` may ignore what stands past a document's end.

    Raises DougongError in a context where tokens see later ones.
    """
    check_one_way(ctx)
    segments = Segments.of(ctx)
    if segments is None:
        return run(parts)
    return segments.join(run([segments.split(part) for part in parts]), parts[0])


def by_document(
    run: Callable[[Float[Tensor, "N L D"]], Float[Tensor, "N L E"]], x: Float[Tensor, "B T D"], ctx: Context
) -> Float[Tensor, "B T E"]:
    """`each_document` of one tensor."""
    return each_document(lambda parts: run(parts[0]), (x,), ctx)
