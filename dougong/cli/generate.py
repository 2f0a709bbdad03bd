"""`dougong generate`: continue a text."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from dougong.cli.options import (
    Device,
    Dtype,
    Flag,
    ModelPath,
    Quantize,
    SamplingOptions,
    given_text,
    hint,
    open_model,
    parse,
)


@dataclass(frozen=True)
class Generate:
    """Continue a text: prints the prompt and what follows it.

    examples:
      dougong generate runs/demo "Once upon a time" --temperature 0
      echo "def add(a, b):" | dougong generate runs/demo --max-tokens 40 --json
    """

    path: ModelPath
    """a model folder, a run folder, a llama2.c .bin file, or a hub id"""
    prompt: Annotated[str | None, tyro.conf.Positional, hint("standard input", "PROMPT")] = None
    """the text to continue; - reads standard input"""
    sampling: Annotated[SamplingOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=SamplingOptions)
    datastore: Annotated[Path | None, hint("none", "FILE")] = None
    """look up places of texts at every token (kNN-LM): a file of `dougong rag knn`"""
    lam: float = 0.25
    """weight of what is looked up, 0 to 1"""
    neighbours: int = 16
    """places that are looked up"""
    json: Flag = False
    """print one JSON object: prompt, text, tokens, logprobs, finish_reason"""
    stream: bool = True
    """print the text as it comes"""
    dtype: Dtype = None
    """of the weights while running"""
    device: Device = None
    """where to run"""
    quantize: Quantize = None
    """run in 8 or 4 bits, or with floats packed for the CPU"""


def run(args: list[str]) -> int:
    options = parse(Generate, args, "generate")
    prompt = given_text(options.prompt)
    lm = open_model(options.path, options.dtype, options.device, options.quantize)
    sampling = options.sampling.sampling(lm)
    if options.datastore is not None:
        from dougong.rag.datastore import Datastore
        from dougong.rag.knn import KnnLM

        knn = KnnLM(Datastore.load(options.datastore), lam=options.lam, k=options.neighbours)
        sampling = dataclasses.replace(sampling, processor=knn)
    from dougong.engine import Engine

    engine = Engine(lm)
    if options.json or not options.stream:
        answer = engine.generate([prompt], sampling)[0]
        if options.json:
            record = {**dataclasses.asdict(answer), "prompt": prompt, "prompt_tokens": answer.prompt}
            print(json.dumps(record, ensure_ascii=False))
        else:
            print(prompt + answer.text)
        return 0
    events = engine.stream([prompt], sampling)
    sys.stdout.write(prompt)
    for event in events:
        sys.stdout.write(event.text)
        sys.stdout.flush()
    print()
    return 0
