"""What a search gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from dougong.rag.chunk import Chunk
from dougong.rag.where import Where


class Hit(NamedTuple):
    """A chunk and how well it fits: higher is better, comparable within one search only."""

    chunk: Chunk
    score: float


class Retriever(ABC):
    """Finds chunks for a query."""

    @abstractmethod
    def search(self, query: str, k: int = 10, where: Where | None = None) -> list[Hit]:
        """Up to k hits that meet the filter, best first, no chunk twice."""


class Reranker(ABC):
    """Puts hits in a better order."""

    @abstractmethod
    def scores(self, query: str, texts: list[str]) -> list[float]:
        """How well each text answers the query; higher is better."""


def best(hits: list[Hit], k: int) -> list[Hit]:
    """The k highest scores; equal ones stay in their order."""
    return sorted(hits, key=lambda hit: -hit.score)[:k]
