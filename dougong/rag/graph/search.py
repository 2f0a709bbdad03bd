"""Search in the graph: around the entities of a question, over all communities, along paths."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, final

from dougong.base import DougongError, nearest
from dougong.chat import ChatModel, Message
from dougong.rag.graph.communities import Community, communities, summary
from dougong.rag.graph.extract import Relation
from dougong.rag.graph.graph import Graph, key
from dougong.rag.hit import Hit, Retriever, best
from dougong.rag.retrievers.rewriting import asked
from dougong.rag.terms import terms
from dougong.rag.where import Where, holds
from dougong.rag.words import WordIndex


def entities_in(graph: Graph, query: str) -> list[str]:
    """Keys of the entities whose names stand in a query (all terms of the name, or the very words), longest first."""
    words, plain = set(terms(query)), key(query)
    found = []
    for each in graph.view.entities:
        name = terms(each)
        if (name and words.issuperset(name)) or (len(each) > 1 and not each.isascii() and each in plain):
            found.append(each)
    return sorted(found, key=lambda each: (-len(each), each))


@final
class Local(Retriever):
    """Chunks that mention the question's entities or say something of their neighbours.

    An entity's chunk counts 1, a chunk of an edge at it counts 1/2, of an edge one step further 1/4 ..., each divided
    by how many chunks that entity or edge has: what is said everywhere tells little. Where no entity is named in the
    question, those with words in common with it stand in for them.
    """

    def __init__(self, graph: Graph, steps: int = 2):
        self._graph, self._steps = graph, steps

    def search(self, query: str, k: int = 10, where: Where | None = None) -> list[Hit]:
        view = self._graph.view
        start = entities_in(self._graph, query) or self._alike(query)
        scores: dict[int, float] = {}
        for each in start:
            for chunk in view.entities[each].chunks:
                scores[chunk] = scores.get(chunk, 0.0) + 1.0 / len(view.entities[each].chunks)
        reached, ring, share = set(start), list(start), 0.5
        for _ in range(self._steps):
            further: list[str] = []
            for edge in dict.fromkeys((edge.one, edge.two) for each in ring for edge in view.neighbours[each]):
                chunks = view.edges[edge].chunks
                for chunk in chunks:
                    scores[chunk] = scores.get(chunk, 0.0) + share / len(chunks)
                further += [end for end in edge if end not in reached]
                reached.update(edge)
            ring, share = further, share / 2
        hits = [Hit(self._graph.chunk(chunk), score) for chunk, score in sorted(scores.items())]
        return best([hit for hit in hits if holds(where, hit.chunk)], k)

    def _alike(self, query: str) -> list[str]:
        names = list(self._graph.view.entities)
        index = WordIndex(list(range(len(names))), names)
        return [names[place] for place, _ in index.search(query, 3)]


class Step(NamedTuple):
    """One edge of a path: what is said, and the ids of the chunks that say it."""

    relation: Relation
    chunks: tuple[int, ...]


def paths(graph: Graph, one: str, two: str, most: int = 3) -> list[list[Step]]:
    """Up to `most` shortest paths between two entities; each step is backed by chunks. [] where none leads there.

    Raises DougongError for a name that is not in the graph.
    """
    view = graph.view
    names = list(view.entities)
    ends = []
    for name in (one, two):
        if key(name) not in view.entities:
            raise DougongError(f"there is no entity {name!r} in the graph{nearest(key(name), names)}")
        ends.append(names.index(key(name)))
    if ends[0] == ends[1] or not view.edges:
        return []
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # igraph warns where no path leads there
        found = view.igraph.get_all_shortest_paths(ends[0], ends[1])
    result = []
    for path in sorted(found)[:most]:
        steps = []
        for here, there in pairwise(path):
            edge = view.edges[min(names[here], names[there]), max(names[here], names[there])]
            relation = max(edge.said, key=lambda each: (len(edge.said[each]), each))
            steps.append(Step(relation, edge.said[relation]))
        result.append(steps)
    return result


POINTS: dict[str, Any] = {
    "type": "object",
    "properties": {"answer": {"type": "string"}, "helpful": {"type": "integer"}},
    "required": ["answer", "helpful"],
    "additionalProperties": False,
}


def fitting(
    graph: Graph, question: str, most: int, model: ChatModel | None = None, resolution: float = 1.0
) -> list[tuple[Community, str]]:
    """Up to `most` communities with their summaries, those with the most of the question's words first, then the
    largest."""
    every = communities(graph.view, resolution)
    summaries = [summary(graph, each, model) for each in every]
    graph.keep()
    index = WordIndex(list(range(len(every))), summaries)
    order = [place for place, _ in index.search(question, most)]
    order += [place for place in range(len(every)) if place not in order]
    return [(every[place], summaries[place]) for place in order[:most]]


@dataclass(frozen=True)
class GlobalAnswer:
    """text: the answer. communities: those it was made from, the most helpful first."""

    text: str
    communities: tuple[Community, ...]


def ask_globally(graph: Graph, question: str, model: ChatModel, most: int = 8, resolution: float = 1.0) -> GlobalAnswer:
    """An answer to a question about the whole (Edge et al. 2024): each of the `most` communities whose summaries fit
    best answers for itself and says how helpful that is (0 to 100), and a last answer is made from the helpful."""
    found = fitting(graph, question, most, model, resolution)
    points: list[tuple[int, int, str]] = []
    for place, (_, report) in enumerate(found):
        prompt = (
            f"Question: {question}\n\nReport: {json.dumps(report, ensure_ascii=False)}\n\n"
            "Answer from this report alone, and say from 0 to 100 how helpful the answer is; 0 if it says nothing."
        )
        said = asked(model, prompt, POINTS)
        helpful, text = said.get("helpful"), said.get("answer")
        if isinstance(helpful, int) and isinstance(text, str) and helpful > 0 and text.strip():
            points.append((-helpful, place, text.strip()))
    if not points:
        return GlobalAnswer("The documents do not answer this.", ())
    points.sort()
    listed = "\n".join(f"- {json.dumps(text, ensure_ascii=False)}" for _, _, text in points)
    prompt = f"Question: {question}\n\nPartial answers, the most helpful first:\n{listed}\n\nMake one answer of them."
    text = model.complete([Message("user", prompt)]).content.strip()
    return GlobalAnswer(text, tuple(found[place][0] for _, place, _ in points))
