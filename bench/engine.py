"""Tokens a second of whole generations: dougong's engine against transformers and, where they are installed,
llama.cpp, vLLM and OpenVINO, on random weights of the exact shape of Qwen2.5-0.5B. Each contender lives in a process of
its own, as a user would run it; all take turns within each round, and medians and ratios are printed, with the memory
of each process and, for our storages, the perplexity of a trained small model (DOUGONG_DATA names the data).

    python bench/engine.py                                          # everything that is installed
    python bench/engine.py --arms decode1,prefill --storages bf16,int8 --peers transformers-bf16
    python bench/engine.py --quick                                  # 2 layers, few tokens: that it runs at all

arms       decode1: tokens after the first of one answer; prefill: prompt tokens until the first; decode16: tokens after
           the first of 16 answers to prompts of different lengths at once (transformers and OpenVINO: one padded batch)
storages   f32, bf16 (packed for oneDNN), bf16-plain (as loaded), int8, int4 (groups of 32; -64, -128), with float32
           activations; int8-bf16, int4-bf16 with bfloat16 activations
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from generators import PEERS, QUICK, SHAPE, STORAGES, checkpoint, worker


class Contender:
    def __init__(self, name: str, options: argparse.Namespace, folder: str):
        self.name = name
        python = options.python.get(PEERS.get(name, ""), sys.executable)
        command = [python, __file__, "--worker", name, "--threads", str(options.threads), "--folder", folder]
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "VLLM_TARGET_DEVICE": "cpu"}
        self.process = subprocess.Popen(
            command + ["--quick"] * options.quick,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if options.verbose else subprocess.DEVNULL,
            env=environment,
        )

    def ready(self) -> bool:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip() == "ready"

    def run(self, lengths: list[int], n: int, seed: int) -> tuple[float, float]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"lengths": lengths, "n": n, "seed": seed}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise EOFError(f"{self.name} ended while it worked; --verbose shows what it said")
        seconds, megabytes = json.loads(line)
        return seconds, megabytes

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(contender: Contender, arm: str, options: argparse.Namespace, seed: int) -> tuple[float, float]:
    """(tokens a second, MB). The prompt's share is taken off by a run of one token, on other prompts of the lengths."""
    prompt, n = options.prompt, options.tokens
    lengths = [prompt] if arm != "decode16" else [prompt // 4 + prompt * row // 20 for row in range(16)]
    first, megabytes = contender.run(lengths, 1, 2 * seed)
    if arm == "prefill":
        return sum(lengths) / first, megabytes
    whole, megabytes = contender.run(lengths, n, 2 * seed + 1)
    return len(lengths) * (n - 1) / (whole - first) if whole > first else math.nan, megabytes


def perplexities(storages: list[str], model: str | None, text: str | None) -> dict[str, str]:
    """Of a trained model on a text, by storage: of stories260K on stories unless others are named."""
    data = Path(os.environ.get("DOUGONG_DATA", "."))
    path = Path(model) if model else data / "weights" / "stories260K" / "stories260K.bin"
    words = Path(text) if text else data / "text" / "tinystories_samples" / "tinystories_sample.txt"
    if not path.exists() or not words.exists():
        print("perplexity: skipped, DOUGONG_DATA does not name the data; --model and --text name others")
        return {}
    import torch

    import dougong
    from dougong.parts.int4 import Int4

    out = {}
    for storage in storages:
        kind, method, group = STORAGES[storage]
        lm = dougong.load(path, dtype=kind, quantize=method, group=group)
        assert lm.tokenizer is not None
        length = min(256, lm.spec.context)
        ids = lm.tokenizer.encode(words.read_text(encoding="utf-8")[:40000])
        rows = torch.tensor(ids[: len(ids) // (length + 1) * (length + 1)]).view(-1, length + 1)[:32]
        with torch.inference_mode():
            scores = lm.model(rows[:, :-1]).logits.float().log_softmax(-1)
            loss = -scores.gather(-1, rows[:, 1:, None]).mean()
        # A small model's matrices may have no room for groups: they are in 8 bits then.
        here = method != "int4" or any(isinstance(each, Int4) for each in lm.model.modules())
        out[storage] = f"{math.exp(float(loss)):.3f}" if here else "no groups"
    return out


def report(
    results: dict[tuple[str, str], list[float]], megabytes: dict[str, float], options: argparse.Namespace
) -> None:
    """Medians, then each of ours as multiples of every peer."""
    medians = {key: statistics.median(values) for key, values in results.items()}
    names = list(dict.fromkeys(name for name, _ in medians))
    ppl = perplexities([name for name in names if name in STORAGES], options.model, options.text)
    arms = options.arms
    print(f"{'tokens/s':20}" + "".join(f"{arm:>10}" for arm in arms) + f"{'MB':>8}{'perplexity':>12}")
    for name in names:
        cells = "".join(f"{medians.get((name, arm), math.nan):10.1f}" for arm in arms)
        print(f"{name:20}{cells}{megabytes[name]:8.0f}{ppl.get(name, ''):>12}")
    for arm in arms:
        peers = [name for name in names if name in PEERS and (name, arm) in medians]
        if not peers:
            continue
        print(f"\n{arm}, times the peer:\n{'':20}" + "".join(f"{peer:>19}" for peer in peers))
        for name in names:
            if name in STORAGES and (name, arm) in medians:
                ratios = "".join(f"{medians[name, arm] / medians[peer, arm]:18.2f}x" for peer in peers)
                print(f"{name:20}{ratios}")


def installed(package: str, python: str | None) -> bool:
    if python is not None:
        return not subprocess.run([python, "-c", f"import {package}"], capture_output=True).returncode
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # the package's own parent
        return False


def chosen(options: argparse.Namespace) -> list[str]:
    """The contenders asked for that can run, ours and theirs in turn. Says what is left out."""
    peers = []
    for name in options.peers:
        if installed(PEERS[name], options.python.get(PEERS[name])):
            peers.append(name)
        else:
            print(f"{name}: skipped, {PEERS[name]} is not installed")
    return [*options.storages, *peers]


def several(known: dict[str, Any] | tuple[str, ...]) -> Callable[[str], list[str]]:
    def parse(given: str) -> list[str]:
        names = [name for name in given.split(",") if name]
        if wrong := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{wrong[0]!r} is not known; known: {', '.join(known)}")
        return names

    return parse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arms = ("decode1", "prefill", "decode16")
    parser.add_argument("--arms", type=several(arms), default=list(arms))
    parser.add_argument("--storages", type=several(STORAGES), default=["f32", "bf16", "int8", "int4"])
    parser.add_argument("--peers", type=several(PEERS), default=list(PEERS))
    parser.add_argument(
        "--python",
        type=lambda given: tuple(given.split("=", 1)),
        action="append",
        default=[],
        metavar="PACKAGE=PATH",
        help="the interpreter that has a peer's package, where its requirements do not go with ours",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", help="whose perplexity is shown (default: stories260K of DOUGONG_DATA)")
    parser.add_argument("--text", help="the text for it")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--verbose", action="store_true", help="show what the contenders print")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.python = dict(options.python)
    shape = QUICK if options.quick else SHAPE
    if options.worker:
        worker(options.worker, shape, options.threads, options.folder)
        return
    if options.quick:
        options.rounds, options.prompt, options.tokens = min(options.rounds, 2), 32, 8
    names = chosen(options)
    with tempfile.TemporaryDirectory() as folder:
        if any(PEERS.get(name, "transformers") != "transformers" for name in names):
            checkpoint(folder, shape)
        race(names, options, str(Path(folder) / "model"))


def race(names: list[str], options: argparse.Namespace, folder: str) -> None:
    running = []
    for name in names:
        contender = Contender(name, options, folder)
        if contender.ready():
            running.append(contender)
            print(f"ready: {name}", file=sys.stderr)
        else:
            print(f"{name}: did not start; --verbose shows why")
            contender.close()
    results: dict[tuple[str, str], list[float]] = {}
    megabytes: dict[str, float] = {}
    for number in range(options.rounds + 1):  # the first round is to warm up
        for arm in options.arms:
            for contender in running:
                speed, megabytes[contender.name] = measure(contender, arm, options, number)
                if number:
                    results.setdefault((contender.name, arm), []).append(speed)
    for contender in running:
        contender.close()
    report(results, megabytes, options)


if __name__ == "__main__":
    main()
