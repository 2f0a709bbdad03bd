"""`dougong rag eval`: a table of chunkers, retrievers and rerankers on collections with judgements."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from dougong.base import DougongError
from dougong.cli.options import Flag, hint, parse
from dougong.cli.rag import ChatPath, ChunkerName, EncoderPath, chat_model, make_chunker

if TYPE_CHECKING:
    from dougong.rag.embedder import Embedder
    from dougong.rag.evaluate import Collection, Row
    from dougong.rag.hit import Retriever
    from dougong.rag.library import Library

Name = Literal["cranfield", "cisi", "cmrc"]
Way = Literal["words", "dense", "hybrid", "hyde", "fusion", "multi"]
Rank = Literal["none", "meaning", "model"]


@dataclass(frozen=True)
class Evaluate:
    """Measure retrieval: nDCG@10, recall@10 and @100, MRR, with 95% intervals of a bootstrap over the queries.

    The collections are read from --data or the folder that DOUGONG_DATA names. HyDE, fusion and multi ask --model.

    examples:
      dougong rag eval --collections cranfield
      dougong rag eval --chunkers structure fixed --rerankers none meaning --json
    """

    collections: tuple[Name, ...] = ("cranfield", "cisi", "cmrc")
    """aerodynamics (English), information science (English), Wikipedia (Chinese)"""
    chunkers: tuple[ChunkerName, ...] = ("structure",)
    """how documents are cut"""
    retrievers: tuple[Way, ...] = ("words", "dense", "hybrid")
    """how chunks are found; hyde, fusion and multi let a model reword the query before a hybrid search"""
    rerankers: tuple[Rank, ...] = ("none",)
    """a second look at the first 30: by an embedder's cosine, or by a model that puts them in order"""
    limit: int = 1000
    """words of a chunk; the abstracts of these collections mostly fit whole"""
    queries: int = 0
    """only the first so many of each collection; 0: all"""
    answers: Flag = False
    """measure answers too where a collection expects some (cmrc): exact match, F1, faithfulness (needs --model)"""
    model: ChatPath = None
    """a model folder, or the URL of an OpenAI-compatible endpoint"""
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
    needs = {"hyde", "fusion", "multi"} & set(options.retrievers)
    needs |= ({"model"} & set(options.rerankers)) | ({"answers"} if options.answers else set())
    if needs and options.model is None:
        raise DougongError(f"{', '.join(sorted(needs))} asks a model; give --model PATH or URL")
    data = options.data or Path(os.environ.get("DOUGONG_DATA", ""))
    if not data.is_dir() or data == Path():
        raise DougongError("there are no collections; name their folder with --data or DOUGONG_DATA")
    from dougong.rag.embedder import open_embedder
    from dougong.rag.evaluate import read_collection

    embedder = open_embedder(options.embedder)
    for name in options.collections:
        collection = _first(read_collection(name, data), options.queries)
        for chunker in options.chunkers:
            library = _library(options, collection, chunker, embedder)
            for way in options.retrievers:
                for rank in options.rerankers:
                    names = (chunker, way, rank)
                    _tell(_measure(options, collection, library, names), options.json)
                    if options.answers and collection.answers:
                        _tell(_answers(options, collection, library, names), options.json)
            library.close()
    return 0


def _first(collection: Collection, count: int) -> Collection:
    if not count:
        return collection
    import dataclasses

    return dataclasses.replace(collection, queries=dict(list(collection.queries.items())[:count]))


def _library(options: Evaluate, collection: Collection, chunker: ChunkerName, embedder: Embedder) -> Library:
    from dougong.rag.library import Library
    from dougong.train.monitor import Progress

    made = make_chunker(chunker, options.limit, 0, embedder)
    uri = "memory:" if options.cache is None else str(options.cache / f"{collection.name}-{made.name}")
    library = Library.open(uri, embedder, made)
    with Progress(f"{collection.name} {chunker}", len(collection.documents), quiet=options.json) as bar:
        library.add_documents(collection.documents, lambda done, total: bar.update(done))
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

    retriever, model = _retriever(options, library, names[1], names[2]), chat_model(options.model or "")
    with Progress("answers", len(collection.queries), quiet=options.json) as bar:
        results = evaluate_answers(collection, retriever, model, progress=bar.update)
    return Row(collection.name, *names, results)


def _retriever(options: Evaluate, library: Library, way: str, rank: str) -> Retriever:
    from dougong.rag.rerank import Listwise
    from dougong.rag.retrievers import Hypothetical, ManyQueries, Reranked
    from dougong.rag.retrievers.mixed import ByMeaning

    if way in ("words", "dense", "hybrid"):
        found: Retriever = library.retriever(way)  # pyright: ignore[reportArgumentType]
    else:
        model = chat_model(options.model or "")
        hybrid = library.retriever("hybrid")
        found = Hypothetical(hybrid, model) if way == "hyde" else ManyQueries(hybrid, model, fused=way == "fusion")
    if rank == "meaning":
        return Reranked(found, ByMeaning(library.embedder))
    return found if rank == "none" else Reranked(found, Listwise(chat_model(options.model or "")))


def _tell(row: Row, as_json: bool) -> None:
    if as_json:
        results = {name: [each.value, each.low, each.high] for name, each in row.results.items()}
        names = {"collection": row.collection, "chunker": row.chunker, "retriever": row.retriever}
        print(json.dumps({**names, "reranker": row.reranker, **results}), flush=True)
        return
    cells = [f"{name} {each.value:.3f} ({each.low:.3f}-{each.high:.3f})" for name, each in row.results.items()]
    print(f"{row.collection:10} {row.chunker:10} {row.retriever:7} {row.reranker:8} {'  '.join(cells)}", flush=True)
