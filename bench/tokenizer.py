"""Our BPE against the `tokenizers` library on the standard library's own sources: training and encoding, as ratios.

    python bench/tokenizer.py [--megabytes 10] [--vocab 32000] [--rounds 3]

The two sides run in turn within each round, so that both meet the same state of the machine; medians are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer as Core
from tokenizers import models, trainers

from dougong.tokenizer import BPE, Tokenizer, TrainedBPE, count_words, train_bpe, words_named


def sources(megabytes: float) -> list[str]:
    """Python files of the standard library, in order of name, up to a size."""
    texts: list[str] = []
    size = 0.0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if size >= megabytes * 1e6:
            break
        if "site-packages" in path.parts:
            continue
        try:
            texts.append(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue
        size += path.stat().st_size
    return texts


def ours(texts: list[str], pattern: str, vocab_size: int) -> TrainedBPE:
    """Merges by our trainer."""
    words = words_named(pattern)
    return train_bpe(count_words(texts, words), vocab_size, alphabet=words.alphabet())


def library(texts: list[str], pattern: str, vocab_size: int) -> Core:
    """A tokenizer by the library's trainer (several threads)."""
    words = words_named(pattern)
    core = Core(models.BPE())
    words.dress(core)
    alphabet = sorted(words.alphabet())
    core.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    )
    return core


def interleaved(rounds: int, **sides: Callable[[], object]) -> dict[str, float]:
    """Median seconds of each side; the sides take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=10)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    texts = sources(options.megabytes)
    size = sum(len(text.encode()) for text in texts) / 1e6
    load = os.getloadavg()[0]
    print(f"{size:.1f} MB in {len(texts)} files; {os.cpu_count()} cores, load {load:.1f}; medians of {options.rounds}")
    for pattern in ("gpt2", "llama3"):
        core = library(texts, pattern, options.vocab)
        trained = ours(texts, pattern, options.vocab)
        same = trained.merges == [tuple(merge) for merge in json.loads(core.to_str())["model"]["merges"]]
        times = interleaved(
            options.rounds,
            ours=lambda p=pattern: ours(texts, p, options.vocab),
            library=lambda p=pattern: library(texts, p, options.vocab),
        )
        report(f"train {pattern:6} {len(trained.merges)} merges, equal: {same}", times, size)

        production = Tokenizer(core)
        readable = BPE(trained.vocab, trained.merges, words_named(pattern))
        some = texts[:: max(1, len(texts) // 60)]
        part = sum(len(text.encode()) for text in some) / 1e6
        equal = all(readable.encode(text) == production.encode(text) for text in some)
        times = interleaved(
            options.rounds,
            ours=lambda own=readable, s=some: [own.encode(text) for text in s],
            library=lambda lib=production, s=some: [lib.encode(text) for text in s],
        )
        report(f"encode {pattern:6} {part:.1f} MB one by one, warm caches, equal: {equal}", times, part)
        encoded = [production.encode(text) for text in some]
        times = interleaved(
            options.rounds,
            decode=lambda lib=production, rows=encoded: [lib.decode(ids) for ids in rows],
            batch=lambda lib=production, s=some: lib.encode_batch(s),
        )
        rates = ", ".join(f"{name} {part / seconds:.1f} MB/s" for name, seconds in times.items())
        print(f"  Tokenizer: {rates}")


def report(what: str, times: dict[str, float], megabytes: float) -> None:
    """One line: both speeds, and how many times longer ours takes."""
    speed = ", ".join(f"{name} {seconds:.2f} s ({megabytes / seconds:.1f} MB/s)" for name, seconds in times.items())
    print(f"{what}: {speed}; ours takes {times['ours'] / times['library']:.2f}x the library's time")


if __name__ == "__main__":
    main()
