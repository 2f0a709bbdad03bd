"""Retrievers made of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np

from dougong.base import DougongError
from dougong.rag.chunkers import Chunker
from dougong.rag.embedder import Embedder
from dougong.rag.fusion import marginal_relevance, reciprocal_rank, weighted
from dougong.rag.hit import Hit, Reranker, Retriever, best
from dougong.rag.retrievers.basic import indexed
from dougong.rag.stores import Store
from dougong.rag.where import Where

DEPTH = 5
"""A retriever that reorders looks this many times as deep as it is asked for, and at least LEAST deep."""
LEAST = 50


def deep(k: int) -> int:
    return max(LEAST, DEPTH * k)


@final
class Hybrid(Retriever):
    """Several retrievers together: by reciprocal ranks or, where weights are given, by weighted scores."""

    def __init__(self, parts: Sequence[Retriever], weights: Sequence[float] | None = None, constant: float = 60.0):
        if not parts or (weights is not None and len(weights) != len(parts)):
            raise DougongError(f"{len(parts)} retrievers have {len(weights or ())} weights; give each one, or none")
        self._parts, self._weights, self._constant = parts, weights, constant

    def search(self, query: str, k: int = 10, where: Where | None = None) -> list[Hit]:
        rankings = [part.search(query, deep(k), where) for part in self._parts]
        if self._weights is None:
            return reciprocal_rank(rankings, k, self._constant)
        return weighted(rankings, self._weights, k)


@final
class Suited(Retriever):
    """Words and vectors together where the embedder reads the query's script; elsewhere words, and vectors only to fill
    up what words do not find. (On CMRC-2018 with MiniLM, which is English: nDCG@10 .97 by words, .56 by both.)

    Together means half of the score each. On Cranfield, CISI and CMRC-2018 that is above both parts with clear
    intervals, where reciprocal ranks are so on the first alone (docs/log.md).
    """

    def __init__(self, words: Retriever, dense: Retriever, embedder: Embedder):
        self._words, self._dense, self._embedder = words, dense, embedder
        self._both = Hybrid([words, dense], (0.5, 0.5))

    def search(self, query: str, k: int = 10, where: Where | None = None) -> list[Hit]:
        if self._embedder.reads(query):
            return self._both.search(query, k, where)
        hits = self._words.search(query, k, where)
        if len(hits) < k:
            there = {hit.chunk.id for hit in hits}
            more = [hit for hit in self._dense.search(query, k, where) if hit.chunk.id not in there]
            least = min((hit.score for hit in hits), default=0.0)
            # Scores of two kinds: what fills up stands below, in its own order.
            hits += [Hit(hit.chunk, least - 1.0 - rank) for rank, hit in enumerate(more)]
        return hits[:k]


@final
class Varied(Retriever):
    """Hits that do not repeat each other, by maximal marginal relevance over their vectors.

    Scores are the base's, brought to 0 to 1, in the new order. balance: 1 is relevance alone.
    """

    def __init__(self, base: Retriever, store: Store, balance: float = 0.7):
        if not 0 <= balance <= 1:
            raise DougongError(f"the balance is {balance}; expected 0 (variety) to 1 (relevance)")
        self._base, self._store, self._balance = base, store, balance

    def search(self, query: str, k: int = 10, where: Where | None = None) -> list[Hit]:
        hits = self._base.search(query, deep(k), where)
        if not hits:
            return []
        scores = np.array([hit.score for hit in hits], dtype=np.float32)
        low, high = scores.min(), scores.max()
        relevance = (scores - low) / (high - low) if high > low else np.ones_like(scores)
        vectors = self._store.vectors([hit.chunk.id for hit in hits])
        chosen = marginal_relevance(relevance, vectors, k, self._balance)
        return [Hit(hits[place].chunk, float(relevance[place])) for place in chosen]


@final
class Parents(Retriever):
    """Search among small chunks, read large ones: each hit becomes the part of its document, as `chunker` cuts it, that
    holds the middle of the hit. Hits in one part are one, with the best of their scores."""

    def __init__(self, base: Retriever, store: Store, chunker: Chunker):
        self._base, self._store, self._chunker = base, store, chunker

    def search(self, query: str, k: int = 10, where: Where | None = None) -> list[Hit]:
        from dougong.data import Document

        if k < 1:
            return []
        found: dict[int, Hit] = {}
        cut: dict[str, list] = {}
        for hit in self._base.search(query, deep(k), where):
            chunk = hit.chunk
            if chunk.doc not in cut:
                kept = {key: value for key, value in chunk.meta.items() if key not in ("bytes", "heading", "page")}
                cut[chunk.doc] = self._chunker.chunk(Document(self._store.text(chunk.doc), chunk.doc, meta=kept))
            middle = (chunk.start + chunk.end) // 2
            parent = next((each for each in cut[chunk.doc] if each.start <= middle < each.end), chunk)
            if parent.id not in found:
                found[parent.id] = Hit(parent, hit.score)
            if len(found) == k:
                break
        return list(found.values())


@final
class Reranked(Retriever):
    """The hits of a retriever in the order of a reranker; `depth` of them are looked at."""

    def __init__(self, base: Retriever, reranker: Reranker, depth: int = 30):
        self._base, self._reranker, self._depth = base, reranker, depth

    def search(self, query: str, k: int = 10, where: Where | None = None) -> list[Hit]:
        hits = self._base.search(query, max(k, self._depth), where)
        scores = self._reranker.scores(query, [indexed(hit.chunk) for hit in hits])
        return best([Hit(hit.chunk, score) for hit, score in zip(hits, scores, strict=True)], k)


@final
class ByMeaning(Reranker):
    """The cosine of an embedder: the cheapest second opinion on what words found."""

    def __init__(self, embedder: Embedder):
        self._embedder = embedder

    def scores(self, query: str, texts: list[str]) -> list[float]:
        if not texts:
            return []
        vectors = self._embedder.embed(texts)
        return [float(score) for score in vectors @ self._embedder.embed([query], "query")[0]]
