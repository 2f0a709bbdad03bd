"""`dougong rag`: index a folder, search it, ask it, measure how well it finds."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from dougong.base import DougongError, nearest
from dougong.cli import Command, dispatch
from dougong.cli.options import Flag, given_text, hint, parse

if TYPE_CHECKING:
    from dougong.chat import ChatModel
    from dougong.rag.answer import Answer
    from dougong.rag.chunkers import Chunker
    from dougong.rag.embedder import Embedder
    from dougong.rag.hit import Hit, Retriever
    from dougong.rag.library import Library, Report

COMMANDS = {
    "index": Command("read a folder of documents; again later: only what changed", __name__, "index"),
    "search": Command("the passages that fit best", __name__, "search"),
    "ask": Command("an answer with citations", __name__, "ask"),
    "remove": Command("forget documents, everywhere", __name__, "remove"),
    "graph": Command("names and relations in the documents: local, global and path search", __name__, "graph"),
    "knn": Command("places of texts that a model looks up at every token (kNN-LM)", __name__, "knn"),
    "eval": Command("how well it finds: nDCG, recall, MRR with intervals", __name__, "evaluate"),
}

EXAMPLES = """\
examples:
  dougong rag ask "how does a for loop end?"
  dougong rag index docs/
  dougong rag ask "where is the licence?" --model http://localhost:8000/v1

`dougong rag COMMAND --help` explains a command. Without an index of yours, it is the Python language reference."""

LIBRARY = "runs/rag"
DRAWN = "graph:"
"""Begins the notes in a library that name the files of graphs that were drawn of it."""
ChunkerName = Literal["structure", "recursive", "sentences", "fixed", "semantic", "decided"]
How = Literal["hybrid", "words", "dense"]
IndexName = Literal["auto", "exact", "hnsw", "ivf"]
Into = Annotated[str, tyro.conf.arg(metavar="URI")]
EncoderPath = Annotated[str | None, hint("all-MiniLM-L6-v2", "PATH[@int8]")]
RerankerPath = Annotated[str | None, hint("none", "PATH[@int8]")]
ChatPath = Annotated[str | None, hint("none: quotes the best sentences", "PATH[@int8]|URL")]
ModelPath = Annotated[str | None, hint("none", "PATH[@int8]|URL")]


@dataclass(frozen=True)
class Index:
    """Read Markdown, HTML, text, PDF, DOCX, source code and JSON lines below a folder into a library.

    examples:
      dougong rag index docs/
      dougong rag index papers/ --library milvus:papers.db --chunker recursive --limit 300
      dougong rag index archive/ --library archive --index hnsw
    """

    folder: Annotated[Path | None, tyro.conf.Positional, hint("the Python language reference", "FOLDER")] = None
    """the documents; indexed again, only what changed is read, and what is gone is removed"""
    library: Into = LIBRARY
    """where the index is: a folder, milvus:FILE.db, milvus:http://HOST:PORT"""
    chunker: ChunkerName = "structure"
    """how documents are cut: by headings, paragraphs, sentences, tokens, meaning, or as --model decides"""
    limit: int = 200
    """words of a chunk, at most"""
    overlap: int = 30
    """words that neighbours share, at most"""
    index: Annotated[IndexName | None, hint("as it was; at first auto")] = None
    """how vectors are searched: all, by a graph (HNSW), in cells with 8-bit codes; auto: a graph from 50,000 chunks"""
    model: ModelPath = None
    """who decides with `--chunker decided`"""
    embedder: EncoderPath = None
    """an encoder that makes the vectors"""
    json: Flag = False
    """print one JSON object"""


@dataclass(frozen=True)
class Search:
    """Print the passages that fit a query best, with the place of each.

    examples:
      dougong rag search "operator precedence" -k 3
    """

    query: Annotated[str | None, tyro.conf.Positional, hint("standard input", "QUERY")] = None
    """what is looked for"""
    library: Into = LIBRARY
    """where the index is"""
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 5
    """how many passages"""
    how: How = "hybrid"
    """by words (BM25), by meaning (vectors), or both"""
    reranker: RerankerPath = None
    """a cross-encoder that puts the first 30 in order (`dougong embed reranker` trains one)"""
    doc: Annotated[str | None, hint("all")] = None
    """only documents whose names fit this pattern, such as "docs/guide/*" """
    embedder: EncoderPath = None
    """the encoder that made the vectors"""
    json: Flag = False
    """print one JSON object a passage"""


