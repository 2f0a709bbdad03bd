"""LSTM and GRU: torch's own, with the contract of a mixer."""

from __future__ import annotations

import pytest
import torch

from dougong.parts.recurrent import GRU, LSTM
from tests.parts.sublayers import built, check_contract, whole


@pytest.mark.parametrize("spec", [LSTM(24), LSTM(16, bias=False), GRU(24), GRU(16, bias=False)], ids=str)
def test_contract(spec):
    check_contract(spec, 16)


@pytest.mark.parametrize("kind", [LSTM, GRU])
def test_equals_torch(kind):
    spec = kind(24)
    layer = built(spec, 16)
    theirs = {LSTM: torch.nn.LSTM, GRU: torch.nn.GRU}[kind](16, 24, batch_first=True)
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(layer.up.weight)
        theirs.weight_hh_l0.copy_(layer.back.weight)
        theirs.bias_ih_l0.copy_(layer.up.bias)
        theirs.bias_hh_l0.copy_(layer.back.bias)
    x = torch.randn(3, 19, 16, requires_grad=True)
    expected = theirs(x)[0] @ layer.o.weight.t()
    torch.testing.assert_close(whole(layer, x), expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn(expected.shape)
    (ours,) = torch.autograd.grad(whole(layer, x), x, upstream)
    (reference,) = torch.autograd.grad(expected, x, upstream)
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)
