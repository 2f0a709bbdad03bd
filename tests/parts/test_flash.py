"""FlashAttention tile by tile equals the formula, forward and backward, whatever the lengths and the tiles."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dougong.base import DougongError
from dougong.parts.attend import Scoring, reference
from dougong.parts.context import Context
from dougong.parts.flash import flash


def tensors(batch, heads, shared, tokens, keys, size, out=None, seed=0, kind=torch.float32):
    """Queries, keys and values with larger scores than usual, so that maxima move along the row."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((heads, tokens, size), (shared, keys, size), (shared, keys, out or size))
    made = [2 * torch.randn(batch, *shape, generator=generator) for shape in shapes]
    return [x.to(kind).requires_grad_() for x in made]


def last(tokens, keys, causal=True):
    """The context of queries that are the last of the keys."""
    places = torch.arange(keys)[None]
    return Context(places[:, keys - tokens :], key_positions=places, causal=causal)


def same(mine, truth, inputs, tolerance=1e-5):
    torch.manual_seed(1)
    grad = torch.randn_like(truth)
    pairs = zip(
        ("out", *range(len(inputs))),
        (mine, *torch.autograd.grad(mine, inputs, grad)),
        (truth, *torch.autograd.grad(truth, inputs, grad)),
        strict=True,
    )
    for name, a, b in pairs:
        assert a.dtype == b.dtype
        error = float((a - b).detach().abs().max())
        assert error <= tolerance * max(1.0, float(b.detach().abs().max())), (name, error)


@given(
    keys=st.integers(1, 40),
    before=st.integers(0, 12),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    sizes=st.sampled_from([(4, 4), (5, 3)]),
    causal=st.booleans(),
    window=st.sampled_from([None, 1, 7, 100]),
    softcap=st.sampled_from([None, 3.0]),
    scale=st.sampled_from([None, 0.3]),
    blocks=st.sampled_from([(1, 3), (8, 8), (16, 5), (64, 64)]),
)
@settings(max_examples=60)
def test_flash_equals_the_reference(keys, before, heads, sizes, causal, window, softcap, scale, blocks):
    tokens = max(1, keys - before)
    inputs = tensors(2, *heads, tokens, keys, *sizes, seed=keys)
    truth = reference(*inputs, last(tokens, keys, causal), Scoring(window, scale=scale, softcap=softcap))
    same(flash(*inputs, causal, window, softcap, scale, blocks=blocks), truth, inputs)


@given(st.integers(1, 30), st.integers(1, 30), st.sampled_from([(2, 7), (16, 16)]))
@settings(max_examples=20)
def test_cross_attention_may_have_more_queries_than_keys(tokens, keys, blocks):
    inputs = tensors(1, 2, 2, tokens, keys, 4)
    ctx = Context(torch.arange(tokens)[None], key_positions=torch.arange(keys)[None], causal=False)
    same(flash(*inputs, causal=False, blocks=blocks), reference(*inputs, ctx), inputs)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 4])
def test_packed_documents_and_padding_are_kept_apart(causal, window):
    documents = torch.tensor([[0] * 5 + [1] * 9 + [2] * 3 + [-1] * 4, [7] * 1 + [3] * 20])
    ids = torch.zeros_like(documents)
    inputs = tensors(2, 4, 2, 21, 21, 4)
    truth = reference(*inputs, Context.of(ids, documents=documents, causal=causal), Scoring(window))
    mine = flash(*inputs, causal, window, documents=documents, blocks=(4, 6))
    same(mine, truth, inputs)
    alone = [x[:1, :, 5:14] for x in inputs]
    torch.testing.assert_close(mine[:1, :, 5:14], flash(*alone, causal, window, blocks=(4, 6)))


@pytest.mark.parametrize("shape", [(1, 4, 11, 11), (2, 1, 1, 11), (1, 4, 1, 11)])
def test_a_bias_and_its_gradient(shape):
    inputs = tensors(2, 4, 2, 11, 11, 4)
    inputs.append(torch.randn(shape, requires_grad=True))
    bias = inputs[-1].expand(-1, 4, 11, 11)
    truth = reference(*inputs[:3], last(11, 11), Scoring(softcap=2.0), bias=bias)
    same(flash(*inputs[:3], softcap=2.0, bias=inputs[-1], blocks=(4, 3)), truth, inputs)


def test_sinks_and_their_gradient():
    inputs = tensors(2, 4, 2, 13, 13, 4)
    inputs.append(torch.randn(4, requires_grad=True))
    truth = reference(*inputs[:3], last(13, 13), Scoring(5), sinks=inputs[-1])
    same(flash(*inputs[:3], window=5, sinks=inputs[-1], blocks=(4, 3)), truth, inputs)


def test_a_query_that_sees_no_key_gives_nothing_and_takes_no_gradient():
    inputs = tensors(1, 2, 2, 9, 9, 4)
    bias = torch.zeros(1, 1, 9, 9)
    bias[..., 3, :] = -math.inf
    out = flash(*inputs, bias=bias, blocks=(2, 2))
    assert not out[:, :, 3].any()
    grads = torch.autograd.grad(out.square().sum(), inputs)
    assert not grads[0][:, :, 3].any()
    assert all(grad.isfinite().all() for grad in grads)


def test_large_scores_do_not_overflow():
    inputs = [(30 * x.detach()).requires_grad_() for x in tensors(1, 2, 2, 20, 20, 8)]
    assert float((inputs[0].detach() @ inputs[1].detach().mT).max()) > 1e4  # e to that is beyond any float
    same(flash(*inputs, blocks=(8, 4)), reference(*inputs, last(20, 20)), inputs, 1e-4)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_sums_in_float32(kind):
    low = tensors(1, 4, 2, 33, 33, 8, kind=kind)
    exact = [x.detach().double().requires_grad_() for x in low]
    mine, truth = flash(*low, blocks=(8, 8)), flash(*exact, blocks=(8, 8))
    assert mine.dtype == kind
    one = torch.autograd.grad(mine.sum(), low)
    for a, b in zip((mine, *one), (truth, *torch.autograd.grad(truth.sum(), exact)), strict=True):
        assert a.dtype == kind
        assert float((a.double() - b).detach().norm() / b.detach().norm()) <= torch.finfo(kind).eps


def test_gradients_are_those_of_finite_differences():
    inputs = [x.detach().double().requires_grad_() for x in tensors(1, 2, 1, 5, 7, 3)]
    assert torch.autograd.gradcheck(lambda *x: flash(*x, window=4, softcap=2.0, blocks=(2, 3)), inputs)


@pytest.mark.parametrize(
    ("heads", "shared", "tokens", "keys", "given", "told"),
    [
        (3, 2, 4, 4, {}, "3 query heads over 2 key heads"),
        (2, 2, 4, 4, {"window": 0}, "window is 0"),
        (2, 2, 5, 4, {}, "5 queries over 4 keys"),
        (2, 2, 4, 4, {"documents": torch.zeros(1, 3, dtype=torch.int64)}, "documents are"),
    ],
)
def test_what_does_not_fit_is_told(heads, shared, tokens, keys, given, told, unchecked):
    with pytest.raises(DougongError, match=told):
        flash(*tensors(1, heads, shared, tokens, keys, 4), **given)


@pytest.fixture
def unchecked():
    """No checking of shapes at run time: the message is our own."""
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