@dataclass(frozen=True)
class Ask:
    """Answer a question from the documents, with citations.

    Without a model the best sentences are quoted as they stand.

    examples:
      dougong rag ask "how does a for loop end?"
      dougong rag ask "who may sign?" --model http://localhost:8000/v1 --json
    """

    question: Annotated[str | None, tyro.conf.Positional, hint("standard input", "QUESTION")] = None
    """what is asked"""
    library: Into = LIBRARY
    """where the index is"""
    model: ChatPath = None
    """who answers: a model folder, or the URL of an OpenAI-compatible endpoint (key in OPENAI_API_KEY)"""
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 6
    """how many passages the answer is made from"""
    how: How = "hybrid"
    """by words (BM25), by meaning (vectors), or both"""
    reranker: RerankerPath = None
    """a cross-encoder that puts the first 30 in order (`dougong embed reranker` trains one)"""
    agentic: Flag = False
    """let the model search in several steps and check its answer (needs --model)"""
    embedder: EncoderPath = None
    """the encoder that made the vectors"""
    json: Flag = False
    """print one JSON object"""


@dataclass(frozen=True)
class Remove:
    """Forget files: their text, chunks, vectors and what the graph has from them. The files themselves stay.

    examples:
      dougong rag remove docs/old.md
      dougong rag remove "docs/drafts/*" --library milvus:papers.db
    """

    names: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="NAME...")]
    """names as `search` tells them, or patterns"""
    library: Into = LIBRARY
    """where the index is"""
    embedder: EncoderPath = None
    """the encoder that made the vectors"""


def run(args: list[str]) -> int:
    return dispatch("dougong rag", "Answers from a folder of documents.", COMMANDS, args, EXAMPLES)


def index(args: list[str]) -> int:
    options = parse(Index, args, "rag index")
    library = _open(options)
    report = _fill(library, options.folder, options.json)
    forget(library)
    _tell(report, len(library.store.chunks()), options.library, options.json)
    return 0


def remove(args: list[str]) -> int:
    options = parse(Remove, args, "rag remove")
    if not options.names:
        raise DougongError("no file is named; give one or more")
    _kept(options.library)
    library = _open(Index(library=options.library, embedder=options.embedder))
    known, gone = library.store.files(), []
    for name in options.names:
        found = [name] if name in known else sorted(each for each in known if fnmatchcase(each, name))
        if not found:
            raise DougongError(f"there is no file {name!r} in the library{nearest(name, known)}")
        gone += found
    for name in dict.fromkeys(gone):
        library.remove(name)
    forget(library)
    print(f"{len(dict.fromkeys(gone))} removed\n{options.library}: {len(library.store.chunks()):,} chunks")
    return 0


def forget(library: Library) -> None:
    """Take out of the library's graphs, beside it or wherever `rag graph` made one, what the library has no more."""
    folder = library.store.kept_in()
    files = [] if folder is None else [folder / "graph.json"]
    files += [Path(note.removeprefix(DRAWN)) for note in library.store.notes() if note.startswith(DRAWN)]
    for file in files:
        if file.exists():
            from dougong.rag.graph.graph import forget_gone

            forget_gone(file, library.store.chunks())


def search(args: list[str]) -> int:
    options = parse(Search, args, "rag search")
    query = _words(options.query, "query")
    library = ready(options.library, options.embedder)
    where = None if options.doc is None else {"doc": options.doc}
    if options.k < 1:
        raise DougongError(f"-k is {options.k}; expected at least 1")
    hits = retriever_of(library, options.how, options.reranker).search(query, options.k, where)
    if not hits and not options.json:
        print("no passage fits")
    for hit in hits:
        if options.json:
            print(json.dumps({"score": hit.score, **_place(hit), "text": hit.chunk.text}, ensure_ascii=False))
        else:
            print(f"{hit.score:.3f}  {_name(hit)}\n{_indented(hit.chunk.text)}\n")
    return 0


def retriever_of(library: Library, how: How, reranker: str | None) -> Retriever:
    """How a library is searched, and who has a second look."""
    found = library.retriever(how)
    if reranker is None:
        return found
    from dougong.rag.rerank import open_reranker
    from dougong.rag.retrievers import Reranked

    return Reranked(found, open_reranker(reranker))


def ask(args: list[str]) -> int:
    options = parse(Ask, args, "rag ask")
    question = _words(options.question, "question")
    if options.agentic and options.model is None:
        raise DougongError("--agentic needs a model that decides; give --model")
    if options.k < 1:
        raise DougongError(f"-k is {options.k}; expected at least 1")
    model = None if options.model is None else chat_model(options.model)
    library = ready(options.library, options.embedder)
    retriever = retriever_of(library, options.how, options.reranker)
    from dougong.rag.answer import answer, quote

    if model is not None and options.agentic:
        from dougong.rag.agentic import investigate

        given = investigate(question, model, {"documents": retriever}, k=options.k).answer
    else:
        chunks = [hit.chunk for hit in retriever.search(question, options.k)]
        given = quote(question, chunks) if model is None else answer(question, chunks, model)
    tell_answer(given, options.json)
    return 0


