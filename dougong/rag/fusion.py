"""Several rankings to one, and one ranking to a varied one: pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dougong.parts.shapes import Float
from dougong.rag.chunk import Chunk
from dougong.rag.hit import Hit


def reciprocal_rank(rankings: Sequence[Sequence[Hit]], k: int, constant: float = 60.0) -> list[Hit]:
    """Reciprocal rank fusion (Cormack et al. 2009): the score of a chunk is sum over rankings of 1 / (constant + rank),
    ranks from 1. Scores of different kinds need not be comparable."""
    return _summed([[1.0 / (constant + rank) for rank in range(1, len(each) + 1)] for each in rankings], rankings, k)


def weighted(rankings: Sequence[Sequence[Hit]], weights: Sequence[float], k: int) -> list[Hit]:
    """The weighted sum of the scores, each ranking's brought to 0 (its lowest) to 1 (its highest); what a ranking lacks
    has 0 there."""
    shares = []
    for ranking, weight in zip(rankings, weights, strict=True):
        scores = [hit.score for hit in ranking]
        low, high = min(scores, default=0.0), max(scores, default=0.0)
        shares.append([weight * ((score - low) / (high - low) if high > low else 1.0) for score in scores])
    return _summed(shares, rankings, k)


def _summed(shares: Sequence[Sequence[float]], rankings: Sequence[Sequence[Hit]], k: int) -> list[Hit]:
    total: dict[int, float] = {}
    chunks: dict[int, Chunk] = {}
    for scores, ranking in zip(shares, rankings, strict=True):
        for score, (chunk, _) in zip(scores, ranking, strict=True):
            each = chunk.id
            total[each] = total.get(each, 0.0) + score
            chunks[each] = chunk
    # sorted is stable: equal sums stay in the order of the rankings.
    chosen = sorted(total, key=total.__getitem__, reverse=True)[:k]
    return [Hit(chunks[each], total[each]) for each in chosen]


def marginal_relevance(
    relevance: Float[np.ndarray, " N"], vectors: Float[np.ndarray, "N D"], k: int, balance: float = 0.5
) -> list[int]:
    """Maximal marginal relevance (Carbonell and Goldstein 1998): places of up to k items, chosen one after the other by

        balance * relevance(i) - (1 - balance) * max over chosen j of cos(i, j)

    vectors are of length 1; balance 1 is the order of relevance alone.
    """
    chosen: list[int] = []
    nearest = np.full(len(relevance), -np.inf)
    left = np.ones(len(relevance), dtype=bool)
    for _ in range(min(k, len(relevance))):
        doubled = np.where(np.isneginf(nearest), 0.0, nearest)
        score = np.where(left, balance * relevance - (1 - balance) * doubled, -np.inf)
        pick = int(score.argmax())
        chosen.append(pick)
        left[pick] = False
        nearest = np.maximum(nearest, vectors @ vectors[pick])
    return chosen
