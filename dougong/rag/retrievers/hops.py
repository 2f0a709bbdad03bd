"""Questions of two hops, taken apart by rule."""

from __future__ import annotations

import re
from typing import final

from dougong.base import DougongError
from dougong.rag.chunk import Chunk
from dougong.rag.graph.extract import ByRule
from dougong.rag.hit import Hit, Retriever
from dougong.rag.retrievers.basic import indexed
from dougong.rag.retrievers.mixed import deep
from dougong.rag.retrievers.rewriting import taking_turns
from dougong.rag.terms import terms
from dougong.rag.where import Where

NAMES = 6
"""Names of a passage that its search goes on with."""


@final
class Hops(Retriever):
    """Search, then search on from each of the first `width` hits: for what the question asks that the hit does not say,
    with the names that the hit brings in. The rankings take turns.

    A rule, no model: it decomposes no grammar, it follows names. (`agentic.investigate` lets a model do it.)
    """

    def __init__(self, base: Retriever, width: int = 1):
        if width < 1:
            raise DougongError(f"the width is {width} hits; expected at least 1")
        self._base, self._width = base, width

    def search(self, query: str, k: int = 10, where: Where | None = None) -> list[Hit]:
        first = self._base.search(query, deep(k), where)
        rankings = [first]
        for hit in first[: self._width]:
            onward = further(query, hit.chunk)
            if onward:
                found = self._base.search(onward, deep(k), where)
                rankings.append([each for each in found if each.chunk.id != hit.chunk.id])
        return taking_turns(rankings, k)


def further(query: str, chunk: Chunk) -> str:
    """The query of the next hop: the question's words that the passage lacks, and the passage's names that the question
    lacks; "" where it brings in no name."""
    text, asked = indexed(chunk), query.casefold()
    held = set(terms(text))
    left = [word for word in re.findall(r"[\w'’-]+", query) if not held.issuperset(terms(word))]
    names = [name for name in ByRule().extract(text).entities if name.casefold() not in asked]
    return " ".join([*left, *names[:NAMES]]) if names else ""
