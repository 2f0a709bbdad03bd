"""Milvus: the same code for a file (milvus-lite), a server and a cluster."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, final

import numpy as np

from dougong.base import DougongError
from dougong.parts.shapes import Float
from dougong.rag.chunk import Chunk
from dougong.rag.extras import need
from dougong.rag.stores.store import Entry, Store
from dougong.rag.where import Where, holds

LONGEST = 60_000
"""Bytes of a VARCHAR; longer texts are kept in parts."""
PAGE = 1000


@final
class MilvusStore(Store):
    """Two collections: `dougong_chunks` with the vectors, `dougong_files` with the texts and digests.

    Milvus has no transactions, so the order makes a file whole or absent: its row is written last and removed first;
    chunks without their file's row are not seen, and go when the file is indexed again.
    """

    def __init__(self, uri: str, width: int, collection: str = "dougong"):
        milvus = need("pymilvus", "a milvus: library")
        logging.getLogger("pymilvus").setLevel(logging.ERROR)
        if "://" not in uri:
            need("milvus_lite", "a milvus: library in a file")
            # milvus-lite logs an error for each call of the protocol that only clusters have.
            logging.getLogger("grpc._server").setLevel(logging.CRITICAL)
            if not uri.endswith(".db"):
                raise DougongError(f"the Milvus file {uri!r} does not end in .db, as milvus-lite wants")
            Path(uri).absolute().parent.mkdir(parents=True, exist_ok=True)
        self._milvus, self._width = milvus, width
        self._chunks_name, self._files_name = f"{collection}_chunks", f"{collection}_files"
        try:
            self._client = milvus.MilvusClient(uri, token=os.environ.get("MILVUS_TOKEN", ""))
            self._make()
        except milvus.MilvusException as error:
            raise DougongError(f"Milvus at {uri} cannot be used: {error.message or error}") from error
        self._generation = 0
        self._cache: tuple[int, dict[int, Chunk]] = (-1, {})

    def _make(self) -> None:
        kinds = self._milvus.DataType
        chunk_fields = {"doc": 2000, "file": 2000, "text": 65_535, "meta": 65_535}
        file_fields = {"doc": 2000, "file": 2000, "text": 65_535, "digest": 200}
        for name, fields, width in (
            (self._chunks_name, chunk_fields, self._width),
            (self._files_name, file_fields, 2),
        ):
            if self._client.has_collection(name):
                held = self._client.describe_collection(name)["fields"]
                wide = next(field["params"]["dim"] for field in held if field["name"] == "vector")
                if int(wide) != width:
                    raise DougongError(f"the collection {name} holds vectors of width {wide}, not {width}")
                self._client.load_collection(name)
                continue
            schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("id", kinds.INT64, is_primary=True)
            for field, length in fields.items():
                schema.add_field(field, kinds.VARCHAR, max_length=length)
            schema.add_field("start", kinds.INT64)
            schema.add_field("stop", kinds.INT64)
            schema.add_field("tags", kinds.JSON)
            schema.add_field("vector", kinds.FLOAT_VECTOR, dim=width)
            index = self._client.prepare_index_params()
            index.add_index("vector", index_type="AUTOINDEX", metric_type="IP")
            self._client.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")

    def _rows(self, name: str, condition: str, fields: list[str]) -> Iterator[dict[str, Any]]:
        """Every row that meets the condition, by pages along the ids."""
        last = -1
        while True:
            asked = f"id > {last}" + (f" and ({condition})" if condition else "")
            # Milvus gives no order: a page is whole only if it is asked for by its ids.
            ids = sorted(
                row["id"] for row in self._client.query(name, filter=asked, output_fields=["id"], limit=16_000)
            )
            for first in range(0, len(ids), PAGE):
                page = ids[first : first + PAGE]
                yield from self._client.get(name, ids=page, output_fields=["id", *fields])
            if len(ids) < 16_000:
                return
            last = ids[-1]

    def files(self) -> dict[str, str]:
        rows = self._rows(self._files_name, "start == -1", ["file", "digest"])
        return dict(sorted((row["file"], row["digest"]) for row in rows if not row["file"].startswith("\0")))

    def documents(self) -> dict[str, str]:
        known = self.files()
        rows = self._rows(self._files_name, "start == 0", ["doc", "file"])
        return dict(sorted((row["doc"], row["file"]) for row in rows if row["file"] in known))

    def text(self, doc: str) -> str:
        rows = self._rows(self._files_name, f"doc == {json.dumps(doc)} and start >= 0", ["start", "text"])
        parts = sorted((row["start"], row["text"]) for row in rows)
        if not parts:
            raise DougongError(f"there is no document {doc!r} in the library")
        return "".join(part for _, part in parts)

    def replace(self, drop: Collection[str], entries: Sequence[Entry]) -> None:
        for file in {*drop, *(entry.file for entry in entries)}:
            named = f"file == {json.dumps(file)}"
            self._client.delete(self._files_name, filter=f"{named} and start == -1")
            self._client.delete(self._files_name, filter=named)
            self._client.delete(self._chunks_name, filter=named)
        for entry in entries:
            self._insert(entry)
        self._generation += 1

    def _insert(self, entry: Entry) -> None:
        chunks = [
            {
                "id": chunk.id,
                "doc": chunk.doc,
                "file": entry.file,
                "start": chunk.start,
                "stop": chunk.end,
                "text": chunk.text,
                "meta": json.dumps(chunk.meta),
                "vector": vector.tolist(),
                "tags": {key: value for key, value in chunk.meta.items() if isinstance(value, (str, int, float, bool))},
            }
            for chunk, vector in zip(entry.chunks, entry.vectors, strict=True)
        ]
        texts = [
            self._file_row(entry.file, document.source, number, part)
            for document in entry.documents
            for number, part in enumerate(_parts(document.text))
        ]
        for name, rows in ((self._chunks_name, chunks), (self._files_name, texts)):
            for first in range(0, len(rows), PAGE):
                self._client.upsert(name, rows[first : first + PAGE])
        self._client.upsert(self._files_name, [self._file_row(entry.file, "", -1, entry.reason, entry.digest)])

    def _file_row(self, file: str, doc: str, number: int, text: str, digest: str = "") -> dict[str, Any]:
        name = f"{file}\0{doc}\0{number}".encode("utf-8", "surrogatepass")
        key = int.from_bytes(blake2b(name, digest_size=8).digest(), "big") >> 1
        return {
            "id": key,
            "file": file,
            "doc": doc,
            "start": number,
            "stop": 0,
            "text": text,
            "digest": digest,
            "tags": {},
            "vector": [1.0, 0.0],
        }

    def chunks(self) -> dict[int, Chunk]:
        if self._cache[0] != self._generation:
            known = self.files()
            fields = ["doc", "file", "start", "stop", "text", "meta"]
            rows = [row for row in self._rows(self._chunks_name, "", fields) if row["file"] in known]
            rows.sort(key=lambda row: (row["doc"], row["start"]))
            self._cache = (self._generation, {row["id"]: _chunk(row) for row in rows})
        return self._cache[1]

    def of_files(self, files: Collection[str]) -> dict[int, Chunk]:
        fields = ["doc", "start", "stop", "text", "meta"]
        named = (f"file == {json.dumps(file)}" for file in files)
        rows = [row for each in named for row in self._rows(self._chunks_name, each, fields)]
        return {row["id"]: _chunk(row) for row in rows}

    def vectors(self, ids: Sequence[int]) -> Float[np.ndarray, "N D"]:
        held: dict[int, Any] = {}
        for first in range(0, len(ids), PAGE):
            for row in self._client.get(
                self._chunks_name, ids=list(ids[first : first + PAGE]), output_fields=["vector"]
            ):
                held[row["id"]] = row["vector"]
        return np.array([held[each] for each in ids], dtype=np.float32).reshape(len(ids), self._width)

    def nearest(self, vector: Float[np.ndarray, " D"], k: int, where: Where | None = None) -> list[tuple[int, float]]:
        chunks = self.chunks()
        wanted = k
        while chunks and k > 0:
            found = self._client.search(
                self._chunks_name,
                [vector.astype(np.float32).tolist()],
                limit=min(wanted, 16_000),
                filter=_condition(where),
                output_fields=["id"],
            )[0]
            # Patterns of names, and chunks whose file is gone, are told apart here.
            kept = [(hit["id"], float(hit["distance"])) for hit in found]
            kept = [(each, score) for each, score in kept if each in chunks and holds(where, chunks[each])]
            if len(kept) >= k or len(found) < wanted or wanted >= 16_000:
                return kept[:k]
            wanted *= 4
        return []

    def notes(self) -> dict[str, str]:
        rows = self._rows(self._files_name, "start == -2", ["doc", "text"])
        return {row["doc"]: row["text"] for row in rows}

    def note(self, key: str, value: str) -> None:
        self._client.upsert(self._files_name, [self._file_row("\0note", key, -2, value)])

    def generation(self) -> int:
        return self._generation

    def close(self) -> None:
        self._client.close()


def _chunk(row: dict[str, Any]) -> Chunk:
    return Chunk(row["text"], row["doc"], row["start"], row["stop"], json.loads(row["meta"]))


def _parts(text: str) -> Iterator[str]:
    """Pieces of at most LONGEST bytes of UTF-8 (a character has up to four), at least one."""
    step = LONGEST // 4
    for first in range(0, max(1, len(text)), step):
        yield text[first : first + step]


def _condition(where: Where | None) -> str:
    """The part of a filter that Milvus can decide; the rest is decided afterwards."""
    parts = []
    for key, wanted in (where or {}).items():
        choices = list(wanted) if isinstance(wanted, Sequence) and not isinstance(wanted, str) else [wanted]
        simple = all(isinstance(choice, (str, int, float)) for choice in choices)
        if key != "doc" and simple and choices:
            # Not `in`: milvus-lite knows it for plain fields only.
            equal = [f"tags[{json.dumps(key)}] == {json.dumps(choice, ensure_ascii=False)}" for choice in choices]
            parts.append(f"({' or '.join(equal)})")
    return " and ".join(parts)
