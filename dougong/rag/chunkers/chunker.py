"""What every chunker is: a choice of cuts. The rest is the same for all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from typing import Any, final

from dougong.base import DougongError
from dougong.data import Document
from dougong.rag.chunk import Chunk, byte_spans
from dougong.rag.pack import Cut, pack
from dougong.rag.ruler import Ruler, Words
from dougong.rag.structure import OUTLINES, Outline


class Chunker(ABC):
    """Cuts documents into chunks of at most `limit` tokens, neighbours sharing up to `overlap`.

    A chunk is exactly `document.text[start:end]`; none is blank; together they hold every character but white space.
    ruler: what a token is (default: words).
    """

    def __init__(self, limit: int = 200, overlap: int = 0, ruler: Ruler | None = None):
        if limit < 1:
            raise DougongError(f"the limit of a chunk is {limit} tokens; expected at least 1")
        if not 0 <= overlap < limit:
            raise DougongError(f"the overlap is {overlap} tokens; expected from 0 to below the limit of {limit}")
        self.limit = limit
        self.overlap = overlap
        self.ruler = ruler or Words()

    @abstractmethod
    def cuts(self, document: Document) -> list[Cut]:
        """Where the document may be cut, in any order."""

    @property
    def name(self) -> str:
        """What an index remembers: documents are cut anew when it changes."""
        return f"{type(self).__name__.lower()}-{self.limit}-{self.overlap}-{type(self.ruler).__name__.lower()}"

    @final
    def chunk(self, document: Document) -> list[Chunk]:
        """The chunks of a document, in its order. Their meta is the document's own, with "heading", "page" (from 1)
        where they are known, and "bytes": the span in the file or, where the text was extracted, in its UTF-8."""
        text = document.text
        spans = pack(text, self.cuts(document), self.ruler, self.limit, self.overlap)
        inherited = {key: value for key, value in document.meta.items() if key != "pages"}
        pages = document.meta.get("pages", ())
        outline = outline_of(document)
        bytes_of = byte_spans(text, spans, str(inherited.get("encoding", "utf-8")))
        chunks = []
        for (start, end), span in zip(spans, bytes_of, strict=True):
            meta: dict[str, Any] = {**inherited, "bytes": list(span)}
            if heading := outline.heading(start):
                meta["heading"] = heading
            if pages:
                meta["page"] = bisect_right(pages, start)
            chunks.append(Chunk(text[start:end], document.source, start, end, meta))
        return chunks


def outline_of(document: Document) -> Outline:
    """The structure of a document by its kind; of unknown kinds, that of plain text."""
    return OUTLINES.get(str(document.meta.get("kind", "text")), OUTLINES["text"])(document.text)
