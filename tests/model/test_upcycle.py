"""An upcycled model computes what the dense one does, and can then part from it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dougong.base import DougongError
from dougong.model import Model, decoder_spec
from dougong.model.upcycle import upcycle
from dougong.parts.experts import MoE
from dougong.parts.feedforward import MLP
from dougong.parts.router import TopK

ROUTERS = {
    "softmax": TopK(bias=True),
    "sigmoid": TopK("sigmoid", correction=True, groups=2, top_groups=1),
}


def dense(ffn=None) -> Model:
    spec = decoder_spec(vocab=50, width=16, depth=3, heads=2, context=32)
    if ffn is not None:
        spec = replace(spec, layers=tuple(replace(layer, ffn=ffn) for layer in spec.layers))
    torch.manual_seed(0)
    model = Model(spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model


@pytest.mark.parametrize("ffn", [None, MLP(24, "gelu", bias=True)])
@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_the_function_is_preserved(ffn, name):
    model = dense(ffn)
    tokens = torch.randint(0, 50, (2, 9))
    sparse = upcycle(model, experts=4, top_k=2, router=ROUTERS[name])
    torch.testing.assert_close(sparse(tokens).logits, model(tokens).logits, rtol=1e-4, atol=1e-5)
    assert all(isinstance(layer.ffn, MoE) for layer in sparse.spec.layers)
    grown = 3 * 3 * sum(p.numel() for p in model.layers[0].ffn.parameters())
    routers = 3 * ROUTERS[name].parameters(16, 4)
    assert sparse.spec.parameters() == model.spec.parameters() + grown + routers


def test_only_the_named_layers_change_and_nothing_is_shared():
    model = dense()
    tokens = torch.randint(0, 50, (2, 9))
    before = model(tokens).logits
    sparse = upcycle(model, 4, 1, layers=[1])
    assert [isinstance(layer.ffn, MoE) for layer in sparse.spec.layers] == [False, True, False]
    with torch.no_grad():
        for parameter in sparse.parameters():
            parameter.add_(1)
    torch.testing.assert_close(model(tokens).logits, before)


def test_routers_differ_by_seed_and_keep_the_type():
    model = dense().bfloat16()
    one, two = (upcycle(model, 4, 2, seed=seed).weights() for seed in (0, 1))
    name = "layers.0.ffn.router.logits.weight"
    assert one[name].dtype == torch.bfloat16 and (one[name] != two[name]).any()


def test_what_would_change_the_function_is_refused():
    model = dense()
    for router in (TopK(normalise=False), TopK(scale=2.0), TopK(capacity=4)):
        with pytest.raises(DougongError, match="sum to 1"):
            upcycle(model, 4, 2, router)
    with pytest.raises(DougongError, match="layers"):
        upcycle(model, 4, 2, layers=[7])
    with pytest.raises(DougongError, match="only MLP"):
        upcycle(upcycle(model, 4, 2), 4, 2)
