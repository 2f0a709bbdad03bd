"""Chunkers: each chooses where a document may be cut; one packer (`dougong.rag.pack`) keeps limits and overlaps.

`fixed` tokens alone; `sentence` rules for Chinese and English; `recursive` paragraphs, lines, sentences, clauses;
`structure` headings, tables and code; `semantic` where an embedder sees the subject change; `decided` by a model.
"""

from dougong.rag.chunkers.chunker import Chunker
from dougong.rag.chunkers.decided import Decided
from dougong.rag.chunkers.rules import Fixed, Recursive, Sentences, Structure
from dougong.rag.chunkers.semantic import Semantic

__all__ = ["Chunker", "Decided", "Fixed", "Recursive", "Semantic", "Sentences", "Structure"]
