"""What every store can do, and the URI that names one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dougong.base import DougongError
from dougong.data import Document
from dougong.parts.shapes import Float
from dougong.rag.chunk import Chunk
from dougong.rag.vectors import Choice
from dougong.rag.where import Where


@dataclass(frozen=True)
class Entry:
    """A file as it is indexed. digest: of its content and of how it was cut; a file without documents was skipped, for
    the reason given. vectors: a row for each chunk, in their order."""

    file: str
    digest: str
    documents: Sequence[Document]
    chunks: Sequence[Chunk]
    vectors: Float[np.ndarray, "N D"]
    reason: str = ""


class Store(ABC):
    """Documents, chunks and vectors. A file is there whole or not at all, also after a crash."""

    @abstractmethod
    def files(self) -> dict[str, str]:
        """The digest of every file."""

    @abstractmethod
    def replace(self, drop: Collection[str], entries: Sequence[Entry]) -> None:
        """Remove the files in `drop` with all that came from them, then add `entries` (which replace files of the same
        name)."""

    @abstractmethod
    def documents(self) -> dict[str, str]:
        """The file of every document."""

    @abstractmethod
    def text(self, doc: str) -> str:
        """The text of a document. Raises DougongError for an unknown name."""

    @abstractmethod
    def chunks(self) -> dict[int, Chunk]:
        """All chunks by id, in the order of documents and places."""

    def of_files(self, files: Collection[str]) -> dict[int, Chunk]:
        """The chunks that came from these files, by id."""
        return {each: chunk for each, chunk in self.chunks().items() if chunk.meta.get("file", chunk.doc) in files}

    @abstractmethod
    def vectors(self, ids: Sequence[int]) -> Float[np.ndarray, "N D"]:
        """The vectors of chunks, a row for each id."""

    @abstractmethod
    def nearest(self, vector: Float[np.ndarray, " D"], k: int, where: Where | None = None) -> list[tuple[int, float]]:
        """Up to k (id, cosine), best first."""

    @abstractmethod
    def notes(self) -> dict[str, str]:
        """What was noted about the whole: the embedder's name, settings."""

    @abstractmethod
    def note(self, key: str, value: str) -> None:
        """Note it."""

    @abstractmethod
    def generation(self) -> int:
        """A number that grows with every change."""

    def kept_in(self) -> Path | None:
        """A folder for what can be made again from the store, such as an index of words; None: there is none."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Let go of files and connections."""


def open_store(uri: str, width: int, kind: Choice | None = None) -> Store:
    """The store that a URI names, made where it is not there yet.

    "memory:"; "milvus:PATH.db" (a file, by milvus-lite), "milvus:http://HOST:PORT" (a server or cluster, token in the
    environment as MILVUS_TOKEN); anything else is a folder. width: of the vectors. kind: of FAISS's index, noted in the
    library; None: as noted, at first "auto". Raises DougongError for a kind of a milvus: library, which makes its own.
    """
    from dougong.rag.stores.sqlite import SqliteStore

    if uri in ("memory:", "memory"):
        return SqliteStore(None, width, kind)
    if uri.startswith("milvus:"):
        if kind is not None:
            raise DougongError(f"the library {uri} makes its own index of vectors; leave the kind {kind!r} out")
        from dougong.rag.stores.milvus import MilvusStore

        return MilvusStore(uri.removeprefix("milvus:"), width)
    if _schemed(uri):
        scheme = uri.split(":")[0]
        raise DougongError(
            f"the library {uri!r} has the unknown scheme {scheme!r}; expected memory:, milvus: or a folder"
        )
    return SqliteStore(uri, width, kind)


def is_kept(uri: str) -> bool:
    """Whether a library is kept at a URI already, told without making one. What only opening can tell (memory, a
    server, an unknown scheme) counts as kept."""
    if uri.startswith("milvus:"):
        place = uri.removeprefix("milvus:")
        return place.startswith(("http://", "https://")) or Path(place).exists()
    return uri == "memory" or _schemed(uri) or (Path(uri) / "library.sqlite").is_file()


def _schemed(uri: str) -> bool:
    return ":" in uri.split("/")[0] and uri[1:3] != ":\\"


def distinct(chunks: Iterable[Chunk]) -> dict[int, Chunk]:
    """Chunks by id."""
    return {chunk.id: chunk for chunk in chunks}
