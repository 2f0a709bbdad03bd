"""FlexAttention, asked for our masks and scores, equals the formula."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import flex_attention as torchs

from dougong.parts.attend import Scoring, reference
from dougong.parts.context import Context
from dougong.parts.flex import block_mask, flex
from dougong.parts.position import Alibi

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"))


@pytest.fixture(params=["cpu", CUDA])
def device(request, monkeypatch):
    # On a CPU FlexAttention refuses inputs that need gradients, though the operator beneath has them.
    monkeypatch.setattr(torchs, "_validate_device", lambda *inputs: None)
    return request.param


def tensors(batch, heads, shared, tokens, keys, size, device):
    generator = torch.Generator().manual_seed(0)
    shapes = ((heads, tokens, size), (shared, keys, size), (shared, keys, size))
    made = [torch.randn(batch, *shape, generator=generator) for shape in shapes]
    return [x.to(device).requires_grad_() for x in made]


def same(mine, truth, inputs):
    tolerance = 1e-5 if truth.device.type == "cpu" else 5e-3  # there products may be rounded to TensorFloat-32
    grad = torch.randn_like(truth)
    pairs = zip(
        (mine, *torch.autograd.grad(mine, inputs, grad)),
        (truth, *torch.autograd.grad(truth, inputs, grad)),
        strict=True,
    )
    for a, b in pairs:
        assert float((a - b).detach().abs().max()) <= tolerance * max(1.0, float(b.detach().abs().max()))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("tokens", "keys"), [(20, 20), (150, 150), (7, 40), (1, 9)])
@pytest.mark.parametrize(("window", "softcap", "scale"), [(None, None, None), (5, None, 0.3), (None, 2.0, None)])
def test_flex_equals_the_reference(causal, tokens, keys, window, softcap, scale, device):
    inputs = tensors(2, 4, 2, tokens, keys, 16, device)
    places = torch.arange(keys, device=device)[None]
    ctx = Context(places[:, keys - tokens :], key_positions=places, causal=causal)
    truth = reference(*inputs, ctx, Scoring(window, scale=scale, softcap=softcap))
    same(flex(*inputs, causal, window, softcap, scale), truth, inputs)


@pytest.mark.parametrize("causal", [True, False])
def test_packed_documents_share_one_mask_between_layers(causal, device):
    row = [0] * 90 + [1] * 60 + [2] * 7 + [-1] * 13
    documents = torch.tensor([row, [0] * len(row)], device=device)
    inputs = tensors(2, 2, 1, len(row), len(row), 16, device)
    mask = block_mask(len(row), len(row), causal, 30, documents, device)
    for given in (mask, None):
        truth = reference(*inputs, Context.of(documents, documents=documents, causal=causal), Scoring(30))
        same(flex(*inputs, causal, 30, documents=documents, mask=given), truth, inputs)


def test_what_nobody_sees_is_skipped():
    documents = torch.arange(1024)[None] // 256  # each its own two blocks of 128
    mask = block_mask(1024, 1024, documents=documents)
    assert mask.sparsity() == pytest.approx(100 * (1 - 4 * 3 / 64))  # of each document's four blocks, three


def test_alibi(device):
    inputs = tensors(2, 4, 2, 5, 33, 16, device)
    places = torch.arange(33, device=device)[None]
    ctx, alibi = Context(places[:, 28:], key_positions=places), Alibi()
    truth = reference(*inputs, ctx, bias=alibi.bias(ctx, 4))
    same(flex(*inputs, slopes=torch.tensor(alibi.slopes(4), device=device)), truth, inputs)


def test_sinks_and_their_gradient(device):
    inputs = tensors(2, 4, 2, 33, 33, 16, device)
    inputs.append(torch.randn(4, device=device, requires_grad=True))
    ctx = Context.of(torch.zeros(2, 33, dtype=torch.int64, device=device))
    truth = reference(*inputs[:3], ctx, Scoring(9), sinks=inputs[3])
    same(flex(*inputs[:3], window=9, sinks=inputs[3]), truth, inputs)
