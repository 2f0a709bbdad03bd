"""Search by words, and by vectors."""

from __future__ import annotations

import threading
from typing import final

from dougong.rag.chunk import Chunk
from dougong.rag.embedder import Embedder
from dougong.rag.hit import Hit, Retriever
from dougong.rag.stores import Store
from dougong.rag.where import Where, holds
from dougong.rag.words import WordIndex


def indexed(chunk: Chunk) -> str:
    """What of a chunk is searched: its text, under the titles above it where it does not begin with the last one."""
    heading = str(chunk.meta.get("heading", ""))
    last = heading.split(" > ")[-1]
    return chunk.text if not heading or last in chunk.text[: len(last) + 12] else f"{heading}\n{chunk.text}"


@final
class Words(Retriever):
    """BM25 over a store's chunks; its index follows the store."""

    def __init__(self, store: Store, k1: float = 1.5, b: float = 0.75):
        self._store, self._k1, self._b = store, k1, b
        self._index: WordIndex | None = None
        self._seen = -1
        self._lock = threading.Lock()

    def search(self, query: str, k: int = 10, where: Where | None = None) -> list[Hit]:
        chunks = self._store.chunks()
        with self._lock:
            if self._index is None or self._seen != self._store.generation():
                self._seen = self._store.generation()
                self._index = WordIndex(list(chunks), [indexed(each) for each in chunks.values()], self._k1, self._b)
            index = self._index
        allowed = [each for each, chunk in chunks.items() if holds(where, chunk)] if where else None
        return [Hit(chunks[each], score) for each, score in index.search(query, k, allowed) if each in chunks]


@final
class Dense(Retriever):
    """The nearest vectors to the query's."""

    def __init__(self, store: Store, embedder: Embedder):
        self._store, self._embedder = store, embedder

    def search(self, query: str, k: int = 10, where: Where | None = None) -> list[Hit]:
        if k < 1 or not query.strip():
            return []
        vector = self._embedder.embed([query], "query")[0]
        chunks = self._store.chunks()
        return [Hit(chunks[each], score) for each, score in self._store.nearest(vector, k, where) if each in chunks]
