"""Multi-token prediction: its formula, no glimpse of what it predicts, and its loss by hand."""

from __future__ import annotations

import pytest
import torch

from dougong.base import DougongError
from dougong.data.batch import Batch
from dougong.model import Model, ModelSpec, initialise
from dougong.model.mtp import MTPLayers
from dougong.model.spec import MTP, LayerSpec
from dougong.parts.attention import Attention
from dougong.parts.context import Context
from dougong.parts.feedforward import GatedMLP
from dougong.parts.linear import Linear
from dougong.parts.norm import Norm
from dougong.parts.rope import Rope
from dougong.train import next_token
from dougong.train.mtp import later_targets, mtp_loss
from dougong.train.objectives import causal_lm

WIDTH, VOCAB = 8, 11
SPEC = MTP(2, LayerSpec(Attention(2, 1, 4, position=Rope(4)), GatedMLP(12), Norm()), Norm())


def filled(module):
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return module


def inputs(tokens=9):
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(2, tokens, WIDTH, generator=generator) for _ in range(2))


def whole(tokens):
    return Context(torch.arange(tokens)[None])


@torch.no_grad()
def test_each_depth_is_the_layer_over_the_tokens_that_are_there():
    mtp, (hidden, embedded) = filled(MTPLayers(SPEC, WIDTH)), inputs()
    outs = mtp(hidden, embedded, whole(9))
    expected = hidden
    for depth, layer in enumerate(mtp.layers, 1):
        length = 9 - depth
        both = torch.cat((layer.embedding_norm(embedded[:, depth:]), layer.hidden_norm(expected[:, :length])), -1)
        expected = layer.norm(layer.block(layer.join(both), whole(length)))
        torch.testing.assert_close(outs[depth - 1][:, :length], expected)


def test_no_depth_sees_what_it_predicts():
    mtp, (hidden, embedded) = filled(MTPLayers(SPEC, WIDTH)), inputs()
    embedded.requires_grad_()
    for depth, out in enumerate(mtp(hidden, embedded, whole(9)), 1):
        (grad,) = torch.autograd.grad(out[:, 3].sum(), embedded, retain_graph=True)
        assert grad[:, 3 + depth].abs().sum() > 0
        assert grad[:, 4 + depth :].abs().sum() == 0


def test_the_loss_is_that_of_the_shifted_targets():
    mtp, (hidden, embedded) = filled(MTPLayers(SPEC, WIDTH)), inputs()
    head = filled(Linear(WIDTH, VOCAB))
    targets = torch.randint(0, VOCAB, (2, 9), generator=torch.Generator().manual_seed(2))
    targets[0, 4] = -100
    documents = torch.tensor([[0] * 9, [0] * 5 + [1] * 4])
    ctx = Context(torch.arange(9)[None], documents=documents)
    outs = mtp(hidden, embedded, ctx)
    main = causal_lm(hidden, head, targets)
    loss = mtp_loss(main, outs, head, targets, documents, share=0.5)
    extra = torch.zeros(())
    for depth, out in enumerate(outs, 1):
        logprobs = head(out).log_softmax(-1)
        for row in range(2):
            for place in range(9 - depth):
                later = place + depth
                if documents[row, place] == documents[row, later] and targets[row, later] >= 0:
                    extra = extra - logprobs[row, place, targets[row, later]]
    torch.testing.assert_close(loss.sum, main.sum + 0.25 * extra)
    torch.testing.assert_close(loss.metrics["mtp"], extra.detach() / 2)
    assert loss.weight == main.weight
    loss.sum.backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in mtp.parameters())


def test_rows_shorter_than_the_depth():
    mtp, (hidden, embedded) = filled(MTPLayers(SPEC, WIDTH)), inputs(1)
    assert [out.shape for out in mtp(hidden, embedded, whole(1))] == [(2, 1, WIDTH)] * 2
    assert (later_targets(torch.ones(2, 1, dtype=torch.int64), 2) == -100).all()


def test_the_spec_knows_its_parameters():
    spec = ModelSpec(VOCAB, WIDTH, 16, (SPEC.layer,), mtp=SPEC)
    assert spec.parameters() == sum(parameter.numel() for parameter in Model(spec).parameters())
    assert spec.active_parameters() == spec.parameters() - SPEC.parameters(WIDTH)
    assert ModelSpec.from_json(spec.to_json()) == spec
    with pytest.raises(DougongError, match="depth is 0"):
        MTP(0, SPEC.layer, Norm())


def test_training_a_model_with_it_adds_its_loss():
    spec = ModelSpec(VOCAB, WIDTH, 16, (SPEC.layer,), mtp=SPEC)
    model = initialise(Model(spec))
    tokens = torch.randint(0, VOCAB, (2, 7), generator=torch.Generator().manual_seed(3))
    batch = Batch(tokens[:, :-1], tokens[:, 1:], torch.arange(6).expand(2, -1), None)
    plain = causal_lm(model(batch.tokens).hidden, model.head, batch.targets)
    loss = next_token(model, batch)
    assert loss.weight == plain.weight == 12
    torch.testing.assert_close(loss.sum, plain.sum + 0.3 * loss.metrics["mtp"])
    loss.sum.backward()
    assert model.mtp is not None and model.mtp.layers[1].join.weight.grad.abs().sum() > 0
