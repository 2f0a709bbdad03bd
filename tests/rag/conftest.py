"""What the retrieval tests share: a small embedder that needs no weights."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
import pytest

from dougong.rag.embedder import Embedder, Role, unit
from dougong.rag.terms import terms
from tests.engine.conftest import unchecked as unchecked


class Hashed(Embedder):
    """Each term adds to one of 64 dimensions: alike are texts with common words."""

    name, width = "hashed:64", 64

    def __init__(self) -> None:
        self.seen: list[str] = []

    def embed(self, texts: Sequence[str], role: Role = "passage") -> np.ndarray:
        if role == "passage":
            self.seen += texts
        rows = np.full((len(texts), self.width), 1e-3, dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for term in terms(text):
                row[zlib.crc32(term.encode()) % self.width] += 1
        return unit(rows)


@pytest.fixture(autouse=True)
def _packages() -> None:
    for package in ("faiss", "bm25s", "Stemmer"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'dougong[rag]'")


@pytest.fixture
def embedder() -> Hashed:
    return Hashed()
