"""What the engine's caches give and take: a prefix that was read before, keys and values in bytes, and what every
storage of weights and of keys and values costs in perplexity on trained models, beside its speed.

    python bench/cache.py                               # everything; DOUGONG_DATA names stories260K and a text
    python bench/cache.py --parts prefix,kv             # on random weights of the shape of Qwen2.5-0.5B
    python bench/cache.py --parts accuracy --model runs/demo --text held_out.txt
    python bench/cache.py --quick                       # 2 layers, few tokens: that it runs at all

prefix     seconds to the first token of a prompt of 1,016 tokens: unread before, and when its first 1,000 were read
kv         bytes a token of keys and values, and tokens a second of 16 sequences of 512 tokens, by how they are stored
accuracy   perplexity and the share of places where the best token is float32's, read through the engine's own store in
           chunks, by the storage of weights and of keys and values; tokens a second of one answer of that very model
"""

from __future__ import annotations

import argparse
import math
import os
import random
import statistics
from pathlib import Path
from typing import Any

from generators import QUICK, SHAPE, STORAGES
from serve import alone, build

KINDS: dict[str, str | None] = {"as it is": None, "int8": "int8", "fp8": "fp8"}
CHUNK = 32  # tokens read at once: later ones see earlier ones as they are stored


def prefix(lm: Any, options: argparse.Namespace) -> None:
    """Every round: a new prefix, then the same with other words after it."""
    from dougong.engine import Engine

    engine = Engine(lm, memory="1GiB")
    draw = random.Random(0)
    words = lambda count: [draw.randrange(lm.spec.vocab) for _ in range(count)]  # noqa: E731
    cold, warm = [], []
    for number in range(options.rounds + 1):
        shared = words(options.prefix)
        for times in (cold, warm):
            seconds = alone(engine, [shared + words(16)], 2)[0]
            times += [seconds] * bool(number)
    ratio = statistics.median(a / b for a, b in zip(cold, warm, strict=True))
    print(f"first token after {options.prefix} + 16 tokens: {1000 * statistics.median(cold):8.1f} ms unread")
    print(f"{'':36}{1000 * statistics.median(warm):8.1f} ms shared, {ratio:.1f} times sooner\n")


def kv(lm: Any, options: argparse.Namespace) -> None:
    """Engines in turn within each round; they share the weights."""
    from dougong.engine import Engine

    engines = {name: Engine(lm, memory="1GiB", kv=kind, prefix_cache=False) for name, kind in KINDS.items()}  # pyright: ignore[reportArgumentType]
    draw = random.Random(0)
    speeds: dict[str, list[float]] = {name: [] for name in KINDS}
    for number in range(options.rounds + 1):
        prompts = [[draw.randrange(lm.spec.vocab) for _ in range(options.length)] for _ in range(16)]
        for name, engine in engines.items():
            rest = alone(engine, prompts, options.tokens)[1]
            speeds[name] += [16 * (options.tokens - 1) / rest] * bool(number)
    print(f"{'keys and values':18}{'bytes a token':>14}{'tokens held':>14}{'tokens/s, 16':>14}")
    for name, engine in engines.items():
        runner = engine.runner
        held = max(pages.total for pages in runner.pages) * runner.page_size
        speed = statistics.median(speeds[name])
        print(f"{name:18}{runner.layout.token_bytes():14}{held:14}{speed:14.1f}")
    print()


def read(lm: Any, kind: str | None, rows: list[list[int]]) -> tuple[float, list[int]]:
    """(mean negative log-probability, best token at every place) of rows that are fed to the engine's runner, so that
    keys and values are read as they are stored."""
    import torch

    from dougong.engine.runner import Runner
    from dougong.engine.work import Work

    runner = Runner(lm.model, 1 << 28, kv_dtype=kind, prefixes=False)  # pyright: ignore[reportArgumentType]
    loss, count, best = 0.0, 0, []
    for row in rows:
        seq = runner.open(row)
        while seq.length < len(row) - 1:
            part = row[seq.length : min(seq.length + CHUNK, len(row) - 1)]
            following = torch.tensor(row[seq.length + 1 : seq.length + 1 + len(part)])
            scores = runner.step([Work(seq, part, len(part))])[0].logits.float().log_softmax(-1)
            loss -= float(scores.gather(-1, following[:, None]).sum())
            count += len(part)
            best += scores.argmax(-1).tolist()
        runner.close(seq)
    return loss / count, best


def accuracy(path: Path, words: Path, options: argparse.Namespace) -> None:
    import torch

    import dougong
    from dougong.engine import Engine
    from dougong.parts.int4 import Int4

    torch.set_num_threads(options.threads)
    print(f"{path.name} on {words.name}")
    print(f"{'weights':12}{'keys, values':14}{'perplexity':>12}{'best as float32':>17}{'tokens/s, 1':>13}")
    truth: list[int] = []
    for storage in options.storages:
        kind, method, group = STORAGES[storage]
        lm = dougong.load(path, dtype=kind, quantize=method, group=group)
        assert lm.tokenizer is not None
        lm.model.eval()
        if method == "int4" and not any(isinstance(each, Int4) for each in lm.model.modules()):
            print(f"{storage:12}its matrices have no room for groups of {group}")
            continue
        ids = lm.tokenizer.encode(words.read_text(encoding="utf-8")[: options.characters])
        size = min(257, lm.spec.context)
        rows = [ids[start : start + size] for start in range(0, len(ids) - size + 1, size)][:32]
        for name, stored in KINDS.items():
            loss, best = read(lm, stored, rows)
            truth = truth or best  # the first row is float32, as it is
            same = statistics.mean(a == b for a, b in zip(best, truth, strict=True))
            engine = Engine(lm, memory="256MiB", kv=stored, prefix_cache=False)  # pyright: ignore[reportArgumentType]
            times = [alone(engine, [rows[0][:16]], options.tokens)[1] for _ in range(options.rounds + 1)][1:]
            speed = (options.tokens - 1) / statistics.median(times)
            print(f"{storage:12}{name:14}{math.exp(loss):12.4f}{100 * same:15.2f} %{speed:13.1f}")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=lambda given: given.split(","), default=["prefix", "kv", "accuracy"])
    parser.add_argument("--storage", choices=list(STORAGES), default="int8", help="of the weights in prefix and kv")
    parser.add_argument("--model", action="append", help="a trained model (default: stories260K of DOUGONG_DATA)")
    parser.add_argument("--text", help="that the trained models read (default: TinyStories of DOUGONG_DATA)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    options.prefix, options.length, options.tokens, options.characters = 1000, 512, 64, 40000
    options.storages = ["f32", "bf16-plain", "bf16", "int8", "int4"]
    if options.quick:
        options.rounds, options.length, options.tokens, options.characters = 1, 32, 8, 4000
    if {"prefix", "kv"} & set(options.parts):
        lm = build(options.storage, QUICK if options.quick else SHAPE, options.threads)
        for part in (prefix, kv):
            if part.__name__ in options.parts:
                part(lm, options)
        del lm
    if "accuracy" in options.parts:
        data = Path(os.environ.get("DOUGONG_DATA", "."))
        models = options.model or [data / "weights" / "stories260K" / "stories260K.bin"]
        words = Path(options.text or data / "text" / "tinystories_samples" / "tinystories_sample.txt")
        for model in map(Path, models):
            if model.exists() and words.exists():
                accuracy(model, words, options)
            else:
                print(f"accuracy: skipped, there is no {model if words.exists() else words}; set DOUGONG_DATA")


if __name__ == "__main__":
    main()
