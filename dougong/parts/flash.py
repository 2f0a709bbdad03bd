"""FlashAttention in plain PyTorch: exact attention, a tile of the scores at a time (Dao et al. 2022; Dao 2023).

Written to be read beside the paper, not to be fast: `flash_triton` has the same algorithm as kernels, and docs/flash.md
has the derivation. The T x S scores are never held at once, so memory grows with the length and not with its square.

A softmax needs the largest score and the sum over the whole row, which are known only at the end. So a running maximum
m and a running sum l go along the row's tiles, and whatever was summed under an older maximum is shrunk to the newer:

    m' = max(m, max_j s_j)    l' = e^(m - m') l + sum_j e^(s_j - m')    o' = e^(m - m') o + sum_j e^(s_j - m') v_j

and at the end o / l is the output. Backward, the weights come again from the scores and the one number a row that was
kept, L = m + ln l: p_ij = e^(s_ij - L_i).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.parts.shapes import Bool, Float, Int


def flash(
    q: Float[Tensor, "B H T d"],
    k: Float[Tensor, "B K S d"],
    v: Float[Tensor, "B K S e"],
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    documents: Int[Tensor, "B S"] | None = None,
    bias: Float[Tensor, "#B #H #T #S"] | None = None,
    sinks: Float[Tensor, " H"] | None = None,
    blocks: tuple[int, int] = (64, 64),
) -> Float[Tensor, "B H T e"]:
    """softmax(scale q k^T, capped, + bias, masked) v, in tiles of blocks[0] queries by blocks[1] keys.

    causal     queries are the last T of the S tokens, and see no later one
    window     a query sees itself and the window - 1 tokens before it (and as many behind, where not causal)
    softcap    scores s become softcap tanh(s / softcap)
    scale      None: d^-1/2
    documents  tokens see each other only where these numbers are equal; padding is a document of its own, -1
    bias       added to the capped scores; minus infinity hides a key. A query that sees no key gives 0
    sinks      one more score in each row's sum, that leads to no value (gpt-oss)

    Each group of H / K query heads shares a key head. Sums are float32 (float64 for float64 inputs).
    """
    check(q, k, v, causal, window, documents)
    batch, heads, tokens, size = q.shape
    shared, keys = k.shape[1], k.shape[2]
    scale = 1 / math.sqrt(size) if scale is None else scale
    sight = Sight(causal, window, keys - tokens, documents)
    if bias is not None:
        # A view, without memory: its gradient is summed back to the bias's own shape by `expand` itself.
        bias = bias.expand(batch, heads, tokens, keys).unflatten(1, (shared, -1))
    if sinks is not None:
        sinks = sinks.view(1, shared, -1, 1).expand(batch, -1, -1, tokens)
    grouped = q.unflatten(1, (shared, -1))  # (B, K, H / K, T, d)
    out = _Flash.apply(grouped, k[:, :, None], v[:, :, None], bias, sinks, sight, softcap, scale, blocks)
    assert isinstance(out, Tensor)
    return out.flatten(1, 2)


def check(q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None, documents: Tensor | None) -> None:
    """Raise DougongError where heads, lengths or the window do not fit together."""
    heads, shared, tokens, keys = q.shape[1], k.shape[1], q.shape[2], k.shape[2]
    if heads % shared:
        raise DougongError(f"{heads} query heads over {shared} key heads; the first must be a multiple of the second")
    if window is not None and window < 1:
        raise DougongError(f"window is {window}; expected at least 1, for a token sees itself")
    if tokens > keys and (causal or window is not None or documents is not None):
        raise DougongError(f"{tokens} queries over {keys} keys; only attention without order (cross) may have more")
    if documents is not None and documents.shape != (q.shape[0], keys):
        raise DougongError(f"documents are {tuple(documents.shape)}; expected one a key, {(q.shape[0], keys)}")


@dataclass(frozen=True)
class Sight:
    """Whom the queries see. `offset` is the place of the first query among the keys."""

    causal: bool
    window: int | None
    offset: int
    documents: Int[Tensor, "B S"] | None

    def empty(self, rows: slice, columns: slice) -> bool:
        """Whether no query of the tile sees any of its keys, told from their places: such tiles are skipped."""
        first, last = rows.start + self.offset, rows.stop - 1 + self.offset
        ahead = columns.start - last  # from the last query to the first key
        behind = first - (columns.stop - 1)  # from the last key to the first query
        if self.causal and ahead > 0:
            return True
        return self.window is not None and max(ahead, behind) >= self.window

    def mask(self, rows: slice, columns: slice, device: torch.device) -> Bool[Tensor, "#B 1 1 m n"] | None:
        """Which queries of the tile see which of its keys; None: all."""
        queries = torch.arange(rows.start, rows.stop, device=device)[:, None] + self.offset
        keys = torch.arange(columns.start, columns.stop, device=device)[None]
        seen = keys <= queries if self.causal else None
        if self.window is not None:
            near = (queries - keys).abs() < self.window
            seen = near if seen is None else seen & near
        if self.documents is not None:
            own = self.documents[:, rows.start + self.offset : rows.stop + self.offset, None]
            same = own == self.documents[:, None, columns]
            seen = same if seen is None else seen & same
        return None if seen is None else seen.expand(-1 if seen.ndim == 3 else 1, -1, -1)[:, None, None]


def _tiles(length: int, block: int) -> Iterator[slice]:
    return (slice(start, min(start + block, length)) for start in range(0, length, block))


class _Flash(torch.autograd.Function):
    """q (B, K, G, T, d) over k (B, K, 1, S, d) and v (B, K, 1, S, e): the products broadcast along the group G."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        sinks: Tensor | None,
        sight: Sight,
        softcap: float | None,
        scale: float,
        blocks: tuple[int, int],
    ) -> Tensor:
        kind = torch.promote_types(q.dtype, torch.float32)
        out = q.new_zeros(*q.shape[:-1], v.shape[-1])
        logsum = q.new_zeros(q.shape[:-1], dtype=kind)  # L, the one number a row that the backward pass needs
        for rows in _tiles(q.shape[3], blocks[0]):
            if sinks is None:
                top = q.new_full(q[..., rows, 0].shape, -math.inf, dtype=kind)  # m
                total = torch.zeros_like(top)  # l
            else:  # as if a tile had gone before with the sink for its only score
                top = sinks[..., rows].to(kind)
                total = torch.ones_like(top)
            mixed = q.new_zeros(*top.shape, v.shape[-1], dtype=kind)  # o, not yet divided by l
            for columns in _tiles(k.shape[3], blocks[1]):
                if sight.empty(rows, columns):
                    continue
                scores, _ = _scores(q, k, bias, sight, softcap, scale, rows, columns)
                higher = torch.maximum(top, scores.amax(-1))
                # A row that has seen no key yet: e^(-inf - 0) is the 0 that e^(-inf + inf) is not.
                safe = higher.masked_fill(higher == -math.inf, 0)
                weights = (scores - safe[..., None]).exp()
                shrink = (top - safe).exp()
                total = total * shrink + weights.sum(-1)
                mixed = mixed * shrink[..., None] + weights @ v[..., columns, :].to(kind)
                top = higher
            lit = total > 0
            out[..., rows, :] = mixed / total.where(lit, 1)[..., None]
            logsum[..., rows] = (top + total.log()).where(lit, math.inf)  # so that e^(s - L) is 0 where nothing is seen
        ctx.save_for_backward(q, k, v, bias, sinks, out, logsum)
        ctx.rest = sight, softcap, scale, blocks
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, sinks, out, logsum = ctx.saved_tensors
        sight, softcap, scale, blocks = ctx.rest
        kind = logsum.dtype
        grad = grads[0].to(kind)
        # D_i = sum_j p_ij dp_ij, and that is dO_i . O_i: no tile needs to know the other tiles of its row.
        delta = (grad * out).sum(-1)
        dq, dk, dv = (torch.zeros_like(x, dtype=kind) for x in (q, k, v))
        dbias = None if bias is None or not ctx.needs_input_grad[3] else q.new_zeros(bias.shape, dtype=kind)
        for columns in _tiles(k.shape[3], blocks[1]):
            for rows in _tiles(q.shape[3], blocks[0]):
                if sight.empty(rows, columns):
                    continue
                scores, slope = _scores(q, k, bias, sight, softcap, scale, rows, columns)
                weights = (scores - logsum[..., rows, None]).exp()  # P, computed again
                part = grad[..., rows, :]
                dv[..., columns, :] += (weights.mT @ part).sum(2, keepdim=True)  # the group shares its key head
                dscores = weights * (part @ v[..., columns, :].to(kind).mT - delta[..., rows, None])
                if dbias is not None:
                    dbias[..., rows, columns] = dscores
                if slope is not None:
                    dscores = dscores * slope
                dq[..., rows, :] += dscores @ k[..., columns, :].to(kind) * scale
                dk[..., columns, :] += (dscores.mT @ q[..., rows, :].to(kind) * scale).sum(2, keepdim=True)
        # A sink is a score whose value is 0: its dp is 0 too.
        dsinks = None if sinks is None else (-(sinks - logsum).exp() * delta).to(sinks.dtype)
        dbias = None if bias is None or dbias is None else dbias.to(bias.dtype)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dbias, dsinks, None, None, None, None


def _scores(
    q: Tensor,
    k: Tensor,
    bias: Tensor | None,
    sight: Sight,
    softcap: float | None,
    scale: float,
    rows: slice,
    columns: slice,
) -> tuple[Tensor, Tensor | None]:
    """One tile of scores (B, K, G, m, n), minus infinity where a key is hidden; and the slope of its softcap."""
    kind = torch.promote_types(q.dtype, torch.float32)
    scores, slope = q[..., rows, :].to(kind) @ k[..., columns, :].to(kind).mT * scale, None
    if softcap is not None:
        bent = (scores / softcap).tanh()
        scores, slope = softcap * bent, 1 - bent * bent  # tanh' = 1 - tanh^2
    if bias is not None:
        scores = scores + bias[..., rows, columns]
    mask = sight.mask(rows, columns, q.device)
    return scores if mask is None else scores.masked_fill(~mask, -math.inf), slope
