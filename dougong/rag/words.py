"""Word search: BM25 over the terms of texts (Robertson and Zaragoza 2009), scored by bm25s."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np

from dougong.base import DougongError
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
            bm25 = _bm25s().BM25(method="lucene", k1=k1, b=b)
            bm25.index(listed, show_progress=False)
            self._take(bm25)

    def _take(self, bm25: Any) -> None:
        self._bm25, self._known = bm25, bm25.vocab_dict
        bm25.backend = "numba" if len(self._ids) >= COMPILED else "numpy"

    def save(self, folder: Path) -> None:
        """Write bm25s' own files into a folder, which is made anew; nothing where no text has a term. Not atomic: who
        calls says by a note of its own, written last, that they are whole."""
        shutil.rmtree(folder, ignore_errors=True)
        if self._bm25 is not None:
            self._bm25.save(folder, show_progress=False)

    @staticmethod
    def load(folder: Path, ids: Sequence[int]) -> WordIndex | None:
        """The index that `save` wrote of these texts, in their order; None where the files are not such."""
        made = object.__new__(WordIndex)
        made._ids, made._bm25 = np.array(ids, dtype=np.int64), None
        if not folder.exists():
            return None
        try:
            bm25 = _bm25s().BM25.load(folder, load_corpus=False, show_progress=False)
            if int(bm25.scores["num_docs"]) != len(ids):
                return None
        except DougongError:
            raise
        except Exception:  # a damaged file fails anywhere in numpy or json; it is only a copy
            return None
        made._take(bm25)
        return made

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


def _bm25s() -> Any:
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    return need("bm25s", "word search")


def _float(mask: np.ndarray | None) -> np.ndarray | None:
    return None if mask is None else mask.astype(np.float32)