def tell_answer(given: Answer, as_json: bool) -> None:
    """An answer and where its citations stand."""
    if as_json:
        cited = [asdict(each) for each in given.citations]
        print(json.dumps({"answer": given.text, "citations": cited, "unknown": given.unknown}, ensure_ascii=False))
        return
    print(given.text)
    shown = dict.fromkeys((each.number, each.doc, each.bytes) for each in given.citations)
    for number, doc, (first, last) in shown:
        print(f"\n[{number}] {doc}, bytes {first} to {last}", end="")
    print()


def graph(args: list[str]) -> int:
    from dougong.cli.rag_graph import run as draw

    return draw(args)


def knn(args: list[str]) -> int:
    from dougong.cli.rag_knn import run as keep

    return keep(args)


def evaluate(args: list[str]) -> int:
    from dougong.cli.rag_eval import run as measure

    return measure(args)


def chat_model(path: str) -> ChatModel:
    """A model folder or file as a local chat model, in 8 or 4 bits with @int8 or @int4 behind it; an http(s) URL as a
    remote one."""
    if path.startswith(("http://", "https://")):
        from dougong.chat import RemoteChat

        return RemoteChat(path, key=os.environ.get("OPENAI_API_KEY"))
    from dougong.chat import LocalChat
    from dougong.compress import load
    from dougong.rag.embedder import in_bits

    name, how = in_bits(path)
    return LocalChat(load(name, quantize=how))


def make_chunker(
    name: ChunkerName, limit: int, overlap: int, embedder: Embedder, model: ChatModel | None = None
) -> Chunker:
    """A chunker by the name that the command line gives it. model: who decides, for "decided"."""
    from dougong.rag import chunkers

    if name == "decided":
        if model is None:
            raise DougongError("the chunker decided asks a model; give --model PATH or URL")
        return chunkers.Decided(model, limit, overlap)
    if name == "semantic":
        return chunkers.Semantic(embedder.embed, limit, overlap)
    made: dict[str, type[Any]] = {
        "structure": chunkers.Structure,
        "recursive": chunkers.Recursive,
        "sentences": chunkers.Sentences,
        "fixed": chunkers.Fixed,
    }
    return made[name](limit, overlap)


def _words(text: str | None, what: str) -> str:
    given = given_text(text)
    if not given.strip():
        raise DougongError(f"the {what} is empty; give it as an argument or on standard input")
    return given


def _open(options: Index) -> Library:
    from dougong.rag.embedder import open_embedder
    from dougong.rag.library import Library

    embedder = open_embedder(options.embedder)
    asked = None if options.model is None else chat_model(options.model)
    chunker = make_chunker(options.chunker, options.limit, options.overlap, embedder, asked)
    return Library.open(options.library, embedder, chunker, options.index)


def _kept(uri: str) -> None:
    """Raises DougongError where no library is kept: a mistyped name must not become an empty one."""
    from dougong.rag.stores import is_kept

    if not is_kept(uri):
        raise DougongError(f"there is no library at {uri}; make one first: dougong rag index FOLDER --library {uri}")


def ready(uri: str, encoder: str | None) -> Library:
    """The library, filled with the language reference where nothing was indexed yet and none was asked for by name."""
    if uri != LIBRARY:
        _kept(uri)
    library = _open(Index(library=uri, embedder=encoder))
    if not library.store.files():
        if uri != LIBRARY:
            raise DougongError(f"the library {uri} is empty; fill it first: dougong rag index FOLDER --library {uri}")
        _fill(library, None, False)
    return library


def _fill(library: Library, folder: Path | None, quiet: bool) -> Report:
    from dougong.rag.reference import language_reference
    from dougong.train.monitor import Progress

    documents = language_reference() if folder is None else []
    with Progress("documents", max(1, len(documents)), quiet=quiet) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done)

        return library.add_documents(documents, update) if folder is None else library.add(folder, update)


def _tell(report: Report, chunks: int, uri: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({**asdict(report), "library": uri, "total_chunks": chunks}, ensure_ascii=False))
        return
    counts = [
        (len(report.added), "new"),
        (len(report.changed), "changed"),
        (len(report.removed), "removed"),
        (report.unchanged, "as they were"),
        (len(report.skipped), "skipped"),
    ]
    print(", ".join(f"{count} {what}" for count, what in counts if count) or "nothing to read")
    for reason in report.skipped.values():
        print(f"  skipped: {reason}")
    print(f"{uri}: {chunks:,} chunks")


def _name(hit: Hit) -> str:
    heading = hit.chunk.meta.get("heading")
    first, last = hit.chunk.meta.get("bytes", (hit.chunk.start, hit.chunk.end))
    return f"{hit.chunk.doc}, bytes {first} to {last}" + (f"  ({heading})" if heading else "")


def _place(hit: Hit) -> dict[str, Any]:
    chunk = hit.chunk
    return {"doc": chunk.doc, "start": chunk.start, "end": chunk.end, "meta": dict(chunk.meta)}


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
