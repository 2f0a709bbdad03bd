"""JSON and JSON lines: a row is a document."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

from dougong.base import DougongError
from dougong.data import Document
from dougong.data.readers import well_formed
from dougong.rag.readers.texts import exactly

TEXT_KEYS = ("text", "content", "body", "passage", "paragraph_text", "contents")
"""Where a row's text is looked for; of rows with none of these every value is taken, a line each."""


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
    except (ValueError, RecursionError) as error:  # ValueError: not JSON, or a number of thousands of digits
        raise DougongError(f"{name} is not JSON: {error}") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DougongError(f"{name}, line {number} is not JSON: {error}") from None


def _row(row: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(row, str):
        return row, {}
    key = next((key for key in TEXT_KEYS if isinstance(row.get(key), str)), None) if isinstance(row, Mapping) else None
    if key is None:
        return "\n".join(_values("", row)), {}
    title = row.get("title")
    words = f"{title}\n\n{row[key]}" if isinstance(title, str) and title.strip() else row[key]
    meta = {
        well_formed(str(name)): well_formed(value) if isinstance(value, str) else value
        for name, value in row.items()
        if name != key and isinstance(value, (str, int, float, bool)) and len(str(value)) <= 200
    }
    # What the index itself says of a chunk is not the row's to overwrite.
    for reserved in ("kind", "encoding", "extracted", "pages", "page", "bytes", "heading", "file"):
        meta.pop(reserved, None)
    # NaN and infinities are no JSON, and a store may keep what is known of a chunk as such.
    return words, {name: value for name, value in meta.items() if not isinstance(value, float) or isfinite(value)}


def _values(path: str, value: Any) -> Iterator[str]:
    """What stands in a row, however deep: "answers: alpha", "messages.role: user"."""
    waiting: list[tuple[str, Any]] = [(path, value)]
    while waiting:  # no recursion: rows may be nested thousands deep
        path, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [(f"{path}.{key}" if path else str(key), each) for key, each in reversed(list(value.items()))]
        elif isinstance(value, list):
            waiting += [(path, each) for each in reversed(value)]
        elif value is not None and value != "":
            told = value if isinstance(value, str) else json.dumps(value)
            yield f"{path}: {told}" if path else told
