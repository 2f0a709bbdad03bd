"""`dougong embed`: how near texts are to each other; training an embedder."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dougong.base import DougongError
from dougong.cli import Command, dispatch
from dougong.cli.options import Flag, existing, hint, parse
from dougong.cli.rag import EncoderPath

if TYPE_CHECKING:
    from dougong.rag.contrastive import Pair

COMMANDS = {
    "texts": Command("vectors of texts, or how alike the texts are", __name__, "texts"),
    "pairs": Command("questions of a collection with their passages, to train on", __name__, "pairs"),
    "train": Command("teach an encoder which passages answer which queries", __name__, "train"),
    "reranker": Command("teach an encoder to read a query and a passage together", __name__, "reranker"),
}

EXAMPLES = """\
examples:
  dougong embed texts "a stone bridge" "a bridge of stone" "taxes rose"
  dougong embed pairs cmrc-dev --out pairs.jsonl
  dougong embed train pairs.jsonl --out runs/embedder

`dougong embed COMMAND --help` explains a command."""


@dataclass(frozen=True)
class Texts:
    """Print how alike texts are (cosine: 1 is the same direction), or their vectors.

    examples:
      dougong embed texts "a stone bridge" "a bridge of stone" "taxes rose"
      dougong embed texts "a stone bridge" --json
    """

    texts: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEXT...")]
    """the texts"""
    embedder: EncoderPath = None
    """an encoder that makes the vectors"""
    json: Flag = False
    """print one JSON object a text, with its vector"""


@dataclass(frozen=True)
class Pairs:
    """Write the questions of a collection, each with the chunk that holds its answer (or, where it expects none, with
    each relevant document) and with chunks of other documents that word search finds for it (hard negatives): rows for
    `dougong embed train` and `dougong embed reranker`.

    examples:
      dougong embed pairs cmrc-dev --out pairs.jsonl
      dougong embed pairs cmrc-dev --cloze --negatives 2 --limit 120
    """

    collection: Annotated[str, tyro.conf.Positional]
    """cmrc-dev, xquad-zh, cranfield ...: any that `dougong rag eval` knows"""
    out: Path = Path("pairs.jsonl")
    """the file to write"""
    negatives: int = 1
    """chunks a question that must not be taken for its own"""
    cloze: Flag = False
    """besides, a stretch of each chunk as a query for it (inverse cloze)"""
    limit: int = 120
    """words of a chunk, which is cut at sentences"""
    data: Annotated[Path | None, hint("DOUGONG_DATA")] = None
    """the folder of collections"""
    skip: int = 0
    """leave out the first so many questions: those that `dougong rag eval --queries N` asks"""
    seed: int = 0
    """of what is drawn"""


@dataclass(frozen=True)
class Train:
    """Train an encoder by contrast: a query's own passage must be nearer than those of the other queries in its batch.

    Each row of the file has "query", "passage" and, where there are some, "negatives" (a list).

    examples:
      dougong embed train pairs.jsonl --out runs/embedder --steps 200
      dougong embed train pairs.jsonl --dims 384 128 64
      dougong embed train pairs.jsonl --steps 200 --resume
      dougong embed train pairs.jsonl --tokenizer runs/tokenizer --layers 1 --rate 5e-4
    """

    pairs: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """rows of JSON"""
    out: Path = Path("runs/embedder")
    """the folder to write"""
    embedder: EncoderPath = None
    """the encoder to begin with"""
    tokenizer: Annotated[Path | None, hint("the encoder's")] = None
    """read with this one, for a language that the encoder has no tokens for: vectors of new tokens begin at random"""
    layers: Annotated[int | None, hint("all")] = None
    """keep this many of its first layers"""
    steps: int = 100
    """updates"""
    batch: int = 16
    """pairs of an update"""
    rate: float = 2e-5
    """the highest learning rate"""
    temperature: float = 0.05
    """lower makes near negatives matter more"""
    dims: tuple[int, ...] = ()
    """prefixes of the vector that must work by themselves (Matryoshka); none: the whole vector alone"""
    limit: int = 128
    """tokens of a text, at most"""
    seed: int = 0
    """of the order of the pairs"""
    resume: Flag = False
    """go on with a training of the same pairs and settings that was ended before its time"""


@dataclass(frozen=True)
class Reranker:
    """Train a cross-encoder: of a query with its own passage, its negatives and another query's passage, the first must
    score highest. It reads query and passage together, which is slower than vectors and sees more.

    Each row of the file has "query", "passage" and, where there are some, "negatives" (a list).

    examples:
      dougong embed pairs cranfield --skip 113 --out pairs.jsonl
      dougong embed reranker pairs.jsonl --out runs/reranker
      dougong rag eval --collections cranfield --queries 113 --rerankers none cross --reranker runs/reranker
    """

    pairs: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """rows of JSON"""
    out: Path = Path("runs/reranker")
    """the folder to write"""
    embedder: EncoderPath = None
    """the encoder to begin with"""
    steps: int = 200
    """updates"""
    batch: int = 8
    """queries of an update"""
    rate: float = 5e-5
    """the highest learning rate"""
    limit: int = 192
    """tokens of a query and a passage together, at most"""
    seed: int = 0
    """of the order of the pairs, and of the new head"""
    resume: Flag = False
    """go on with a training of the same pairs and settings that was ended before its time"""


def run(args: list[str]) -> int:
    return dispatch("dougong embed", "Texts as vectors.", COMMANDS, args, EXAMPLES)


def texts(args: list[str]) -> int:
    options = parse(Texts, args, "embed texts")
    if not options.texts:
        raise DougongError("there is no text; give one or more")
    from dougong.rag.embedder import open_embedder

    vectors = open_embedder(options.embedder).embed(options.texts)
    if options.json:
        for text, vector in zip(options.texts, vectors, strict=True):
            print(json.dumps({"text": text, "vector": [round(float(each), 6) for each in vector]}, ensure_ascii=False))
        return 0
    for row, text in zip(vectors @ vectors.T, options.texts, strict=True):
        print("  ".join(f"{float(score):5.2f}" for score in row), f"  {text}")
    return 0


def pairs(args: list[str]) -> int:
    options = parse(Pairs, args, "embed pairs")
    for name in ("negatives", "skip"):
        if getattr(options, name) < 0:
            raise DougongError(f"--{name} is {getattr(options, name)}; expected 0 or more")
    from dougong.base import atomic_file
    from dougong.cli.rag_eval import data_folder
    from dougong.rag.chunkers import Sentences
    from dougong.rag.evaluate import read_collection
    from dougong.rag.pairs import pairs_of

    collection = read_collection(options.collection, data_folder(options.data))
    collection = replace(collection, queries=dict(list(collection.queries.items())[options.skip :]))
    found = pairs_of(collection, Sentences(options.limit, 0), options.negatives, options.cloze, options.seed)
    with atomic_file(options.out) as file:
        for each in found:
            row = {"query": each.query, "passage": each.passage, "negatives": each.negatives}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"{options.out}: {len(found):,} pairs of {len(collection.queries):,} questions")
    return 0


def train(args: list[str]) -> int:
    options = parse(Train, args, "embed train")
    from dougong.rag.contrastive import Training, save_embedder, train_embedder
    from dougong.rag.embedder import open_embedder
    from dougong.train.monitor import Progress

    pairs = read_pairs(existing(options.pairs))
    lm = open_embedder(options.embedder).lm
    if options.tokenizer is not None or options.layers is not None:
        from dougong.cli.tokenizer import open_tokenizer
        from dougong.rag.transplant import transplanted

        lm = transplanted(lm, options.tokenizer and open_tokenizer(options.tokenizer), options.layers, options.seed)
    settings = Training(
        steps=options.steps,
        batch=options.batch,
        rate=options.rate,
        temperature=options.temperature,
        dims=options.dims,
        limit=options.limit,
        seed=options.seed,
    )
    kept = options.out.with_name(options.out.name + ".state")
    if not options.resume:
        kept.unlink(missing_ok=True)
    with Progress("steps", options.steps) as bar:

        def told(done: int, loss: float, right: float) -> None:
            bar.update(done, f"loss {loss:.3f}, own passage first {right:.0%}")

        train_embedder(lm, pairs, settings, told, kept)
    save_embedder(lm, options.out, max(256, options.limit))
    kept.unlink(missing_ok=True)
    print(f"{options.out}: trained on {len(pairs):,} pairs")
    return 0


def reranker(args: list[str]) -> int:
    options = parse(Reranker, args, "embed reranker")
    from dougong.hub import save
    from dougong.rag.contrastive import Training
    from dougong.rag.cross import cross_encoder, train_reranker
    from dougong.rag.embedder import open_embedder
    from dougong.train.monitor import Progress

    pairs = read_pairs(existing(options.pairs))
    lm = cross_encoder(open_embedder(options.embedder).lm, options.seed)
    settings = Training(options.steps, options.batch, options.rate, limit=options.limit, seed=options.seed)
    kept = options.out.with_name(options.out.name + ".state")
    if not options.resume:
        kept.unlink(missing_ok=True)
    with Progress("steps", options.steps) as bar:

        def told(done: int, loss: float, right: float) -> None:
            bar.update(done, f"loss {loss:.3f}, own passage first {right:.0%}")

        train_reranker(lm, pairs, settings, told, kept)
    save(lm, options.out)
    kept.unlink(missing_ok=True)
    print(f"{options.out}: trained on {len(pairs):,} pairs")
    return 0


def read_pairs(path: Path) -> list[Pair]:
    """Pairs from JSON rows. Raises DougongError that names the row."""
    from dougong.data.readers import json_records
    from dougong.rag.contrastive import Pair

    pairs = []
    for number, row in json_records(path):
        query, passage, negatives = (_field(row, key) for key in ("query", "passage", "negatives"))
        right = isinstance(query, str) and isinstance(passage, str) and isinstance(negatives or [], list)
        if not right or not all(isinstance(each, str) for each in negatives or []):
            raise DougongError(f'{path}:{number} is {row!r:.80}; expected "query", "passage" and perhaps "negatives"')
        pairs.append(Pair(query, passage, tuple(negatives or ())))
    return pairs


def _field(row: Any, key: str) -> Any:
    return row.get(key) if isinstance(row, dict) else None
