"""`dougong rag graph`: what the documents say about whom; answers from it, paths through it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from dougong.base import DougongError
from dougong.cli.options import Flag, hint, parse
from dougong.cli.rag import DRAWN, LIBRARY, EncoderPath, Into, ModelPath, chat_model, ready, tell_answer

if TYPE_CHECKING:
    from dougong.chat import ChatModel
    from dougong.rag.chunk import Chunk
    from dougong.rag.graph import Graph
    from dougong.rag.library import Library

FILE = "graph.json"


@dataclass(frozen=True)
class GraphOptions:
    """Draw a graph of names and relations from the library, and search in it.

    Without a question: what is in it, and its communities. The graph is kept beside the library and follows it.

    examples:
      dougong rag graph
      dougong rag graph "what has the with statement to do with exceptions?"
      dougong rag graph "what are the main subjects?" --search global --model http://localhost:8000/v1
      dougong rag graph --path "Ann Lee" "Red Mill"
    """

    question: Annotated[str | None, tyro.conf.Positional, hint("an overview", "QUESTION")] = None
    """what is asked"""
    search: Literal["local", "global"] = "local"
    """from the passages around the names in the question, or from summaries of all communities"""
    path: Annotated[tuple[str, str] | None, hint("none")] = None
    """two names: how they hang together, each step with the passages that say so"""
    library: Into = LIBRARY
    """where the index is"""
    graph: Annotated[Path | None, hint("in the library's folder")] = None
    """the file of the graph"""
    extract: Literal["rule", "model"] = "rule"
    """who finds names and relations in the text: rules, or --model (a request for every new chunk)"""
    model: ModelPath = None
    """who answers: a model folder, or the URL of an OpenAI-compatible endpoint"""
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 6
    """how many passages, communities or paths"""
    embedder: EncoderPath = None
    """the encoder that made the vectors"""
    json: Flag = False
    """print one JSON object"""


def run(args: list[str]) -> int:
    options = parse(GraphOptions, args, "rag graph")
    if options.k < 1:
        raise DougongError(f"-k is {options.k}; expected at least 1")
    if options.extract == "model" and options.model is None:
        raise DougongError("--extract model asks a model; give --model PATH or URL")
    if options.question is not None and not options.question.strip():
        raise DougongError("the question is empty")
    model = None if options.model is None else chat_model(options.model)
    library = ready(options.library, options.embedder)
    graph = opened(library, options.graph, model if options.extract == "model" else None, options.json)
    if options.path is not None:
        _paths(graph, options)
    elif options.question is None:
        _overview(graph, options, model)
    elif options.search == "global":
        _globally(graph, options, model)
    else:
        _locally(graph, options, model)
    return 0


def place_of(library: Library, named: Path | None) -> Path:
    """The graph's file. Raises DougongError where the library has no folder and none is named."""
    folder = library.store.kept_in()
    if named is None and folder is None:
        raise DougongError("this library is no folder, so the graph needs a file of its own; name it with --graph FILE")
    return named or (folder or Path()) / FILE


def opened(library: Library, named: Path | None, model: ChatModel | None, quiet: bool) -> Graph:
    """The graph, brought up to the library."""
    from dougong.rag.graph import ByModel, ByRule, Graph
    from dougong.train.monitor import Progress

    graph = Graph(library, ByRule() if model is None else ByModel(model), place_of(library, named))
    if named is not None:
        library.store.note(f"{DRAWN}{named.resolve()}", "")
    with Progress("chunks", max(1, len(library.store.chunks())), quiet=quiet) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done)

        graph.follow(update)
    return graph


def _locally(graph: Graph, options: GraphOptions, model: ChatModel | None) -> None:
    from dougong.rag.answer import answer, quote
    from dougong.rag.graph import Local

    question = options.question or ""
    chunks = [hit.chunk for hit in Local(graph).search(question, options.k)]
    tell_answer(quote(question, chunks) if model is None else answer(question, chunks, model), options.json)


def _globally(graph: Graph, options: GraphOptions, model: ChatModel | None) -> None:
    from dougong.rag.graph import ask_globally
    from dougong.rag.graph.search import fitting

    question = options.question or ""
    if model is None:  # nobody who could make one answer of them: what there is on the question, as it is said
        found = fitting(graph, question, options.k)
        text, parts = "\n\n".join(each for _, each in found), [each for each, _ in found]
    else:
        given = ask_globally(graph, question, model, options.k)
        text, parts = given.text, list(given.communities)
    names = [[graph.view.entities[each].name for each in part.members[:5]] for part in parts]
    if options.json:
        docs = [sorted({graph.chunk(each).doc for each in part.chunks}) for part in parts]
        print(json.dumps({"answer": text, "communities": names, "documents": docs}, ensure_ascii=False))
        return
    print(text)
    for held, part in zip(names, parts, strict=True):
        print(f"\n- {', '.join(held)}: {len(part.members)} names, {len(part.edges)} relations", end="")
    print()


def _paths(graph: Graph, options: GraphOptions) -> None:
    from dougong.rag.graph import paths

    assert options.path is not None
    found = paths(graph, *options.path, most=options.k)
    if options.json:
        told = [[{"said": list(step.relation), "places": _places(graph, step.chunks)} for step in way] for way in found]
        print(json.dumps({"paths": told}, ensure_ascii=False))
        return
    if not found:
        print(f"no path leads from {options.path[0]} to {options.path[1]}")
    for number, way in enumerate(found, start=1):
        print(f"path {number}")
        for step in way:
            head, words, tail = step.relation
            places = "; ".join(
                f"{doc}, bytes {first} to {last}" for doc, first, last in _places(graph, step.chunks)[:3]
            )
            print(f"  {head} -- {words} -> {tail}   [{places}]")


def _overview(graph: Graph, options: GraphOptions, model: ChatModel | None) -> None:
    from dougong.rag.graph import communities
    from dougong.rag.graph.communities import summary

    view, groups = graph.view, communities(graph.view)
    told: list[dict[str, Any]] = [
        {
            "names": [view.entities[each].name for each in group.members],
            "relations": len(group.edges),
            "summary": summary(graph, group, model),
        }
        for group in groups[: options.k]
    ]
    graph.keep()
    counts = {"names": len(view.entities), "relations": len(view.edges), "communities": len(groups)}
    if options.json:
        print(json.dumps({**counts, "largest": told}, ensure_ascii=False))
        return
    print(", ".join(f"{count:,} {what}" for what, count in counts.items()))
    for each in told:
        print(f"\n{', '.join(each['names'][:5])}  ({len(each['names'])} names, {each['relations']} relations)")
        print(f"    {each['summary']}")


def _places(graph: Graph, chunks: tuple[int, ...]) -> list[tuple[str, int, int]]:
    def place(chunk: Chunk) -> tuple[str, int, int]:
        first, last = chunk.meta.get("bytes", (chunk.start, chunk.end))
        return chunk.doc, first, last

    return [place(graph.chunk(each)) for each in chunks]
