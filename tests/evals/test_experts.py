"""The load report counts what the routers choose."""

from __future__ import annotations

import pytest
import torch

from dougong.base import DougongError
from dougong.evals.experts import Load, expert_loads, load_table
from dougong.model import Model, decoder_spec, initialise
from dougong.model.upcycle import upcycle
from dougong.parts.router import TopK


def test_loads_count_every_pair_of_every_layer_with_experts():
    dense = initialise(Model(decoder_spec(vocab=50, width=16, depth=3, heads=2, context=32)))
    model = upcycle(dense, 4, 2, TopK(bias=True), layers=[0, 2])
    with torch.no_grad():
        model.layers[2].ffn.router.logits.bias[1:3] = 1000
    batches = [torch.randint(0, 50, (2, 9)), torch.randint(0, 50, (1, 4))]
    first, last = expert_loads(model, batches)
    assert (first.layer, last.layer) == (0, 2) and sum(first.counts) == 2 * 22
    assert last.counts == (0, 22, 22, 0) and last.idle == 2
    assert last.entropy == pytest.approx(0.5) and last.peak == pytest.approx(2)
    table = load_table([first, last])
    assert table.splitlines()[-1].split()[:4] == ["2", "0.500", "2.00x", "2"]


def test_even_loads_have_entropy_one():
    assert Load(0, (5, 5, 5)).entropy == pytest.approx(1) and Load(0, (9, 0, 0)).entropy == 0


def test_a_dense_model_is_refused():
    with pytest.raises(DougongError, match="no layer with experts"):
        expert_loads(Model(decoder_spec(vocab=50, width=16, depth=1, heads=2, context=32)), [])
