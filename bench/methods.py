"""Milliseconds of a training step of every fine-tuning method of `dougong lab tuning`, on its model and one of its
batches: all in one process, the steps interleaved, medians.

    python bench/methods.py --threads 1 --rounds 9
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from tune import Step, our_step


def lab_steps() -> dict[str, Step]:
    """A step of every method of the lab's experiment, on its model (untrained) and one of its batches."""
    from dougong.hub import LanguageModel, save
    from dougong.lab.tasks import Drawn
    from dougong.lab.tuning import EXPERIMENT, prepared, spec
    from dougong.lab.tuning_methods import ways
    from dougong.lab.tuning_task import Problems
    from dougong.model import Model, initialise
    from dougong.train.loop import next_token
    from dougong.train.ranks import Ranks

    base, budget = Path(tempfile.mkdtemp()) / "model", EXPERIMENT.budget()
    model = initialise(Model(spec()))
    for parameter in model.parameters():  # a row of zeros has no direction that DoRA could keep
        parameter.data += 0.02
    save(LanguageModel(model), base)
    batch, _ = next(Drawn(Problems("learn"), budget.rows, 0)(None, Ranks()))
    found = {}
    for name, way in ways(budget.steps).items():
        found[name] = our_step(prepared(base, way, 0).model, next_token, lambda: batch)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    import torch

    from dougong.base.allocator import keep_memory

    torch.set_num_threads(options.threads)
    keep_memory()
    steps = lab_steps()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(options.rounds + 2):  # the first two do not count
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if number >= 2:
                times[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    for name, median in medians.items():
        print(f"{name:16}{1000 * median:8.1f} ms a step{median / medians['LoRA']:8.2f}x LoRA's")


if __name__ == "__main__":
    main()
