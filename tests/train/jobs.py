"""Small training jobs for the tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from dougong.data import TokenStore, batches
from dougong.data.batch import Batch
from dougong.data.loader import LoaderState
from dougong.model import Model, decoder_spec, initialise
from dougong.train import Optimizer, Schedule, Training, train
from dougong.train.ranks import Ranks


def store(seed: int = 0) -> TokenStore:
    """A few documents of a language with a pattern: each token is the one before it plus a document's step."""
    generator = np.random.default_rng(seed)
    pieces = []
    for _ in range(40):
        length, start, step = generator.integers(4, 30), generator.integers(2, 20), generator.integers(1, 4)
        pieces.append(np.append(2 + (start + step * np.arange(length)) % 18, 1).astype(np.uint16))
    starts = np.cumsum([0, *map(len, pieces)])
    names = tuple(f"d{index}" for index in range(40))
    return TokenStore(np.concatenate(pieces), starts, names, np.diff(starts), 20, 1, 0)


def model(tied: bool = True) -> Model:
    """A small decoder off its initial values: gradients that are exactly zero there would leave Adam's direction to
    rounding."""
    made = initialise(Model(decoder_spec(20, 16, 2, 2, 32, ffn=32, tied=tied)), 3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return made


def stream(state: LoaderState | None, ranks: Ranks) -> Iterator[tuple[Batch, LoaderState]]:
    return batches(store(), 8, 16, seed=5, state=state, rank=ranks.rank, world=ranks.world)


def training(steps: int = 12, kind: str = "muon", **rest) -> Training:
    schedule = Schedule("cosine", warmup=3, final=0.1)
    optimizer = Optimizer(kind, rate=0.01, matrix_rate=0.02)
    return Training(steps, optimizer=optimizer, schedule=schedule, checkpoint=rest.pop("checkpoint", 4), **rest)


def trained(run: Path, settings: Training, resume: bool = False, **rest) -> Model:
    made = model()
    train(made, stream, settings, run, resume=resume, quiet=True, **rest)
    return made


def weights(made: Model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in made.named_parameters()}


def main(run: str) -> None:
    """One rank of a data-parallel run (started by torchrun): saves the weights it ends with."""
    made = trained(Path(run), training(6, checkpoint=0))
    torch.save(weights(made), Path(run) / f"rank-{Ranks.join().rank}.pt")


if __name__ == "__main__":
    import sys

    main(sys.argv[1])
