"""Tokens a second that the models of `dougong lab mixers` read, by length: the four in turn, medians, random weights.

    python bench/mixers.py [--rounds 5] [--threads 2]

The report of the experiment has the same numbers as each trial meets the machine; here all meet the same state of it.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from dougong.lab.mixers import LENGTHS, timed
from dougong.lab.mixers_models import specs
from dougong.lab.tasks import Recall
from dougong.model import Model, initialise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    vocab = Recall((1,)).vocab
    made = specs(vocab, max(LENGTHS))
    models = {name: initialise(Model(made[name]), 0).eval() for name in timed()}
    for length in LENGTHS:
        tokens = torch.randint(0, vocab, (1, length), generator=torch.Generator().manual_seed(0))
        taken: dict[str, list[float]] = {name: [] for name in models}
        with torch.no_grad():
            for turn in range(options.rounds + 1):  # the first warms up
                for name, model in models.items():
                    began = time.perf_counter()
                    model(tokens)
                    if turn:
                        taken[name].append(time.perf_counter() - began)
        for name, times in taken.items():
            print(f"{length:>6}  {name:<24}{length / statistics.median(times):>10,.0f} tokens/s", flush=True)


if __name__ == "__main__":
    main()
