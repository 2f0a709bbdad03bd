"""Training a mixture of experts: what balances the load reaches the update."""

from __future__ import annotations

import pytest
import torch

from dougong.data.batch import Batch
from dougong.model import LayerSpec, Model, ModelSpec, initialise
from dougong.parts.attention import Attention
from dougong.parts.experts import MoE
from dougong.parts.norm import Norm
from dougong.parts.rope import Rope
from dougong.parts.router import TopK
from dougong.train.loop import Training, _Step, next_token
from dougong.train.optimizers import Optimizer
from dougong.train.ranks import Ranks


def model_with(router: TopK) -> Model:
    layer = LayerSpec(Attention(2, 2, 8, position=Rope(8)), MoE(4, 2, 12, router=router), Norm())
    model = initialise(Model(ModelSpec(40, 16, 32, (layer,) * 2, norm=Norm())))
    with torch.no_grad():
        for name, weight in model.weights().items():
            if "router" in name and "logits" in name:
                weight[0] += 0.5  # one expert is everybody's favourite
    return model.train()


def batch(rows: int = 4) -> Batch:
    tokens = torch.randint(0, 40, (rows, 17), generator=torch.Generator().manual_seed(3))
    positions = torch.arange(16).expand(rows, -1)
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), positions, None)


def test_the_auxiliary_loss_is_added_as_a_mean_over_tokens():
    plain, balanced = (model_with(TopK(balance=factor)) for factor in (0.0, 0.1))
    a, b = next_token(plain, batch()), next_token(balanced, batch())
    assert "auxiliary" not in a.metrics
    extra = float(b.metrics["auxiliary"] / b.weight)
    assert extra >= 0.1 * 2 * 2  # even loads give k = 2 a layer, two layers
    assert float(b.sum - a.sum) == pytest.approx(float(b.metrics["auxiliary"]), rel=1e-4)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_corrections_follow_the_loads_of_the_whole_step(accumulate):
    model = model_with(TopK("sigmoid", correction=True))
    training = Training(optimizer=Optimizer(rate=1e-9), rebalance=0.01, accumulate=accumulate)
    step = _Step(model, training, next_token, Ranks())
    optimizers = training.optimizer.build(model)
    loads = next_token(model, batch()).loads
    assert len(loads) == 2 and all(int(counts.sum()) == 4 * 16 * 2 for _, counts in loads)
    step(batch(), lambda scale: optimizers.step(1.0, scale))
    for router, counts in loads:
        expected = 0.01 * (counts.float().mean() - counts.float()).sign()
        assert torch.equal(router.correction, expected)
        assert float(router.correction.min()) < 0 < float(router.correction.max())


def test_corrections_are_left_alone_unless_asked_for():
    model = model_with(TopK("sigmoid", correction=True))
    training = Training(optimizer=Optimizer(rate=1e-9))
    optimizers = training.optimizer.build(model)
    _Step(model, training, next_token, Ranks())(batch(), lambda scale: optimizers.step(1.0, scale))
    assert all(not layer.ffn.router.correction.any() for layer in model.layers)
