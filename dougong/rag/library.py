"""Library: documents in, answers out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, final

import numpy as np

from dougong.base import DougongError
from dougong.data import Document
from dougong.rag.chunk import Chunk
from dougong.rag.chunkers import Chunker, Structure
from dougong.rag.embedder import Embedder, default_embedder
from dougong.rag.hit import Hit, Retriever
from dougong.rag.readers import find_files, printable, read_bytes, read_file
from dougong.rag.retrievers import Dense, Suited, Words
from dougong.rag.retrievers.basic import indexed
from dougong.rag.stores import Entry, Store, open_store
from dougong.rag.vectors import Choice
from dougong.rag.where import Where

if TYPE_CHECKING:
    from dougong.chat import ChatModel
    from dougong.rag.answer import Answer

How = Literal["words", "dense", "hybrid"]
MOST = 100_000
"""Chunks of a document. Its chunks are written together, so beyond it nothing would be kept or told for a long time."""
BATCH = 512
"""Chunks after which what is new is written: an interrupted run keeps all but the last batch."""


@dataclass
class Report:
    """What indexing did, in files. skipped: what could not be read, with the reason; chunks: how many are new."""

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    unchanged: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    chunks: int = 0


@dataclass(frozen=True)
class _Read:
    """A file as it was found. documents: none where it could not be read."""

    file: str
    digest: str
    documents: Sequence[Document]
    reason: str = ""


def _bounded(read: _Read, pieces: Sequence[Sequence[Chunk]], chunker: Chunker) -> _Read:
    """The file, with a reason to skip it where one of its documents falls into too many chunks."""
    most = max(map(len, pieces), default=0)
    if most <= MOST:
        return read
    told = f"{read.file} falls into {most:,} chunks at a limit of {chunker.limit}; expected at most {MOST:,}"
    return replace(read, reason=f"{told}; raise the limit or split the file")


def _bytes(document: Document) -> bytes:
    return document.text.encode("utf-8", "surrogatepass")


@final
class Library:
    """An index over documents that follows them. Make it with `open`."""

    def __init__(self, store: Store, embedder: Embedder, chunker: Chunker):
        self.store, self.embedder, self.chunker = store, embedder, chunker
        self._watchers: list[Callable[[set[str]], object]] = []
        self._words = Words(store)
        self._dense = Dense(store, embedder)
        held = store.notes().get("embedder")
        if held is None:
            store.note("embedder", embedder.name)
        elif held != embedder.name:
            raise DougongError(
                f"the library was made with the embedder {held}, not {embedder.name}; open it with that one, or make a "
                "new library"
            )

    @classmethod
    def open(
        cls, uri: str, embedder: Embedder | None = None, chunker: Chunker | None = None, kind: Choice | None = None
    ) -> Library:
        """The library at `uri`, made where there is none: a folder, "memory:", "milvus:PATH.db" or "milvus:http://...".

        embedder: default MiniLM. chunker: default by structure, 200 words with an overlap of 30. kind: of FAISS's
        index, noted for the next time; default as noted, at first "auto": exact for few, HNSW for many chunks. Raises
        DougongError for a library that another embedder made, and for a kind of a milvus: library.
        """
        embedder = embedder or default_embedder()
        return cls(open_store(uri, embedder.width, kind), embedder, chunker or Structure(200, 30))

    # -- documents in --------------------------------------------------------------------------------------------------

    def add(self, folder: str | Path, progress: Callable[[int, int], None] | None = None) -> Report:
        """Bring the index up to a folder (or one file): what is new or changed is read, what is gone is removed, the
        rest is not touched. A file that cannot be read is skipped and reported.

        A document's name is the folder's name and the path below it: "docs/guide/a.md". progress: (files done, files).
        Raises DougongError for a folder that does not exist, or whose name another indexed folder already has (one that
        is gone from where it was has moved).
        """
        root = Path(folder).resolve()
        base = printable(root.name) or "root"
        files = list(find_files(root))
        held = self.store.notes().get(f"root:{base}")
        if held is not None and held != str(root) and Path(held).exists():
            raise DougongError(f"a folder named {base} is in the library already ({held}); rename one of the two")
        self.store.note(f"root:{base}", str(root))
        named = [(base if root.is_file() else f"{base}/{name}", path) for name, path in files]
        known = self.store.files()
        mine = {name for name in known if name == base or name.startswith(f"{base}/")}
        report = Report(removed=sorted(mine - {name for name, _ in named}))
        self._drop(report.removed)
        self._follow((self._look(name, path, known) for name, path in named), known, report, len(named), progress)
        return report

    def add_documents(
        self, documents: Iterable[Document], progress: Callable[[int, int], None] | None = None
    ) -> Report:
        """Add documents that are texts already; one whose name is there is replaced where it changed. Of several
        with the same name the first is taken and the others are told as skipped."""
        listed = list(documents)
        known, report = self.store.files(), Report()
        reads = (_Read(each.source, self._digest(_bytes(each)), [each]) for each in listed)
        self._follow(reads, known, report, len(listed), progress)
        return report

    def remove(self, name: str) -> None:
        """Remove a file, or a document that was added by itself, from everywhere. Raises DougongError if not there."""
        if name not in self.store.files():
            raise DougongError(f"there is no file {name!r} in the library")
        self._drop([name])

    def watch(self, changed: Callable[[set[str]], object]) -> None:
        """Call `changed` with the names of files that were removed, replaced or added, after each change: what is built
        on chunks (a graph) repairs itself."""
        self._watchers.append(changed)

    def _drop(self, files: Sequence[str]) -> None:
        if files:
            self.store.replace(files, [])
            self._tell(set(files))

    def _tell(self, files: set[str]) -> None:
        for watcher in self._watchers:
            watcher(files)

    def _digest(self, data: bytes) -> str:
        return hashlib.blake2b(data + b"\0" + self.chunker.name.encode(), digest_size=16).hexdigest()

    def _look(self, name: str, path: Path, known: dict[str, str]) -> _Read:
        try:
            data = read_bytes(path)
        except OSError as error:
            return _Read(name, "", [], f"{name} cannot be read: {error.strerror or error}")
        except DougongError as error:
            return _Read(name, "", [], str(error))
        digest = self._digest(data)
        if known.get(name) == digest:
            return _Read(name, digest, [])
        try:
            documents = read_file(name, data)
        except DougongError as error:
            return _Read(name, digest, [], str(error))
        except Exception as error:  # a parser's own fault must not end the work on all other files
            return _Read(name, digest, [], f"{name} cannot be read: {type(error).__name__}: {error}")
        return _Read(name, digest, [replace(each, meta={**each.meta, "file": name}) for each in documents])

    def _follow(
        self,
        reads: Iterator[_Read],
        known: dict[str, str],
        report: Report,
        total: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        """Index what is new among `reads`, in batches."""
        batch: list[tuple[_Read, list[Chunk]]] = []
        taken: set[str] = set()
        for done, read in enumerate(reads, start=1):
            if read.file in taken:  # names that are no UTF-8 are written as others may be named
                report.skipped.setdefault(read.file, f"{read.file} names more than one; the first is taken")
                continue
            taken.add(read.file)
            pieces = [] if read.reason or known.get(read.file) == read.digest else self._cut(read)
            read = _bounded(read, pieces, self.chunker)
            if read.reason:
                report.skipped[read.file] = read.reason
                if known.get(read.file) not in (None, read.digest):
                    self._drop([read.file])  # what it said before is no longer so
            elif known.get(read.file) == read.digest:
                report.unchanged += 1
            else:
                (report.changed if read.file in known else report.added).append(read.file)
                batch.append((read, [chunk for chunks in pieces for chunk in chunks]))
                if sum(len(chunks) for _, chunks in batch) >= BATCH:
                    report.chunks += self._write(batch)
                    batch = []
            if progress is not None:
                progress(done, total)
        report.chunks += self._write(batch)

    def _cut(self, read: _Read) -> list[list[Chunk]]:
        return [self.chunker.chunk(each) for each in read.documents]

    def _write(self, batch: list[tuple[_Read, list[Chunk]]]) -> int:
        if not batch:
            return 0
        files = {read.file for read, _ in batch}
        old = self.store.of_files(files)
        kept = {indexed(chunk): each for each, chunk in old.items()}
        wanted = list(dict.fromkeys(text for _, chunks in batch for chunk in chunks if (text := indexed(chunk))))
        fresh = [text for text in wanted if text not in kept]
        vectors = dict(zip(fresh, self.embedder.embed(fresh), strict=True)) if fresh else {}
        again = [text for text in wanted if text in kept]
        vectors.update(zip(again, self.store.vectors([kept[text] for text in again]), strict=True))
        self.store.replace(
            [],
            [
                Entry(
                    read.file,
                    read.digest,
                    read.documents,
                    chunks,
                    np.array([vectors[indexed(chunk)] for chunk in chunks], dtype=np.float32).reshape(
                        len(chunks), self.embedder.width
                    ),
                )
                for read, chunks in batch
            ],
        )
        self._tell(files)
        return len(fresh)

    # -- answers out ---------------------------------------------------------------------------------------------------

    def retriever(self, how: How = "hybrid") -> Retriever:
        """Search by words (BM25), by vectors, or by half of the score each where the embedder knows the script."""
        if how == "words":
            return self._words
        return self._dense if how == "dense" else Suited(self._words, self._dense, self.embedder)

    def search(self, query: str, k: int = 5, where: Where | None = None, how: How = "hybrid") -> list[Hit]:
        """Up to k hits, best first; `where` filters by document name and meta."""
        if k < 1:
            raise DougongError(f"k is {k}; expected at least 1")
        return self.retriever(how).search(query, k, where)

    def ask(
        self,
        question: str,
        model: ChatModel,
        k: int = 6,
        where: Where | None = None,
        retriever: Retriever | None = None,
    ) -> Answer:
        """An answer by a model from k chunks, with citations that resolve to byte spans of the documents."""
        from dougong.rag.answer import answer

        hits = (retriever or self.retriever()).search(question, k, where)
        return answer(question, [hit.chunk for hit in hits], model)

    def close(self) -> None:
        """Let go of the store."""
        self.store.close()
