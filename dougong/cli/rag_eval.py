"""`dougong rag eval`: a table of chunkers, retrievers and rerankers on collections with judgements."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from dougong.base import DougongError
from dougong.cli.options import Flag, hint, parse
from dougong.cli.rag import ChatPath, ChunkerName, EncoderPath, RerankerPath, chat_model, make_chunker

if TYPE_CHECKING:
    from dougong.chat import ChatModel
    from dougong.rag.embedder import Embedder
    from dougong.rag.evaluate import Collection, Result, Row
    from dougong.rag.hit import Retriever
    from dougong.rag.library import Library
    from dougong.rag.rerank import CrossEncoder

Name = Literal["cranfield", "cisi", "cmrc", "cmrc-dev", "cmrc-trial", "hotpot", "xquad-en", "xquad-zh"]
Way = Literal["words", "dense", "hybrid", "rrf", "hops", "hyde", "fusion", "multi"]
Rank = Literal["none", "meaning", "cross", "model"]
FIRST = "nDCG@10"
"""The measure by which ways of searching are compared."""
TOGETHER = 256
"""Queries that are embedded at once."""


@dataclass(frozen=True)
class Evaluate:
    """Measure retrieval: nDCG@10, recall@10 and @100, MRR, with 95% intervals of a bootstrap over the queries.

    One table of every collection x chunker x retriever x reranker; below it, where they differ, query by query. The
    collections are read from --data or the folder that DOUGONG_DATA names. What asks --model (HyDE, fusion,
    multi, a chunker or reranker by a model) is greedy.

    examples:
      dougong rag eval --collections cranfield
      dougong rag eval --chunkers structure fixed --rerankers none meaning --limit 100 --json
      dougong rag eval --collections cmrc --answers --queries 200
    """

    collections: tuple[Name, ...] = ("cranfield", "cisi", "cmrc")
    """cranfield: aerodynamics; cisi: information science; cmrc: Wikipedia in Chinese, cmrc-dev and cmrc-trial: its two
    sets of questions over all its passages; hotpot: questions of two hops; xquad-en, xquad-zh: one text in both"""
    chunkers: tuple[ChunkerName, ...] = ("structure",)
    """how documents are cut; decided asks --model for every document"""
    retrievers: tuple[Way, ...] = ("words", "dense", "hybrid")
    """how chunks are found; hybrid joins words and vectors by their scores, rrf by reciprocal ranks; hops follows names
    by rule; hyde, fusion and multi let a model reword the query; these four search by the hybrid"""
    rerankers: tuple[Rank, ...] = ("none",)
    """a second look at the first 30: by an embedder's cosine, a cross-encoder, or a model that puts them in order"""
    reranker: RerankerPath = None
    """the cross-encoder of `--rerankers cross` (`dougong embed reranker` trains one)"""
    limit: int = 1000
    """words of a chunk; the abstracts of these collections mostly fit whole"""
    queries: int = 0
    """only the first so many of each collection; 0: all"""
    answers: Flag = False
    """measure answers too where a collection expects some (all but the first two): exact match, F1, faithfulness"""
    weight: Annotated[float | None, hint("0.5 where the encoder reads the script, else 0")] = None
    """the hybrid's share for the vectors, 0 to 1, the rest for the words"""
    model: ChatPath = None
    """a model folder, or the URL of an OpenAI-compatible endpoint; without one, answers quote the best sentence"""
    embedder: EncoderPath = None
    """an encoder that makes the vectors"""
    cache: Annotated[Path | None, hint("none: in memory")] = None
    """a folder that keeps the indexes for the next time"""
    data: Annotated[Path | None, hint("DOUGONG_DATA")] = None
    """the folder of collections"""
    json: Flag = False
    """print one JSON object a row"""


def run(args: list[str]) -> int:
    options = parse(Evaluate, args, "rag eval")
    _check(options)
    data = data_folder(options.data)
    from dougong.rag.evaluate import read_collection

    embedder = _embedder(options)
    collections = [_first(read_collection(name, data), options.queries) for name in options.collections]
    if not options.json:
        print(_how(options, embedder))
    rows: list[Row] = []
    for collection in collections:
        for chunker in options.chunkers:
            library = _library(options, collection, chunker, embedder)
            for way in options.retrievers:
                for rank in options.rerankers:
                    names = (chunker, way, rank)
                    rows.append(_measure(options, collection, library, names))
                    _tell(rows[-1], options.json)
                    if options.answers and collection.answers:
                        _tell(_answers(options, collection, library, names), options.json)
            library.close()
    for line in [] if options.json else differences(rows):
        print(line)
    return 0


