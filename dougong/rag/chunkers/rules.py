"""Chunkers that look at the text alone."""

from __future__ import annotations

import re
from typing import final

from dougong.data import Document
from dougong.rag.chunkers.chunker import Chunker, outline_of
from dougong.rag.pack import BLOCK, CLAUSE, LINE, SENTENCE, Cut
from dougong.rag.sentences import clause_starts, sentence_starts


@final
class Fixed(Chunker):
    """As many tokens as the limit allows, wherever that ends."""

    def cuts(self, document: Document) -> list[Cut]:
        return []


@final
class Sentences(Chunker):
    """Whole sentences, by rule; a sentence above the limit is cut at its clauses."""

    def cuts(self, document: Document) -> list[Cut]:
        text = document.text
        return [
            *(Cut(at, SENTENCE) for at in sentence_starts(text)),
            *(Cut(at, CLAUSE) for at in clause_starts(text)),
        ]


@final
class Recursive(Chunker):
    """Paragraphs where they fit, else lines, else sentences, else clauses, else words."""

    def cuts(self, document: Document) -> list[Cut]:
        text = document.text
        return [
            *(Cut(match.end(), BLOCK) for match in re.finditer(r"\n[^\S\n]*\n", text)),
            *(Cut(match.end(), LINE) for match in re.finditer("\n", text)),
            *(Cut(at, SENTENCE) for at in sentence_starts(text)),
            *(Cut(at, CLAUSE) for at in clause_starts(text)),
        ]


@final
class Structure(Chunker):
    """By the headings, paragraphs and sentences of Markdown, HTML and text, by the functions of code; tables and code
    blocks stay whole where they fit. The kind of a document is its `meta["kind"]`."""

    def cuts(self, document: Document) -> list[Cut]:
        return outline_of(document).cuts
