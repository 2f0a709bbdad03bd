"""Nearest vectors by FAISS: exact, HNSW graphs, inverted lists with 8-bit codes."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal, final

import numpy as np

from dougong.base import DougongError, atomic_file
from dougong.parts.shapes import Float
from dougong.rag.extras import need

Kind = Literal["exact", "hnsw", "ivf"]
Choice = Literal["auto", "exact", "hnsw", "ivf"]
MANY = 50_000
"""From so many vectors on, what is to choose by itself walks a graph: comparing with all takes 3 ms here and grows."""
FEW = 4096
"""Below this many vectors an inverted index has too little to learn its cells from, so it is exact."""
FORM = 1
"""Grows when an index is built in another way: those that were kept are then made anew."""
LINKS, BUILD, REACH = 32, 200, 192
"""HNSW: links of a vector, candidates while building and while searching (Malkov and Yashunin 2018). With 80 and 96 two
of 300 questions found none of their ten in 58,368 pieces of real text (docs/log.md)."""


def chosen(choice: Choice, count: int) -> Kind:
    """The kind of index for `count` vectors: as asked for or, of "auto", "exact" for few and "hnsw" for MANY."""
    if choice != "auto":
        return choice
    return "hnsw" if count >= MANY else "exact"


@final
class VectorIndex:
    """Vectors of length 1 by number; similarity is the cosine.

    kind  "exact" compares with all; "hnsw" walks a graph: fast, and removal only hides until the next rebuild; "ivf"
          looks into the nearest quarter of the cells, with codes of 8 bits: a quarter of the memory
    """

    def __init__(self, ids: Sequence[int], vectors: Float[np.ndarray, "N D"], kind: Kind = "exact"):
        self.kind: Kind = kind
        self._faiss = need("faiss", "dense search")
        self._hidden: set[int] = set()
        self._trained = len(ids)
        self._index = self._make(vectors)
        self._ids: set[int] = set()
        self.add(ids, vectors)

    def __len__(self) -> int:
        return len(self._ids)

    def _make(self, vectors: Float[np.ndarray, "N D"]) -> Any:
        faiss, width = self._faiss, vectors.shape[1]
        if self.kind == "hnsw":
            graph = faiss.IndexHNSWFlat(width, LINKS, faiss.METRIC_INNER_PRODUCT)
            graph.hnsw.efConstruction = BUILD
            return faiss.IndexIDMap2(graph)
        if self.kind == "ivf" and len(vectors) >= FEW:
            cells = int(4 * math.sqrt(len(vectors)))
            coarse = faiss.IndexFlatIP(width)
            index = faiss.IndexIVFScalarQuantizer(
                coarse, width, cells, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
            )
            index.train(np.ascontiguousarray(vectors[:: max(1, len(vectors) // (64 * cells))], dtype=np.float32))
            return index
        return faiss.IndexIDMap2(faiss.IndexFlatIP(width))

    @property
    def stale(self) -> bool:
        """Whether building it anew would make it better: much is hidden, or it has outgrown what it was trained on."""
        outgrown = self.kind == "ivf" and len(self._ids) >= max(FEW, 4 * self._trained)
        return outgrown or 3 * len(self._hidden) > len(self._ids) > 0

    def add(self, ids: Sequence[int], vectors: Float[np.ndarray, "N D"]) -> None:
        """Add vectors under new ids; ids that are there already keep their vectors."""
        new = [place for place, each in enumerate(ids) if each not in self._ids]
        hidden = [place for place in new if ids[place] in self._hidden]
        if hidden:  # the graph still holds an old vector under this id
            raise DougongError("an id that was removed cannot come back to an hnsw index; build it anew")
        if new:
            rows = np.ascontiguousarray(vectors[new], dtype=np.float32)
            numbers = np.array([ids[place] for place in new], dtype=np.int64)
            self._index.add_with_ids(rows, numbers)
            self._ids.update(numbers.tolist())

    def remove(self, ids: Collection[int]) -> None:
        """Remove what is there of `ids`."""
        gone = self._ids.intersection(ids)
        if not gone:
            return
        self._ids -= gone
        if self.kind == "hnsw":
            self._hidden |= gone
        else:
            self._index.remove_ids(np.fromiter(gone, np.int64, len(gone)))

    def search(
        self, vector: Float[np.ndarray, " D"], k: int, allowed: Collection[int] | None = None
    ) -> list[tuple[int, float]]:
        """Up to k (id, cosine), best first; of `allowed` ids alone where given."""
        if allowed is not None:
            allowed = self._ids.intersection(allowed)
        elif self._hidden:
            allowed = self._ids
        k = min(k, len(self._ids) if allowed is None else len(allowed))
        if k < 1:
            return []
        query = np.ascontiguousarray(vector[None], dtype=np.float32)
        scores, ids = self._index.search(query, k, params=self._parameters(k, allowed))
        found = [(int(each), float(score)) for each, score in zip(ids[0], scores[0], strict=True) if each >= 0]
        # Equal scores would come in the order in which they were added.
        return sorted(found, key=lambda one: (-round(one[1], 6), one[0]))

    def _parameters(self, k: int, allowed: Collection[int] | None) -> Any:
        faiss = self._faiss
        chosen: dict[str, Any] = {}
        if allowed is not None:
            chosen["sel"] = faiss.IDSelectorBatch(np.fromiter(allowed, np.int64, len(allowed)))
        if self.kind == "hnsw":
            # A filter that leaves little makes the walk end early: it must see more of the graph.
            share = 1.0 if allowed is None else len(allowed) / max(1, self._index.ntotal)
            reach = min(self._index.ntotal, int(max(REACH, 2 * k) / max(share, 1e-3)))
            return faiss.SearchParametersHNSW(efSearch=reach, **chosen)
        if self.kind == "ivf" and hasattr(self._index, "nlist"):
            cells = self._index.nlist if allowed is not None else max(1, -(-self._index.nlist // 4))
            return faiss.SearchParametersIVF(nprobe=cells, **chosen)
        return faiss.SearchParameters(**chosen) if chosen else None

    def save(self, path: Path) -> None:
        """Write FAISS's own file, whole or not at all."""
        with atomic_file(path, "wb") as stream:
            stream.write(self._faiss.serialize_index(self._index).tobytes())

    @staticmethod
    def load(path: Path, kind: Kind, ids: Collection[int]) -> VectorIndex | None:
        """The index in a file, or None where the file is not one that holds exactly `ids`."""
        faiss = need("faiss", "dense search")
        try:
            index = faiss.deserialize_index(np.frombuffer(path.read_bytes(), dtype=np.uint8))
        except (OSError, RuntimeError, ValueError, MemoryError):
            return None
        if index.ntotal != len(ids):
            return None
        made = object.__new__(VectorIndex)
        made.kind, made._faiss, made._index = kind, faiss, index
        made._ids, made._hidden, made._trained = set(ids), set(), len(ids)
        return made
