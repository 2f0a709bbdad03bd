"""Search by words, and by vectors."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import final

from dougong.base import DougongError, write_json
from dougong.rag.chunk import Chunk
from dougong.rag.embedder import Embedder
from dougong.rag.hit import Hit, Retriever
from dougong.rag.stores import Store
from dougong.rag.terms import FORM
from dougong.rag.where import Where, holds
from dougong.rag.words import WordIndex


def indexed(chunk: Chunk) -> str:
    """What of a chunk is searched: its text, under the titles above it where it does not begin with the last one."""
    heading = str(chunk.meta.get("heading", ""))
    last = heading.split(" > ")[-1]
    return chunk.text if not heading or last in chunk.text[: len(last) + 12] else f"{heading}\n{chunk.text}"


@final
class Words(Retriever):
    """BM25 over a store's chunks; its index follows the store, and is kept beside it where the store is a folder."""

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
                self._index = self._open(chunks)
            index = self._index
        allowed = [each for each, chunk in chunks.items() if holds(where, chunk)] if where else None
        return [Hit(chunks[each], score) for each, score in index.search(query, k, allowed) if each in chunks]

    def _open(self, chunks: Mapping[int, Chunk]) -> WordIndex:
        """The index beside the store where it belongs to this very state, or a new one, which is kept there."""
        folder, ids = self._store.kept_in(), list(chunks)
        texts = (indexed(each) for each in chunks.values())
        if folder is None:
            return WordIndex(ids, list(texts), self._k1, self._b)
        place, note = folder / "words", folder / "words.json"
        state = {"generation": self._seen, "texts": len(ids), "k1": self._k1, "b": self._b, "terms": FORM}
        try:
            held = json.loads(note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            held = None
        found = WordIndex.load(place, ids) if held == state else None
        if found is not None:
            return found
        made = WordIndex(ids, list(texts), self._k1, self._b)
        try:
            # The note goes first and comes last: at no moment does it speak of files that it does not belong to.
            note.unlink(missing_ok=True)
            made.save(place)
            write_json(note, state)
        except (DougongError, OSError):
            pass  # the folder is full or read-only: it can still be searched, with an index made anew each time
        return made


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
