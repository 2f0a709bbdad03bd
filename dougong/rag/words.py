"""Word search: BM25 over the terms of texts (Robertson and Zaragoza 2009), scored by bm25s."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Any, final

import numpy as np

from dougong.rag.extras import need
from dougong.rag.terms import terms

COMPILED = 100_000
"""From this many texts on, bm25s scores with numba, which is compiled at the first query (seconds)."""


@final
class WordIndex:
    """Texts by number. BM25 as Lucene writes it, sum over the query's terms t (a term twice counts twice):

        ln(1 + (N - n_t + 0.5) / (n_t + 0.5)) * f / (f + k1 (1 - b + b |text| / mean|text|))

    f: how often t is in the text, n_t: in how many of the N texts it is.
    """

    def __init__(self, ids: Sequence[int], texts: Sequence[str], k1: float = 1.5, b: float = 0.75):
        self._ids = np.array(ids, dtype=np.int64)
        self._bm25: Any = None
        listed = [terms(text) for text in texts]
        if any(listed):
            bm25s = need("bm25s", "word search")
            logging.getLogger("bm25s").setLevel(logging.WARNING)
            self._bm25 = bm25s.BM25(method="lucene", k1=k1, b=b)
            self._bm25.index(listed, show_progress=False)
            self._known = self._bm25.vocab_dict
            if len(listed) >= COMPILED:
                self._bm25.backend = "numba"

    def search(self, query: str, k: int, allowed: Collection[int] | None = None) -> list[tuple[int, float]]:
        """Up to k (id, score), best first, scores above 0; equal scores in the order of the texts."""
        if self._bm25 is None or k < 1:
            return []
        wanted = [term for term in terms(query) if term in self._known]
        if not wanted:
            return []
        mask = None if allowed is None else np.isin(self._ids, np.fromiter(allowed, np.int64, len(allowed)))
        if self._bm25.backend == "numba":
            found = self._bm25.retrieve(
                [wanted], k=min(k, len(self._ids)), show_progress=False, weight_mask=_float(mask)
            )
            places, scores = found.documents[0], found.scores[0]
        else:
            every = self._bm25.get_scores(wanted)
            every = every if mask is None else np.where(mask, every, 0.0)
            some = np.argpartition(-every, min(k, len(every)) - 1)[:k] if k < len(every) else np.arange(len(every))
            places = some[np.lexsort((some, -every[some]))]
            scores = every[places]
        return [(int(self._ids[place]), float(score)) for place, score in zip(places, scores, strict=True) if score > 0]


def _float(mask: np.ndarray | None) -> np.ndarray | None:
    return None if mask is None else mask.astype(np.float32)
