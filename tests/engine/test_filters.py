"""The filters equal their slow definitions, and what is drawn follows the distribution they leave."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dougong.engine import Sampling
from dougong.engine.filters import distribution, draw, min_p, top_k, top_p

rows = st.lists(st.integers(-40, 40).map(lambda n: n / 8), min_size=1, max_size=12)


def kept(filtered: torch.Tensor) -> set[int]:
    return {index for index, value in enumerate(filtered[0].tolist()) if value > -math.inf}


@settings(deadline=None)
@given(rows, st.integers(1, 14))
def test_top_k_keeps_what_fewer_than_k_tokens_exceed(row: list[float], k: int) -> None:
    expected = {i for i, x in enumerate(row) if sum(other > x for other in row) < k}
    assert kept(top_k(torch.tensor([row]), k)) == expected


@settings(deadline=None)
@given(rows, st.floats(0.01, 1.0))
def test_top_p_keeps_the_smallest_set_that_reaches_p(row: list[float], p: float) -> None:
    weights = torch.tensor([row]).softmax(-1)[0].double().tolist()
    expected, total = set(), 0.0
    for index in sorted(range(len(row)), key=lambda i: (-row[i], i)):
        if total >= p:
            break
        expected.add(index)
        total += weights[index]
    found = kept(top_p(torch.tensor([row]), p))
    # Sums that meet p up to rounding may fall on either side, by one token.
    assert found == expected or (len(found ^ expected) == 1 and abs(total - p) < weights[min(expected)] + 1e-6)
    if p >= 1:
        assert found == set(range(len(row)))


@settings(deadline=None)
@given(rows, st.floats(0.0, 1.0))
def test_min_p_keeps_what_is_at_least_p_times_the_best(row: list[float], p: float) -> None:
    weights = [math.exp(x - max(row)) for x in row]
    found = kept(min_p(torch.tensor([row]), p))
    assert (
        {i for i, w in enumerate(weights) if w > p + 1e-5}
        <= found
        <= {i for i, w in enumerate(weights) if w > p - 1e-5}
    )
    assert row.index(max(row)) in found


@settings(deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=9).filter(lambda w: sum(w) > 0.1), st.floats(0, 1, exclude_max=True)
)
def test_draw_inverts_the_cumulative_distribution(weights: list[float], u: float) -> None:
    probabilities = torch.tensor([weights], dtype=torch.float64)
    probabilities /= probabilities.sum()
    chosen = int(draw(probabilities, torch.tensor([u], dtype=torch.float64)))
    below = probabilities[0, :chosen].sum().item()
    assert probabilities[0, chosen] > 0
    assert below - 1e-9 <= u <= below + probabilities[0, chosen].item() + 1e-9


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from(
        [
            Sampling(),
            Sampling(temperature=0.6),
            Sampling(top_k=3),
            Sampling(top_p=0.7),
            Sampling(min_p=0.2),
            Sampling(temperature=1.7, top_k=6, top_p=0.9, min_p=0.05),
        ]
    ),
)
def test_frequencies_follow_the_distribution(seed: int, sampling: Sampling) -> None:
    """Chi-squared over 4,000 draws: mean k - 1 and variance 2 (k - 1), so 8 deviations are never met by chance."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, 10, generator=generator)
    expected = distribution(logits, sampling)[0].double()
    n = 4000
    uniform = torch.rand(n, generator=generator, dtype=torch.float64)
    counts = torch.bincount(draw(expected.expand(n, -1), uniform), minlength=10).double()
    inside = expected > 0
    assert counts[~inside].sum() == 0
    chi = ((counts - n * expected)[inside].square() / (n * expected)[inside]).sum().item()
    free = int(inside.sum()) - 1
    assert chi <= free + 8 * math.sqrt(2 * free + 1) + 8


def test_filters_act_in_the_documented_order() -> None:
    """Temperature first: it flattens the distribution before the nucleus is cut."""
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    assert int((distribution(logits, Sampling(temperature=1.0, top_p=0.6)) > 0).sum()) == 1
    assert int((distribution(logits, Sampling(temperature=9.0, top_p=0.6)) > 0).sum()) == 2


def test_a_tiny_temperature_is_greedy_and_finite() -> None:
    probabilities = distribution(torch.tensor([[1.0, 3.0, 2.9]]), Sampling(temperature=1e-30))
    assert probabilities.tolist() == [[0.0, 1.0, 0.0]]
