"""The table: how well each way of searching finds what the judges found relevant."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dougong.base import DougongError
from dougong.rag.evaluate.collections import Collection
from dougong.rag.evaluate.measures import ndcg, recall, reciprocal_rank_of_first, relevant
from dougong.rag.hit import Hit, Retriever

DEEP = 100
"""Chunks that are looked at for a ranking of documents."""
RESAMPLES = 2000


@dataclass(frozen=True)
class Result:
    """A mean over queries with the 95% interval of a bootstrap over them; `each` is the value of every query."""

    value: float
    low: float
    high: float
    each: tuple[float, ...]

    @staticmethod
    def of(values: Sequence[float], seed: int = 0) -> Result:
        """The percentile bootstrap (Efron 1979), 2,000 resamples of the queries. Raises DougongError for no values."""
        if not values:
            raise DougongError("there is no query, so there is nothing to average; give at least one")
        numbers = np.array(values, dtype=np.float64)
        draws = np.random.default_rng(seed).integers(0, len(numbers), (RESAMPLES, len(numbers)))
        low, high = np.percentile(numbers[draws].mean(1), [2.5, 97.5])
        return Result(float(numbers.mean()), float(low), float(high), tuple(values))

    def over(self, other: Result) -> Result:
        """The difference to another way of searching, query by query: with an interval of its own."""
        return Result.of([mine - theirs for mine, theirs in zip(self.each, other.each, strict=True)])


@dataclass(frozen=True)
class Row:
    """One way of searching on one collection; `results` by measure: nDCG@10, recall@10, recall@100, MRR."""

    collection: str
    chunker: str
    retriever: str
    reranker: str
    results: Mapping[str, Result]


def ranked_documents(hits: Sequence[Hit]) -> list[str]:
    """Documents in the order of their best chunk."""
    return list(dict.fromkeys(hit.chunk.doc for hit in hits))


def evaluate(
    collection: Collection,
    retriever: Retriever,
    names: tuple[str, str, str] = ("", "", ""),
    progress: Callable[[int], None] | None = None,
) -> Row:
    """Search for every query of a collection. names: of chunker, retriever and reranker, for the row.

    A query to which nothing is relevant counts 0, as in trec_eval. Raises DougongError for a collection without
    queries.
    """
    measures: dict[str, list[float]] = {"nDCG@10": [], "recall@10": [], "recall@100": [], "MRR": []}
    for done, (query, text) in enumerate(collection.queries.items(), start=1):
        ranking, gains = ranked_documents(retriever.search(text, DEEP)), collection.gains.get(query, {})
        wanted = relevant(gains)
        measures["nDCG@10"].append(ndcg(ranking, gains))
        measures["recall@10"].append(recall(ranking, wanted, 10))
        measures["recall@100"].append(recall(ranking, wanted, 100))
        measures["MRR"].append(reciprocal_rank_of_first(ranking, wanted))
        if progress is not None:
            progress(done)
    results = {name: Result.of(values) for name, values in measures.items()}
    return Row(collection.name, *names, results)
