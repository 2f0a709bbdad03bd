"""`dougong eval`: how well a model predicts a text, and how many of the generated problems it solves; and what else is
measured: `eval tools` (calls of functions), `eval guards` (what an agent's guards stop and let pass), `eval agents`
(patterns in a small world)."""

from __future__ import annotations

import importlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from dougong.base import DougongError
from dougong.cli.options import Device, Dtype, Flag, ModelPath, open_model, parse


@dataclass(frozen=True)
class Evaluate:
    """Bits per byte on text, accuracy on problems with checkable answers, or both; how a text falls to experts.

    Besides models: dougong eval tools, dougong eval guards, dougong eval agents (each has --help).

    examples:
      dougong eval runs/demo --skills 50
      dougong eval runs/pretrain --text held-out.txt --json
      dougong eval models/mixtral --text held-out.txt --loads
    """

    path: ModelPath
    """a model folder, a run folder, a llama2.c .bin file, or a hub id"""
    text: tuple[Path, ...] = ()
    """files or folders of text that the model has not seen"""
    key: str = "text"
    """the field of JSON lines that holds the text"""
    length: int = 0
    """tokens a row; 0: the model's context, at most 1024"""
    skills: int = 0
    """unseen problems of every skill"""
    loads: Flag = False
    """of a mixture of experts: the load of each expert of each layer on that text"""
    seed: int = 0
    """of the problems"""
    json: Flag = False
    """print one JSON object"""
    dtype: Dtype = None
    """of the weights while running"""
    device: Device = None
    """where to run"""


OTHERS = {"tools": "dougong.cli.eval_tools", "guards": "dougong.cli.eval_guards", "agents": "dougong.cli.eval_agents"}


def run(args: list[str]) -> int:
    if args[:1] and args[0] in OTHERS:
        return importlib.import_module(OTHERS[args[0]]).run(args[1:])
    options = parse(Evaluate, args, "eval")
    if not options.text and not options.skills:
        raise DougongError("there is nothing to measure; give --text FILE, --skills COUNT, or both")
    if options.skills < 0 or options.length < 0:
        raise DougongError(f"skills is {options.skills}, length is {options.length}; expected 0 or more")
    if options.loads and not options.text:
        raise DougongError("--loads counts how a text falls to experts; give --text FILE")
    from dougong.data import encode_documents, read_documents
    from dougong.data.stream import evaluation_batches
    from dougong.evals import accuracy
    from dougong.evals.experts import expert_loads, load_table
    from dougong.evals.skills import answer, unseen_problems
    from dougong.train.held_out import held_out_bits
    from dougong.train.monitor import Progress

    documents = list(read_documents(options.text, key=options.key)) if options.text else []
    lm = open_model(options.path, options.dtype, options.device)
    if lm.tokenizer is None:
        raise DougongError(f"{options.path} has no tokenizer; add its tokenizer.json to the folder")
    lm.model.eval()
    result: dict[str, object] = {}
    table = ""
    if documents:
        store = encode_documents(lm.tokenizer, documents)
        length = options.length or min(1024, lm.spec.context)
        result["bytes"] = store.bytes
        if options.loads:  # asked first: a dense model says so before the long reading
            loads = expert_loads(lm.model, evaluation_batches(store, 16, length))
            result["loads"] = {str(each.layer): each.counts for each in loads}
            table = load_table(loads)
        result["bits_per_byte"] = held_out_bits(lm.model, store, length, length // 2)
    if options.skills:
        problems = unseen_problems(options.skills, options.seed)
        with Progress("answers", len(problems), quiet=options.json) as bar:
            answers = answer(lm, problems, progress=bar.update)
        result["accuracy"] = [asdict(each) for each in accuracy(answers, problems)]
    if options.json:
        print(json.dumps(result, ensure_ascii=False))
        return 0
    if documents:
        print(f"bits per byte  {result['bits_per_byte']:.4f}  on {result['bytes']:,} bytes")
    if table:
        print(table)
    for each in result.get("accuracy", []):  # pyright: ignore[reportGeneralTypeIssues, reportAttributeAccessIssue]
        print(f"{each['skill']:12} {each['correct']:4}/{each['total']}  {each['low']:.0%} to {each['high']:.0%}")
    return 0
