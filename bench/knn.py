"""What kNN-LM takes from decoding: tokens a second with and without a datastore, in turn within each round.

    python bench/knn.py                      # int8 of the shape of Qwen2.5-0.5B, 1 and 16 sequences
    python bench/knn.py --places 10000       # datastores of this many places
    python bench/knn.py --quick              # 2 layers, few places: that it runs at all

Weights are random and keys drawn (clumps of a normal distribution): time does not depend on what they say, but how
cells are filled, and so the time of "ivf", would be another with states of a trained model. A datastore is kept in
--keep, for k-means takes far longer than the measurement.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

from generators import QUICK, SHAPE
from serve import alone, build


def datastore(lm: Any, places: int, kind: str, folder: Path) -> Any:
    import numpy as np

    from dougong.rag.datastore import Datastore

    path = folder / f"{kind}-{places}-{lm.spec.width}.safetensors"
    if not path.exists():
        draw = np.random.default_rng(0)
        middles = draw.normal(size=(max(1, places // 50), lm.spec.width)).astype(np.float32)
        keys = middles[draw.integers(0, len(middles), places)]
        keys += 0.3 * draw.normal(size=keys.shape).astype(np.float32)
        made = Datastore(lm.spec.width, lm.spec.vocab, kind)  # pyright: ignore[reportArgumentType]
        made.add(keys, draw.integers(0, lm.spec.vocab, places))
        made.save(path)
    return Datastore.load(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--places", type=lambda given: [int(each) for each in given.split(",")], default=[10000, 100000]
    )
    parser.add_argument("--storage", default="int8")
    parser.add_argument("--keep", type=Path, help="folder of the datastores (default: a temporary one)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.places, options.rounds, options.tokens = [5000], 1, 8
    with tempfile.TemporaryDirectory() as temporary:
        compare(options, options.keep or Path(temporary))


def compare(options: argparse.Namespace, folder: Path) -> None:
    from dougong.engine import Engine
    from dougong.rag.knn import KnnLM

    lm = build(options.storage, QUICK if options.quick else SHAPE, options.threads)
    ways: dict[str, Any] = {"the model alone": None}
    for places in options.places:
        for kind in ("exact", "ivf"):
            ways[f"{places:,} places, {kind}"] = KnnLM(datastore(lm, places, kind, folder))
    engine, draw = Engine(lm, memory="1GiB", prefix_cache=False), random.Random(0)
    for count in (1, 16):
        speeds: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(options.rounds + 1):  # the first warms up
            prompts = [[draw.randrange(lm.spec.vocab) for _ in range(16)] for _ in range(count)]
            for way, processor in ways.items():
                rest = alone(engine, prompts, options.tokens, processor)[1]
                speeds[way] += [count * (options.tokens - 1) / rest] * bool(number)
        print(f"{count} together{'tokens/s':>28}{'of the model alone':>22}")
        for way, speed in speeds.items():
            share = statistics.median(a / b for a, b in zip(speed, speeds["the model alone"], strict=True))
            print(f"{way:28}{statistics.median(speed):10.1f}{share:22.2f}")


if __name__ == "__main__":
    main()
