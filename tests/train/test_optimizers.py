"""Optimizers equal PyTorch's own where it has them; schedules stay within their bounds."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dougong.base import DougongError
from dougong.train import Optimizer, Schedule
from dougong.train.optimizers import AdamW, Muon, orthogonalise

SHAPES = [(6, 6), (12, 4), (4, 12), (6, 6)]


def parameters(shapes, seed=0):
    torch.manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]


def run(mine, theirs, step, scale, rounds):
    """Steps of both on the same gradients; ours arrive multiplied by 1 / scale."""
    for round in range(rounds):
        torch.manual_seed(round)
        for a, b in zip(mine, theirs, strict=True):
            b.grad = torch.randn(b.shape)
            a.grad = b.grad / scale
        step(round)


@pytest.mark.parametrize("scale", [1.0, 0.125])
def test_adamw_is_torchs(scale):
    mine, theirs = parameters([(5, 3), (7,)]), parameters([(5, 3), (7,)])
    ours = AdamW(mine, 0.01, (0.9, 0.95), 1e-8, 0.1)
    other = torch.optim.AdamW(theirs, lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)

    def step(round):
        for group in other.param_groups:
            group["lr"] = 0.01 * (1 - 0.2 * round)
        ours.step(1 - 0.2 * round, torch.tensor(scale))
        other.step()

    run(mine, theirs, step, scale, 3)
    for a, b in zip(mine, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 0.125])
def test_muon_is_torchs(scale):
    mine, theirs = parameters(SHAPES), parameters(SHAPES)
    ours = Muon(mine, 0.02, 0.95, 0.1)
    other = torch.optim.Muon(theirs, lr=0.02, momentum=0.95, weight_decay=0.1, nesterov=True)

    def step(round):
        ours.step(1.0, torch.tensor(scale))
        other.step()

    # torch iterates in bfloat16, ours on a CPU in float32: directions agree to bfloat16's precision.
    run(mine, theirs, step, scale, 2)
    for a, b, start in zip(mine, theirs, parameters(SHAPES), strict=True):
        moved, other_moved = a - start, b - start
        assert float((moved - other_moved).norm() / other_moved.norm()) < 0.05


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_orthogonalise_brings_singular_values_near_one(rows, columns, seed):
    torch.manual_seed(seed)
    # A matrix with known, not tiny, singular values: the iteration lifts those above about 0.01 of the norm.
    u, _, v = torch.linalg.svd(torch.randn(rows, columns), full_matrices=False)
    x = u @ torch.diag(torch.linspace(0.3, 1.0, min(rows, columns))) @ v
    values = torch.linalg.svdvals(orthogonalise(x[None])[0])
    assert bool((values > 0.5).all() and (values < 1.3).all())


@given(
    st.sampled_from(["constant", "cosine", "linear", "wsd", "rsqrt"]),
    st.integers(0, 20),
    st.integers(1, 60),
    st.floats(0, 1),
    st.floats(0.05, 1),
)
def test_schedules_stay_within_bounds(kind, warmup, steps, final, decay):
    schedule = Schedule(kind, warmup, final, decay)
    factors = [schedule.factor(step, steps) for step in range(steps)]
    assert all(0 <= factor <= 1 + 1e-9 for factor in factors)
    after = factors[warmup:]
    assert all(a >= b - 1e-9 for a, b in pairwise(after))
    if kind in ("cosine", "linear") and warmup < steps:
        assert min(after) >= final - 1e-9


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Optimizer(rate=-1.0), "rate is -1.0"),
        (lambda: Optimizer(beta2=1.0), "beta2 is 1.0"),
        (lambda: Optimizer(clip=-1.0), "clip is -1.0"),
        (lambda: Schedule(final=2.0), "final is 2.0"),
        (lambda: Schedule(decay=0.0), "decay is 0.0"),
    ],
)
def test_wrong_settings_are_named(make, named):
    with pytest.raises(DougongError, match=named):
        make()
