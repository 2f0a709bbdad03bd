"""Shares by skill with intervals that cover."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dougong.base import DougongError
from dougong.data import generate
from dougong.evals import accuracy, bits_per_byte, wilson


@given(st.integers(1, 500), st.data())
def test_the_interval_holds_the_share_and_lies_within_0_and_1(total, data):
    correct = data.draw(st.integers(0, total))
    low, high = wilson(correct, total)
    assert 0 <= low <= correct / total <= high <= 1 and low < high
    mirrored = wilson(total - correct, total)
    assert mirrored == pytest.approx((1 - high, 1 - low))


def test_the_interval_is_that_of_the_textbook():
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


@pytest.mark.parametrize("p", [0.03, 0.5, 0.9])
def test_the_interval_covers_the_true_share(p):
    n = 50
    weight = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    covered = sum(w for k, w in enumerate(weight) if wilson(k, n)[0] <= p <= wilson(k, n)[1])
    assert 0.92 < covered < 0.99


def test_accuracy_counts_by_skill():
    problems = generate("lists", 0, 10) + generate("arithmetic", 0, 5)
    answers = [problem.answer for problem in problems[:8]] + ["wrong"] * 7
    rows = {row.skill: (row.correct, row.total) for row in accuracy(answers, problems)}
    assert rows == {"lists": (8, 10), "arithmetic": (0, 5), "all": (8, 15)}
    assert accuracy(answers, problems)[-1].share == 8 / 15


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(DougongError, match="1 answers to 0 problems"):
        accuracy(["a"], [])
    with pytest.raises(DougongError, match="is no share"):
        wilson(3, 2)


def test_bits_per_byte_of_uniform_bytes_is_eight():
    assert bits_per_byte(100 * math.log(256), 100) == pytest.approx(8)
    with pytest.raises(DougongError, match="of 0 bytes"):
        bits_per_byte(1.0, 0)
