"""Chunk: a piece of a document that knows exactly where it stands."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Chunk:
    """`text` is exactly `source[start:end]` of the document named `doc` (characters of its text, not bytes).

    meta  what else is known: "heading" (the titles above it), "page", "bytes" (its span in the file), "file"
    """

    text: str
    doc: str
    start: int
    end: int
    meta: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def id(self) -> int:
        """A number (63 bits) for this text at this place: the same in every index and every run."""
        name = f"{self.doc}\0{self.start}\0{self.end}\0{self.text}".encode("utf-8", "surrogatepass")
        return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1


def byte_spans(text: str, spans: Sequence[tuple[int, int]], encoding: str = "utf-8") -> list[tuple[int, int]]:
    """Where the characters [start, end) of `text` stand in its file, in bytes; a byte-order mark is counted.

    spans: ascending by start. encoding: what the file is written in: "utf-8", "utf-8-sig", "utf-16" or "gb18030".
    """
    mark = len("".encode(encoding))

    def size(piece: str) -> int:
        return len(piece.encode(encoding, "surrogatepass")) - mark

    found, place, offset = [], 0, mark
    for start, end in spans:
        offset += size(text[place:start])
        place = start
        found.append((offset, offset + size(text[start:end])))
    return found