def data_folder(given: Path | None) -> Path:
    """Where collections are: as given, or as DOUGONG_DATA says. Raises DougongError where that is no folder."""
    data = given or Path(os.environ.get("DOUGONG_DATA", ""))
    if not data.is_dir() or data == Path():
        raise DougongError("there are no collections; name their folder with --data or DOUGONG_DATA")
    return data


def _check(options: Evaluate) -> None:
    needs = {"hyde", "fusion", "multi"} & set(options.retrievers)
    needs |= {"model"} & set(options.rerankers) | {"decided"} & set(options.chunkers)
    if needs and options.model is None:
        raise DougongError(f"{', '.join(sorted(needs))} asks a model; give --model PATH or URL")
    if "cross" in options.rerankers and options.reranker is None:
        raise DougongError("the reranker cross is a model of its own; give --reranker PATH")
    if options.weight is not None and not 0 <= options.weight <= 1:
        raise DougongError(f"--weight is {options.weight}; expected 0 (words) to 1 (vectors)")
    if options.queries < 0:
        raise DougongError(f"--queries is {options.queries}; expected 0 (all) or more")
    for name in ("collections", "chunkers", "retrievers", "rerankers"):
        if not getattr(options, name):
            raise DougongError(f"--{name} names none; name at least one")


def _embedder(options: Evaluate) -> Embedder:
    """What makes the vectors; where nothing asks for any, passages are not embedded."""
    from dougong.rag.embedder import NoVectors, Remembering, open_embedder

    if {*options.retrievers} <= {"words"} and "meaning" not in options.rerankers and "semantic" not in options.chunkers:
        return NoVectors()
    return Remembering(open_embedder(options.embedder))


def _how(options: Evaluate, embedder: Embedder) -> str:
    """What a reader must know of the table: who made the vectors, who was asked."""
    from dougong.rag.embedder import NoVectors

    reader = options.model or "no model: the sentence with the most of the question's words, quoted"
    vectors = "no vectors" if isinstance(embedder, NoVectors) else f"vectors by {embedder.name}"
    lines = [f"{vectors}; chunks of up to {options.limit} words; mean (95% interval)"]
    if options.model and {"hyde", "fusion", "multi", "model", "decided"} & {
        *(*options.retrievers, *options.rerankers, *options.chunkers)
    }:
        lines.append(f"what a model decides is decided by {options.model}")
    if options.answers:
        lines.append(f"answers by {reader}")
    return "\n".join(lines)


def differences(rows: Sequence[Row]) -> list[str]:
    """Where ways of searching differ by nDCG@10, query by query: the hybrid from its parts, other ways from the hybrid,
    a reranker from none, a chunker from the first."""
    held = {(row.collection, row.chunker, row.retriever, row.reranker): row.results[FIRST] for row in rows}
    chunkers = list(dict.fromkeys(row.chunker for row in rows))
    lines = []
    for (collection, chunker, way, rank), result in held.items():
        others = [(collection, chunker, part, rank) for part in _compared(way)]
        others += [(collection, chunker, way, "none")] if rank != "none" else []
        others += [(collection, chunkers[0], way, rank)] if chunker != chunkers[0] else []
        for other in others:
            if other in held:
                gap = result.over(held[other])
                named = [f"{collection:10} {_named((chunker, way, rank))} - {_named(other[1:]):28}"]
                lines.append(f"{named[0]} {gap.value:+.3f} ({gap.low:+.3f} to {gap.high:+.3f}){_sure(gap)}")
    return [f"\n{FIRST}, differences over the same queries", *lines] if lines else []


def _compared(way: str) -> tuple[str, ...]:
    if way in ("words", "dense"):
        return ()
    return {"hybrid": ("words", "dense"), "rrf": ("words", "dense", "hybrid")}.get(way, ("hybrid",))


def _named(names: tuple[str, str, str]) -> str:
    return " ".join(name for name in names if name != "none")


def _sure(gap: Result) -> str:
    return "" if gap.low > 0 or gap.high < 0 else "  not told apart"


@cache
def _chat(path: str) -> ChatModel:
    """The model, loaded once for all rows of the table, and greedy, so that the table can be made again."""
    from dougong.chat.steady import Steady

    return Steady(chat_model(path))


