"""Retrievers that let a model reword the question first."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, final

from dougong.chat import ChatModel, Message
from dougong.data.readers import well_formed
from dougong.rag.fusion import reciprocal_rank
from dougong.rag.hit import Hit, Retriever
from dougong.rag.retrievers.mixed import deep
from dougong.rag.where import Where


def asked(model: ChatModel, prompt: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """The model's answer as the object that the schema describes; {} where it cannot be read."""
    answer = model.complete([Message("user", prompt)], schema=dict(schema))
    try:
        value = json.loads(answer.content)
        # JSON can escape half a surrogate pair, which no encoder could search for.
        value = json.loads(well_formed(json.dumps(value, ensure_ascii=False)))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def listed(value: Any) -> list[str]:
    """The strings of a list, without blanks; [] for anything else."""
    texts = [each.strip() for each in value if isinstance(each, str)] if isinstance(value, list) else []
    return [each for each in texts if each]


QUERIES = {
    "type": "object",
    "properties": {"queries": {"type": "array", "items": {"type": "string"}}},
    "required": ["queries"],
    "additionalProperties": False,
}


def rewrites(model: ChatModel, query: str, count: int) -> list[str]:
    """Up to `count` other wordings of a query, in its language; none where the model's answer cannot be read."""
    prompt = (
        f"Write {count} other search queries that would find what answers this one: other words, other points of view. "
        f"Keep its language.\n\nQuery: {query}"
    )
    found = [each for each in listed(asked(model, prompt, QUERIES).get("queries")) if each != query]
    return list(dict.fromkeys(found))[:count]


@final
class ManyQueries(Retriever):
    """The question and rewordings of it by a model, each searched for.

    fused: the rankings are joined by reciprocal ranks (RAG-Fusion, Rackauckas 2024); otherwise each chunk keeps its
    best place in any of them (multi-query).
    """

    def __init__(self, base: Retriever, model: ChatModel, count: int = 3, *, fused: bool = True):
        self._base, self._model, self._count, self._fused = base, model, count, fused

    def search(self, query: str, k: int = 10, where: Where | None = None) -> list[Hit]:
        queries = [query, *rewrites(self._model, query, self._count)]
        rankings = [self._base.search(each, deep(k), where) for each in queries]
        return reciprocal_rank(rankings, k) if self._fused else taking_turns(rankings, k)


def taking_turns(rankings: list[list[Hit]], k: int) -> list[Hit]:
    """All first places, then all second ones ...; a chunk that came before is passed over. The score is 1 / place."""
    found: dict[int, Hit] = {}
    for place in range(max(map(len, rankings), default=0)):
        for ranking in rankings:
            if place < len(ranking):
                found.setdefault(ranking[place].chunk.id, Hit(ranking[place].chunk, 1.0 / (place + 1)))
    return list(found.values())[:k]


@final
class Hypothetical(Retriever):
    """HyDE (Gao et al. 2022): a model writes a passage that might answer, and its neighbours are searched for. What it
    says need not be true. The question is searched for besides, joined by reciprocal ranks."""

    def __init__(self, base: Retriever, model: ChatModel, *, alone: bool = False):
        self._base, self._model, self._alone = base, model, alone

    def search(self, query: str, k: int = 10, where: Where | None = None) -> list[Hit]:
        prompt = f"Write a short passage, as it might stand in a book, that answers this question.\n\n{query}"
        passage = self._model.complete([Message("user", prompt)]).content.strip()
        queries = [passage] if self._alone and passage else [query, passage] if passage else [query]
        return reciprocal_rank([self._base.search(each, deep(k), where) for each in queries], k)
