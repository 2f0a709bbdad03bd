"""Memory or a folder: one SQLite file holds everything, FAISS's file beside it is a copy that can be lost."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast, final, get_args

import numpy as np

from dougong.base import DougongError, atomic_file
from dougong.parts.shapes import Float
from dougong.rag.chunk import Chunk
from dougong.rag.stores.store import Entry, Store
from dougong.rag.vectors import FORM, Choice, VectorIndex, chosen
from dougong.rag.where import Where, holds

SCHEMA = """
CREATE TABLE IF NOT EXISTS notes (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS files (name TEXT PRIMARY KEY, digest TEXT NOT NULL, reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS documents (
    name TEXT PRIMARY KEY, text TEXT NOT NULL,
    file TEXT NOT NULL REFERENCES files(name) ON DELETE CASCADE);
CREATE TABLE IF NOT EXISTS chunks (
    id INTEGER PRIMARY KEY, doc TEXT NOT NULL REFERENCES documents(name) ON DELETE CASCADE,
    start INTEGER NOT NULL, stop INTEGER NOT NULL, text TEXT NOT NULL, meta TEXT NOT NULL, vector BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS of_file ON documents(file);
CREATE INDEX IF NOT EXISTS of_document ON chunks(doc, start);
"""


@final
class SqliteStore(Store):
    """A change is one transaction, so a process killed at any moment leaves the last whole state. Searching needs all
    chunks and vectors in memory: good for some hundred thousand."""

    def __init__(self, folder: str | Path | None, width: int, kind: Choice | None = None):
        self._folder = None if folder is None else Path(folder)
        self._width = width
        place = ":memory:"
        if self._folder is not None:
            if self._folder.is_file():
                raise DougongError(f"{self._folder} is a file; a library is a folder")
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DougongError(f"the folder {self._folder} cannot be made: {error.strerror}") from error
            place = str(self._folder / "library.sqlite")
        with self._explained():
            self._db = sqlite3.connect(place, check_same_thread=False, timeout=30)
            self._db.execute("PRAGMA foreign_keys = ON")
            self._db.execute("PRAGMA secure_delete = ON")  # what is removed is not left in free pages of the file
            self._db.executescript(SCHEMA)
        self._seen = -1
        self._chunks: dict[int, Chunk] = {}
        self._index: VectorIndex | None = None
        held = self.notes().get("width")
        if held is None:
            self.note("width", str(width))
        elif int(held) != width:
            raise DougongError(
                f"the library {self._folder} holds vectors of width {held}, but the embedder's are {width} wide; open "
                "it with the embedder that made it, or make a new one"
            )
        self._kind: Choice = self._chosen(kind)

    def _chosen(self, kind: Choice | None) -> Choice:
        """The kind of index that is asked for, which is noted; of None, what was noted."""
        noted = self.notes().get("index", "auto")
        if kind is None:
            return cast(Choice, noted) if noted in get_args(Choice) else "auto"
        if kind != noted:
            self.note("index", kind)
        return kind

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise DougongError(f"the library {self._folder or 'in memory'} cannot be used: {error}") from error

    def files(self) -> dict[str, str]:
        return dict(self._db.execute("SELECT name, digest FROM files ORDER BY name"))

    def documents(self) -> dict[str, str]:
        return dict(self._db.execute("SELECT name, file FROM documents ORDER BY name"))

    def text(self, doc: str) -> str:
        row = self._db.execute("SELECT text FROM documents WHERE name = ?", (doc,)).fetchone()
        if row is None:
            raise DougongError(f"there is no document {doc!r} in the library")
        return row[0]

    def replace(self, drop: Collection[str], entries: Sequence[Entry]) -> None:
        gone = {*drop, *(entry.file for entry in entries)}
        with self._explained(), self._db:
            deleted = self._db.executemany("DELETE FROM files WHERE name = ?", [(name,) for name in gone]).rowcount
            for entry in entries:
                self._insert(entry)
            self._db.execute(
                "INSERT INTO notes VALUES ('generation', '1') "
                "ON CONFLICT (key) DO UPDATE SET value = CAST(value AS INTEGER) + 1"
            )
        if deleted > 0 and self._folder is not None:
            _remove_copies(self._folder)

    def _insert(self, entry: Entry) -> None:
        self._db.execute("INSERT INTO files VALUES (?, ?, ?)", (entry.file, entry.digest, entry.reason))
        self._db.executemany(
            "INSERT INTO documents VALUES (?, ?, ?)",
            [(document.source, document.text, entry.file) for document in entry.documents],
        )
        self._db.executemany(
            "INSERT OR REPLACE INTO chunks VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    *(chunk.id, chunk.doc, chunk.start, chunk.end, chunk.text),
                    *(json.dumps(chunk.meta, ensure_ascii=False), vector.astype("<f4").tobytes()),
                )
                for chunk, vector in zip(entry.chunks, entry.vectors, strict=True)
            ],
        )

    def chunks(self) -> dict[int, Chunk]:
        self._refresh()
        return self._chunks

    def of_files(self, files: Collection[str]) -> dict[int, Chunk]:
        """From the database: while files are added in many batches, what all chunks are is nobody's question."""
        asked = (
            "SELECT id, doc, start, stop, text, meta FROM chunks "
            "WHERE doc IN (SELECT name FROM documents WHERE file = ?) ORDER BY doc, start"
        )
        with self._explained():
            rows = [row for file in files for row in self._db.execute(asked, (file,))]
        return {row[0]: _chunk(row) for row in rows}

    def _refresh(self) -> None:
        """Bring the chunks in memory, and FAISS's index where there is one, up to the state of the database."""
        now = self.generation()
        if now == self._seen:
            return
        with self._explained():
            rows = self._db.execute(
                "SELECT id, doc, start, stop, text, meta FROM chunks ORDER BY doc, start"
            ).fetchall()
        before = self._chunks
        self._chunks = {row[0]: before.get(row[0]) or _chunk(row) for row in rows}
        if self._index is not None:
            new = [each for each in self._chunks if each not in before]
            self._index.remove(before.keys() - self._chunks.keys())
            try:
                self._index.add(new, self.vectors(new))
            except DougongError:
                self._index = None
            if self._index is not None:
                other = self._index.kind != chosen(self._kind, len(self._chunks))
                self._index = None if other or self._index.stale else self._index
        self._seen = now

    def vectors(self, ids: Sequence[int]) -> Float[np.ndarray, "N D"]:
        if len(ids) > 1000:
            held = dict(self._db.execute("SELECT id, vector FROM chunks"))
        else:
            marks = ",".join("?" * len(ids))
            held = dict(self._db.execute(f"SELECT id, vector FROM chunks WHERE id IN ({marks})", list(ids)))
        data = b"".join(held[each] for each in ids)
        return np.frombuffer(data, dtype="<f4").reshape(len(ids), self._width).astype(np.float32)

    def nearest(self, vector: Float[np.ndarray, " D"], k: int, where: Where | None = None) -> list[tuple[int, float]]:
        chunks = self.chunks()
        if self._index is None:
            self._index = self._open_index()
        allowed = None if not where else [each for each, chunk in chunks.items() if holds(where, chunk)]
        return self._index.search(vector, k, allowed)

    def _open_index(self) -> VectorIndex:
        """The index in the folder where it belongs to this very state, or a new one, which is kept there."""
        ids = list(self._chunks)
        kind = chosen(self._kind, len(ids))
        if self._folder is None:
            return VectorIndex(ids, self.vectors(ids), kind)
        file, note = self._folder / "vectors.faiss", self._folder / "vectors.json"
        state = {"generation": self._seen, "kind": kind, "width": self._width, "form": FORM}
        try:
            held = json.loads(note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            held = None
        found = VectorIndex.load(file, kind, ids) if held == state else None
        if found is not None:
            return found
        made = VectorIndex(ids, self.vectors(ids), kind)
        try:
            # The note goes first and comes last: at no moment does it speak of a file that it does not belong to.
            note.unlink(missing_ok=True)
            made.save(file)
            with atomic_file(note) as stream:
                json.dump(state, stream)
        except (DougongError, OSError):
            pass  # the folder is full or read-only: it can still be searched, with an index made anew each time
        return made

    def notes(self) -> dict[str, str]:
        with self._explained():
            return dict(self._db.execute("SELECT key, value FROM notes"))

    def note(self, key: str, value: str) -> None:
        with self._explained(), self._db:
            self._db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (key, value))

    def generation(self) -> int:
        with self._explained():
            row = self._db.execute("SELECT value FROM notes WHERE key = 'generation'").fetchone()
        return 0 if row is None else int(row[0])

    def kept_in(self) -> Path | None:
        return self._folder

    def close(self) -> None:
        self._db.close()


def _remove_copies(folder: Path) -> None:
    """What was made of the chunks and no longer holds: the indexes of words and vectors keep what was removed."""
    for name in ("words.json", "vectors.json", "vectors.faiss"):  # the notes first: nothing speaks of what is gone
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "words", ignore_errors=True)


def _chunk(row: tuple[int, str, int, int, str, str]) -> Chunk:
    chunk = Chunk(row[4], row[1], row[2], row[3], json.loads(row[5]))
    chunk.__dict__["id"] = row[0]  # its key: a search asks for it often, and hashing the text anew takes longer
    return chunk
