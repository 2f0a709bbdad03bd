"""Milliseconds a query, and seconds to build: dougong's indexes and whole library beside FAISS and bm25s as they come.

    python bench/rag.py                          # everything, 100,000 chunks of 384 dimensions
    python bench/rag.py --parts vectors,words    # the bare indexes; library: a Library's own search, query embedded too
    python bench/rag.py --quick                  # few chunks: that it runs at all

vectors  exact, hnsw, ivf of ours; FAISS's IndexFlatIP and IndexHNSWFlat with their defaults; recall@10 against the
         exact ten. Vectors lie as embeddings do: around centres, in 48 directions of the 384, with some noise in all
words    our BM25; bm25s' own retrieve (its arrays, and numba's threads left at one), on the same terms
library  Library.search of a folder, by words, dense and hybrid; the query's own embedding by MiniLM is shown apart

Contenders take turns within each round, a query each; medians and 95th percentiles over queries and rounds. Indexes are
built on all cores; queries run on one thread, for one query at a time is what a user waits for (--threads changes
FAISS's).
"""

from __future__ import annotations

import argparse
import copy
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dougong.data import Document
from dougong.rag import Library
from dougong.rag.chunkers import Fixed
from dougong.rag.embedder import Embedder, Role, unit
from dougong.rag.vectors import VectorIndex
from dougong.rag.words import WordIndex

WIDTH, K = 384, 10


def cloud(count: int, seed: int) -> np.ndarray:
    """Vectors of length 1 around 200 centres in 48 directions; what a seed changes is the draw, not the centres."""
    shape = np.random.default_rng(0)
    directions = shape.normal(size=(48, WIDTH)).astype(np.float32)
    centres = shape.normal(size=(200, 48)).astype(np.float32)
    draw = np.random.default_rng(seed)
    places = centres[draw.integers(0, 200, count)] + 0.7 * draw.normal(size=(count, 48)).astype(np.float32)
    return unit(places @ directions + 0.5 * draw.normal(size=(count, WIDTH)).astype(np.float32))


def texts(count: int, seed: int = 0, length: int = 60) -> list[str]:
    """Made-up passages whose words are as uneven as a language's (Zipf)."""
    draw = np.random.default_rng(seed)
    ranks = np.minimum(draw.zipf(1.2, size=(count, length)), 50_000)
    return [" ".join(f"w{rank}" for rank in row) for row in ranks]