@cache
def _cross(path: str) -> CrossEncoder:
    from dougong.rag.rerank import open_reranker

    return open_reranker(path)


def _first(collection: Collection, count: int) -> Collection:
    if not count:
        return collection
    import dataclasses

    return dataclasses.replace(collection, queries=dict(list(collection.queries.items())[:count]))


def _library(options: Evaluate, collection: Collection, chunker: ChunkerName, embedder: Embedder) -> Library:
    from dougong.rag.embedder import NoVectors
    from dougong.rag.library import Library
    from dougong.train.monitor import Progress

    decides = _chat(options.model or "") if chunker == "decided" else None
    made = make_chunker(chunker, options.limit, 0, embedder, decides)
    plain = "-words" if isinstance(embedder, NoVectors) else ""
    uri = "memory:" if options.cache is None else str(options.cache / f"{collection.name}-{made.name}{plain}")
    library = Library.open(uri, embedder, made)
    with Progress(f"{collection.name} {chunker}", len(collection.documents), quiet=options.json) as bar:
        library.add_documents(collection.documents, lambda done, total: bar.update(done))
    queries = list(collection.queries.values())
    with Progress("queries", len(queries), quiet=options.json) as bar:
        for done in range(0, len(queries), TOGETHER):  # many share a forward pass; each search finds its own then
            embedder.embed(queries[done : done + TOGETHER], "query")
            bar.update(min(done + TOGETHER, len(queries)))
    return library


def _measure(options: Evaluate, collection: Collection, library: Library, names: tuple[str, str, str]) -> Row:
    from dougong.rag.evaluate import evaluate
    from dougong.train.monitor import Progress

    retriever = _retriever(options, library, names[1], names[2])
    with Progress(" ".join(names[1:]), len(collection.queries), quiet=options.json) as bar:
        return evaluate(collection, retriever, names, bar.update)


def _answers(options: Evaluate, collection: Collection, library: Library, names: tuple[str, str, str]) -> Row:
    from dougong.rag.evaluate import Row, evaluate_answers
    from dougong.train.monitor import Progress

    retriever = _retriever(options, library, names[1], names[2])
    model = None if options.model is None else _chat(options.model)
    with Progress("answers", len(collection.queries), quiet=options.json) as bar:
        results = evaluate_answers(collection, retriever, model, progress=bar.update)
    return Row(collection.name, *names, results)


def _retriever(options: Evaluate, library: Library, way: str, rank: str) -> Retriever:
    from dougong.rag.rerank import Listwise
    from dougong.rag.retrievers import Hybrid, Hypothetical, ManyQueries, Reranked
    from dougong.rag.retrievers.hops import Hops
    from dougong.rag.retrievers.mixed import ByMeaning

    hybrid = library.retriever("hybrid")
    if options.weight is not None:
        parts = (library.retriever("words"), library.retriever("dense"))
        hybrid = Hybrid(parts, (1 - options.weight, options.weight))
    if way in ("words", "dense"):
        found: Retriever = library.retriever("words" if way == "words" else "dense")
    elif way == "hybrid":
        found = hybrid
    elif way == "rrf":
        found = Hybrid((library.retriever("words"), library.retriever("dense")))
    elif way == "hops":
        found = Hops(hybrid)
    else:
        model = _chat(options.model or "")
        found = Hypothetical(hybrid, model) if way == "hyde" else ManyQueries(hybrid, model, fused=way == "fusion")
    if rank == "meaning":
        return Reranked(found, ByMeaning(library.embedder))
    if rank == "cross":
        return Reranked(found, _cross(options.reranker or ""))
    return found if rank == "none" else Reranked(found, Listwise(_chat(options.model or "")))


def _tell(row: Row, as_json: bool) -> None:
    if as_json:
        results = {name: [each.value, each.low, each.high] for name, each in row.results.items()}
        names = {"collection": row.collection, "chunker": row.chunker, "retriever": row.retriever}
        print(json.dumps({**names, "reranker": row.reranker, **results}), flush=True)
        return
    names = f"{row.collection:10} {row.chunker:10} {row.retriever:7} {row.reranker:8}"
    print(f"{names} {cells(row.results)}", flush=True)


def cells(results: Mapping[str, Result]) -> str:
    """Measures side by side, in columns."""
    return "  ".join(f"{name} {each.value:.3f} ({each.low:.3f}-{each.high:.3f})" for name, each in results.items())
