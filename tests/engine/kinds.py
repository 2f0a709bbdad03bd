"""Models of every kind of state, and what the plain model says of a text."""

from __future__ import annotations

import torch

from dougong.engine.runner import Runner
from dougong.engine.sequence import Sequence
from dougong.engine.work import Work
from dougong.model import Model, ModelSpec, initialise

MEMORY = 1 << 24  # bytes


@torch.no_grad()
def moved(spec: ModelSpec, seed: int = 0) -> Model:
    """A model with every parameter off its initial value: some begin at zero, and would hide what they multiply."""
    model = initialise(Model(spec), seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


@torch.no_grad()
def expected(model: Model, tokens: list[int]) -> torch.Tensor:
    """Logits after every token, (T, V), by a forward pass over the whole text."""
    return model(torch.tensor([tokens])).logits[0]


def close(actual: torch.Tensor, wanted: torch.Tensor, tolerance: float = 2e-4) -> None:
    assert torch.isfinite(actual).all()
    assert float((actual - wanted).abs().max()) <= tolerance * max(1.0, float(wanted.abs().max()))


def feed(runner: Runner, seq: Sequence, tokens: list[int], chunk: int) -> torch.Tensor:
    """Run all tokens that the sequence lacks, `chunk` at a time; logits after each of them."""
    out = []
    while seq.length < len(tokens):
        part = tokens[seq.length : seq.length + chunk]
        out.append(runner.step([Work(seq, part, len(part))])[0].logits)
    return torch.cat(out)


def text(model: Model, length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, model.spec.vocab, (length,), generator=generator).tolist()


def all_free(runner: Runner) -> bool:
    """Whether no page, row or lane has an owner."""
    pages = all(each.free == each.total for each in runner.pages)
    return pages and runner.open_sequences == 0 and runner.fixed.free == runner.division.rows