def raced(ways: Mapping[str, Callable[[Any], Any]], queries: Sequence[Any], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call; the ways take turns, in an order that changes."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    order, draw = list(ways), random.Random(0)
    for number in range(rounds + 1):
        for query in queries:
            draw.shuffle(order)
            for name in order:
                began = time.perf_counter()
                ways[name](query)
                if number:  # the first round warms up
                    spent[name].append(1000 * (time.perf_counter() - began))
    return spent


def timed(make: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    made = make()
    return made, time.perf_counter() - began


def row(name: str, spent: Sequence[float], build: float | None, more: str = "") -> None:
    middle, slow = statistics.median(spent), float(np.percentile(spent, 95))
    built = "" if build is None else f"built in {build:7.2f} s"
    print(f"  {name:28} {middle:8.3f} ms, 95% below {slow:8.3f}   {built:20} {more}", flush=True)


def vectors(options: argparse.Namespace) -> None:
    import faiss

    faiss.omp_set_num_threads(os.cpu_count() or 1)
    held, asked = cloud(options.chunks, 1), cloud(options.queries, 2)
    ids = list(range(len(held)))
    flat, flat_build = timed(lambda: _filled(faiss.IndexFlatIP(WIDTH), held))
    graph, graph_build = timed(lambda: _filled(faiss.IndexHNSWFlat(WIDTH, 32, faiss.METRIC_INNER_PRODUCT), held))
    builds: dict[str, float] = {"FAISS IndexFlatIP": flat_build, "FAISS IndexHNSWFlat": graph_build}
    ways: dict[str, Callable[[Any], list[int]]] = {
        "FAISS IndexFlatIP": lambda query: flat.search(query[None], K)[1][0].tolist(),
        "FAISS IndexHNSWFlat": lambda query: graph.search(query[None], K)[1][0].tolist(),
    }
    for kind in ("exact", "hnsw", "ivf"):
        made, builds[f"dougong {kind}"] = timed(lambda kind=kind: VectorIndex(ids, held, kind))
        ways[f"dougong {kind}"] = lambda query, made=made: [each for each, _ in made.search(query, K)]
    faiss.omp_set_num_threads(options.threads)
    best = [set(ways["FAISS IndexFlatIP"](query)) for query in asked]
    spent = raced(ways, list(asked), options.rounds)
    print(f"vectors: {len(held):,} of {WIDTH}, FAISS on {options.threads} thread(s)")
    for name, way in ways.items():
        recall = statistics.mean(len(right & set(way(query))) / K for right, query in zip(best, asked, strict=True))
        ratio = statistics.median(spent["FAISS IndexFlatIP"]) / statistics.median(spent[name])
        row(name, spent[name], builds[name], f"recall@10 {recall:.3f}   {ratio:5.1f}x IndexFlatIP")


def _filled(index: Any, held: np.ndarray) -> Any:
    index.add(held)
    return index


def words(options: argparse.Namespace) -> None:
    import bm25s

    from dougong.rag.terms import terms

    held = texts(options.chunks)
    asked = texts(options.queries, 1, 8)
    ours, build = timed(lambda: WordIndex(range(len(held)), held))
    listed, cutting = timed(lambda: [terms(text) for text in held])
    theirs = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    _, their_build = timed(lambda: theirs.index(listed, show_progress=False))
    arrays = copy.copy(ours)
    arrays._bm25 = copy.copy(ours._bm25)
    arrays._bm25.backend, ours._bm25.backend = "numpy", "numba"
    ways: dict[str, Callable[[str], Any]] = {
        "dougong": lambda query: ours.search(query, K),
        "dougong, without numba": lambda query: arrays.search(query, K),
    }
    for backend in ("numpy", "numba"):

        def retrieve(query: str, backend: str = backend) -> Any:
            theirs.backend = backend
            return theirs.retrieve([terms(query)], k=K, show_progress=False, n_threads=1)

        ways[f"bm25s, {backend}"] = retrieve
    _, compiling = timed(lambda: ways["bm25s, numba"](asked[0]))
    spent = raced(ways, asked, options.rounds)
    print(f"words: {len(held):,} texts of 60 words; queries of 8. numba compiled in {compiling:.1f} s")
    row("dougong", spent["dougong"], build, f"of which {cutting:.2f} s are stemming")
    for name in list(ways)[1:]:
        ratio = statistics.median(spent[name]) / statistics.median(spent["dougong"])
        theirs_build = None if name.startswith("dougong") else their_build
        row(name, spent[name], theirs_build, f"{ratio:.1f} times ours" + ("; stemmed before" if theirs_build else ""))


QUESTIONS = (
    "how is heat conducted in composite slabs",
    "which bridges were built without a single nail",
    "what did the committee decide about the harbour tax",
    "why does a loop with else run the else part",
    "who painted the ceiling of the old library in the north wing",
    "when may a contract be ended early",
    "what pressure does a thin shell bear before it buckles",
    "how many people lived in the valley before the dam",
)
"""What is read, of 8 to 15 tokens: the made-up words of the passages would be cut into twice as many as a person's."""


class Drawn(Embedder):
    """Passages lie somewhere in the cloud, one after the other; a question is read, and then lies there too."""

    name, width = f"drawn:{WIDTH}", WIDTH

    def __init__(self, reader: Embedder | None):
        self._reader, self._seed = reader, 0
        self._queries = cloud(1000, 2)
        self.reading: list[float] = []

    def embed(self, texts: Sequence[str], role: Role = "passage") -> np.ndarray:
        if role == "query" and self._reader is not None:
            question = QUESTIONS[self._seed % len(QUESTIONS)]
            _, seconds = timed(lambda: self._reader.embed([question], role))  # pyright: ignore[reportOptionalMemberAccess]
            self.reading.append(1000 * seconds)
        self._seed += 1
        if role == "query":
            return self._queries[self._seed % 1000][None]
        return cloud(len(texts), self._seed)


def library(options: argparse.Namespace) -> None:
    import faiss

    from dougong.rag.embedder import open_embedder

    faiss.omp_set_num_threads(options.threads)
    reader = open_embedder(options.embedder)
    embedder = Drawn(reader)
    with tempfile.TemporaryDirectory() as apart:
        folder = str(options.keep or apart)
        held = _filled_library(folder, embedder, options)
        _, first = timed(lambda: held.search("w3 w17", K))
        for question in QUESTIONS:
            reader.embed([question], "query")
        embedder.reading.clear()
        ways: dict[str, Callable[[str], Any]] = {
            how: lambda query, how=how: held.search(query, K, how=how)  # pyright: ignore[reportArgumentType]
            for how in ("words", "dense", "hybrid")
        }
        spent = raced(ways, texts(options.queries, 1, 8), options.rounds)
        held.close()
        held = Library.open(folder, embedder, Fixed(200), kind=options.kind)
        _, again = timed(lambda: held.search("w3 w17", K))
        held.close()
    print(f"library: {options.chunks:,} chunks in a folder, vectors {options.kind}")
    print(f"  first search: {first:.1f} s (it builds the indexes of a new library); when opened again: {again:.1f} s")
    reading = statistics.median(embedder.reading)
    print(f"  a query's embedding by {reader.name}: {reading:.2f} ms, within dense and hybrid below")
    for name in ways:
        without = statistics.median(spent[name]) - (reading if name != "words" else 0)
        row(name, spent[name], None, f"{without:.2f} ms without the embedding")


def _filled_library(folder: str, embedder: Embedder, options: argparse.Namespace) -> Library:
    held = Library.open(folder, embedder, Fixed(200), kind=options.kind)
    if len(held.store.files()) != options.chunks:
        documents = [Document(text, f"d{place}") for place, text in enumerate(texts(options.chunks))]
        _, adding = timed(lambda: held.add_documents(documents))
        print(f"  added in {adding:.1f} s without embedding")
    return held


PARTS = {"vectors": vectors, "words": words, "library": library}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="which of " + ", ".join(PARTS))
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of FAISS")
    parser.add_argument("--kind", choices=("exact", "hnsw", "ivf"), default="ivf", help="of the library's vectors")
    parser.add_argument("--embedder", default=None, help="of the library's queries: PATH[@int8], or @int8 for MiniLM's")
    parser.add_argument("--keep", default=None, help="a folder for the library: made once, measured many times")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.chunks, options.queries, options.rounds = 5000, 10, 1
    for name in options.parts.split(","):
        if name not in PARTS:
            parser.error(f"there is no part {name!r}; choose from {', '.join(PARTS)}")
        PARTS[name](options)
        print()


if __name__ == "__main__":
    main()
