"""By blocks or at once, the largest numbers are the same."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dougong.engine.largest import argmax, topk

pytestmark = pytest.mark.usefixtures("unchecked")
SIZES = [5, 16383, 16384, 16385, 20000, 30011]


def numbers(size: int, seed: int, levels: int) -> torch.Tensor:
    """Rows with few different values (many ties) or many; some impossible."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(3, size, generator=generator)
    values = (values * levels).round() / levels if levels else values
    return values.masked_fill(torch.rand(3, size, generator=generator) < 0.2, -math.inf)


@settings(max_examples=40)
@given(st.sampled_from(SIZES), st.integers(0, 2**32), st.sampled_from([0, 2, 100]))
def test_argmax(size: int, seed: int, levels: int) -> None:
    values = numbers(size, seed, levels)
    assert torch.equal(argmax(values), values.argmax(-1))


@settings(max_examples=40)
@given(st.sampled_from(SIZES), st.integers(0, 2**32), st.sampled_from([0, 2, 100]), st.sampled_from([1, 2, 50, 300]))
def test_topk(size: int, seed: int, levels: int, k: int) -> None:
    values, k = numbers(size, seed, levels), min(k, size)
    found, places = topk(values, k)
    assert torch.equal(found, values.topk(k).values)
    assert torch.equal(values.gather(-1, places), found)
    assert all(len(set(row)) == k for row in places.tolist())


def test_odd_values() -> None:
    for size in (10, 20000, 16385):
        values = torch.zeros(2, size)
        values[0, 7] = math.nan
        values[1, size - 1] = math.inf
        assert argmax(values).tolist() == [7, size - 1]
        assert argmax(torch.full((1, size), -math.inf)).item() < size
        assert argmax(-torch.ones(1, size)).item() == 0
