"""`dougong rag knn`: places of texts for a kNN-LM, and what they do for the perplexity of others."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from dougong.base import DougongError
from dougong.cli.options import Device, Dtype, Flag, ModelPath, Quantize, hint, open_model, parse

if TYPE_CHECKING:
    from dougong.engine import LogitsProcessor
    from dougong.hub import LanguageModel
    from dougong.rag.datastore import Datastore


@dataclass(frozen=True)
class Knn:
    """Let a model read texts and keep, for every place, its state and the token that followed (kNN-LM). `dougong
    generate --datastore` then looks up such places at every token; here --held-out tells what that does.

    examples:
      dougong rag knn runs/demo --text notes/ --out notes.places
      dougong rag knn runs/demo --datastore notes.places --held-out more-notes.txt --lam 0.5
      dougong generate runs/demo "The meeting" --datastore notes.places
    """

    path: ModelPath
    """a model folder, a run folder, a llama2.c .bin file, or a hub id"""
    text: tuple[Path, ...] = ()
    """files or folders of text to be kept"""
    datastore: Annotated[Path | None, hint("none: begin anew", "FILE")] = None
    """a file made before, to use or to add --text to"""
    out: Annotated[Path | None, hint("none", "FILE")] = None
    """where the places are written"""
    held_out: tuple[Path, ...] = ()
    """files or folders whose perplexity is told, with the places and without"""
    key: str = "text"
    """the field of JSON lines that holds the text"""
    kind: Literal["exact", "ivf"] = "exact"
    """of a new file: compare with all places, or with the nearest cells: faster from about 100,000 places on"""
    length: int = 0
    """tokens a row; 0: the model's context, at most 1024"""
    lam: float = 0.25
    """weight of what is looked up, 0 to 1"""
    neighbours: int = 16
    """places that are looked up"""
    json: Flag = False
    """print one JSON object"""
    dtype: Dtype = None
    """of the weights while running"""
    device: Device = None
    """where to run"""
    quantize: Quantize = None
    """run in 8 or 4 bits, or with floats packed for the CPU"""


def run(args: list[str]) -> int:
    options = parse(Knn, args, "rag knn")
    if not options.text and options.datastore is None:
        raise DougongError("there is nothing to look up; give --text, or --datastore FILE")
    if options.out is None and not options.held_out:
        raise DougongError("there is nothing to do with the places; give --out FILE, --held-out FILE, or both")
    if options.length < 0:
        raise DougongError(f"--length is {options.length}; expected 0 or more")
    lm = open_model(options.path, options.dtype, options.device, options.quantize)
    if lm.tokenizer is None:
        raise DougongError(f"{options.path} has no tokenizer; add its tokenizer.json to the folder")
    places = _places(options, lm)
    told: dict[str, Any] = {"places": len(places), "width": places.width, "kind": places.kind}
    if options.out is not None:
        places.save(options.out)
        told["file"] = str(options.out)
    if options.held_out:
        told |= _measured(options, lm, places)
    if options.json:
        print(json.dumps(told, ensure_ascii=False))
        return 0
    print(f"{len(places):,} places" + (f", in {options.out}" if options.out else ""))
    if options.held_out:
        print(f"perplexity of {told['tokens']:,} tokens: {told['perplexity_alone']:.2f} of the model alone")
        print(f"{told['perplexity']:.2f} with lam {options.lam:g} and {options.neighbours} neighbours")
    return 0


def _places(options: Knn, lm: LanguageModel) -> Datastore:
    from dougong.engine import Engine
    from dougong.rag.datastore import Datastore
    from dougong.train.monitor import Progress

    if options.datastore is None:
        places = Datastore(lm.spec.width, lm.spec.vocab, options.kind)
    else:
        places = Datastore.load(options.datastore)
        places.check(lm.spec.width, lm.spec.vocab)
    if options.text:
        with Progress("rows", 1, quiet=options.json) as bar:

            def update(done: int, total: int) -> None:
                bar.total = total
                bar.update(done)

            places.add_texts(Engine(lm), _ids(options.text, options.key, lm), _length(options, lm), update)
    return places


def _measured(options: Knn, lm: LanguageModel, places: Datastore) -> dict[str, Any]:
    from dougong.engine import Engine
    from dougong.rag.knn import KnnLM, surprise

    engine, texts, length = Engine(lm), _ids(options.held_out, options.key, lm), _length(options, lm)

    def perplexity(processor: LogitsProcessor | None) -> tuple[float, int]:
        total, count = surprise(engine, texts, processor, length)
        if not count:
            raise DougongError("--held-out has no text of two tokens or more")
        return math.exp(total / count), count

    mixed, count = perplexity(KnnLM(places, lam=options.lam, k=options.neighbours))
    return {"perplexity_alone": perplexity(None)[0], "perplexity": mixed, "tokens": count, "lam": options.lam}


def _ids(paths: Sequence[Path], key: str, lm: LanguageModel) -> list[list[int]]:
    """Documents as the engine reads a prompt, so that what is kept is what it will look for."""
    from dougong.data import read_documents
    from dougong.engine.prompts import text_ids

    assert lm.tokenizer is not None
    return [text_ids(lm, lm.tokenizer, each.text) for each in read_documents(paths, key=key)]


def _length(options: Knn, lm: LanguageModel) -> int:
    return min(options.length or min(1024, lm.spec.context), lm.spec.context)
