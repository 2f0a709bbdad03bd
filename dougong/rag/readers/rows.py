"""JSON and JSON lines: a row is a document."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from dougong.base import DougongError
from dougong.data import Document
from dougong.data.readers import well_formed
from dougong.rag.readers.texts import exactly

TEXT_KEYS = ("text", "content", "body", "passage", "paragraph_text", "contents")
"""Where a row's text is looked for; of rows with none of these every string is taken, a line each."""


def read_rows(data: bytes, name: str) -> list[Document]:
    """Each line of .jsonl, each entry of a .json list, as "NAME:12"; its other short values become meta.

    A title is put before the text. Raises DougongError that names the line that is not JSON.
    """
    text, _ = exactly(data, name)
    documents = []
    for number, row in _rows(text, name):
        words, meta = _row(row)
        if words.strip():
            documents.append(
                Document(well_formed(words), f"{name}:{number}", meta={"kind": "text", "extracted": True, **meta})
            )
    return documents


def _rows(text: str, name: str) -> Iterator[tuple[int, Any]]:
    try:
        if name.lower().endswith(".json"):
            value = json.loads(text)
            yield from enumerate(value if isinstance(value, list) else [value], start=1)
            return
    except (json.JSONDecodeError, RecursionError) as error:
        raise DougongError(f"{name} is not JSON: {error}") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise DougongError(f"{name}, line {number} is not JSON: {error}") from None


def _row(row: Any) -> tuple[str, dict[str, Any]]:
    if not isinstance(row, Mapping):
        return (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)), {}
    key = next((key for key in TEXT_KEYS if isinstance(row.get(key), str)), None)
    if key is None:
        return "\n".join(f"{key}: {value}" for key, value in row.items() if isinstance(value, (str, int, float))), {}
    title = row.get("title")
    words = f"{title}\n\n{row[key]}" if isinstance(title, str) and title.strip() else row[key]
    meta = {
        str(name): value
        for name, value in row.items()
        if name != key and isinstance(value, (str, int, float, bool)) and len(str(value)) <= 200
    }
    # What the index itself says of a chunk is not the row's to overwrite.
    for reserved in ("kind", "encoding", "extracted", "pages", "page", "bytes", "heading"):
        meta.pop(reserved, None)
    return words, meta
