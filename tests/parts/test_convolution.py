"""The causal convolution equals its formula, whole or in steps."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from dougong.parts.convolution import CausalConv
from tests.parts.fixed_state import close, filled


@given(size=st.integers(1, 5), bias=st.booleans(), activation=st.sampled_from([None, "silu"]), tokens=st.integers(1, 9))
def test_equals_the_formula(size, bias, activation, tokens):
    layer = filled(CausalConv(3, size, bias, activation))
    x = torch.randn(2, tokens, 3)
    expected = torch.zeros_like(x)
    for t in range(tokens):
        for i in range(size):
            if t - size + 1 + i >= 0:
                expected[:, t] += layer.weight[:, 0, i] * x[:, t - size + 1 + i]
    expected = expected + (layer.bias if bias else 0)
    y, past = layer(x)
    close(y, torch.nn.functional.silu(expected) if activation else expected)
    assert past.shape == (2, *layer.slot().shape)


@given(size=st.integers(1, 5), counts=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=5))
def test_steps_of_any_length_continue_the_row(size, counts):
    layer = filled(CausalConv(3, size, activation="silu"))
    x = torch.randn(2, 32, 3)
    whole, _ = layer(x)
    past, place = torch.zeros(2, *layer.slot().shape), [0, 0]
    for step in counts:
        part = torch.randn(2, max(*step, 1), 3)
        for row, count in enumerate(step):
            part[row, :count] = x[row, place[row] : place[row] + count]
        y, past = layer(part, past, torch.tensor(step))
        for row, count in enumerate(step):
            if count:
                close(y[row, :count], whole[row, place[row] : place[row] + count])
            place[row] += count


def test_starts_with_filled_weights():
    layer = CausalConv(8, 4, bias=True)
    layer.initial(torch.Generator().manual_seed(0))
    assert 0 < layer.weight.abs().max() <= 0.5
    assert layer.bias.abs().sum() == 0
