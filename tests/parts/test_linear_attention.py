"""Linear attention in all its forms, and the recurrence below it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from dougong.base import DougongError
from dougong.parts.context import Context
from dougong.parts.decay import FixedDecay, SigmoidDecay, SoftplusDecay
from dougong.parts.linear_attention import FEATURES, LinearAttention
from dougong.parts.linear_recurrence import chunked, recurrent, scan
from dougong.parts.norm import Norm
from dougong.parts.rope import Rope
from tests.parts.fixed_state import check_contract, check_gradients, close, filled, tokens

KERNEL = LinearAttention(3, 5, 4, "elu", normaliser=True)
LIGHTNING = LinearAttention(
    4, 6, 6, "silu", "silu", decay=FixedDecay.slopes(4, 0.7), norm=Norm(), norm_over="all", gate="sigmoid"
)
RETENTION = LinearAttention(
    2, 8, 12, "identity", decay=FixedDecay.retention(2), position=Rope(8, interleaved=True), scale=8**-0.5,
    norm=Norm(), gate="silu",
)  # fmt: skip
GATED = LinearAttention(2, 8, 6, "identity", decay=SigmoidDecay(3), scale=8**-0.5, norm=Norm(), gate="silu")
FORMS = {
    "kernel": KERNEL,
    "relu": LinearAttention(2, 4, 4, "relu", normaliser=True),
    "efficient": LinearAttention(2, 4, 4, "softmax", normaliser=True),
    "lightning": LIGHTNING,
    "retention": RETENTION,
    "gated": GATED,
    "softplus": LinearAttention(2, 4, 4, "identity", decay=SoftplusDecay(), norm=Norm()),
}


def problem(batch, heads, length, keys, values, channels, strength, delta):
    torch.manual_seed(0)
    q, k = torch.randn(2, batch, heads, length, keys)
    v = torch.randn(batch, heads, length, values)
    decay = -strength * torch.rand(batch, heads, length, channels) ** 8
    beta = torch.rand(batch, heads, length) if delta else None
    k = F.normalize(k, dim=-1) if delta else k
    state = torch.randn(batch, heads, keys, values)
    return [None if x is None else x.requires_grad_() for x in (q, k, v, decay, beta, state)]


@given(
    length=st.integers(1, 50),
    size=st.sampled_from([1, 2, 7, 32]),
    channels=st.booleans(),
    strength=st.sampled_from([0.0, 0.5, 200.0]),
    delta=st.booleans(),
)
def test_chunks_equal_the_recurrence(length, size, channels, strength, delta):
    """Outputs, state and all gradients, with decays from none to ones that leave nothing."""
    parts = problem(1, 2, length, 4, 3, 4 if channels else 1, strength, delta)
    ours, theirs = chunked(*parts, size), recurrent(*parts)
    given_ = [x for x in parts if x is not None]
    torch.manual_seed(1)
    directions = [torch.randn_like(x) for x in theirs]
    for a, b in zip(ours, theirs, strict=True):
        close(a, b)
    mine, true = (torch.autograd.grad(pair, given_, directions) for pair in (ours, theirs))
    for a, b in zip(mine, true, strict=True):
        close(a, b, 1e-4)


@pytest.mark.parametrize("channels", [1, 16])
def test_long_rows_stay_exact(channels):
    """300 tokens in chunks of 64, against the recurrence in float64."""
    parts = [None if x is None else x.detach() for x in problem(2, 2, 300, 16, 16, channels, 30.0, True)]
    y, state = scan(*parts)
    exact, last = recurrent(*(x.double() for x in parts))
    close(y, exact.float())
    close(state, last.float())


def test_low_precision_is_computed_in_float32():
    q, k, v, decay, _, state = (None if x is None else x.detach() for x in problem(1, 2, 40, 8, 8, 8, 1.0, False))
    with torch.autocast("cpu", torch.bfloat16):
        y, last = scan(q, k, v.bfloat16(), decay, state=state)
    assert y.dtype == torch.bfloat16
    assert last.dtype == torch.float32
    close(last, recurrent(q, k, v.bfloat16().float(), decay, None, state)[1])


@pytest.mark.parametrize("name", FORMS)
def test_contract(name):
    check_contract(FORMS[name])


@pytest.mark.parametrize("name", ["kernel", "lightning", "retention", "gated", "softplus"])
def test_gradients(name):
    check_gradients(FORMS[name])


def test_kernel_form_is_attention_with_other_weights():
    """o_i = sum_j f(q_i) f(k_j) v_j / sum_j f(q_i) f(k_j), all pairs written out."""
    layer = filled(KERNEL.build(12))
    x = torch.randn(2, 9, 12)
    q, k, v = (each(x).unflatten(-1, (3, -1)).transpose(1, 2) for each in (layer.q, layer.k, layer.v))
    weights = (FEATURES["elu"](q) @ FEATURES["elu"](k).mT).tril()
    expected = (weights / weights.sum(-1, keepdim=True)) @ v
    close(layer(x, Context.of(tokens(2, 9))), layer.o(expected.transpose(1, 2).flatten(2)))


def test_lightning_equals_transformers():
    from transformers import MiniMaxConfig
    from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention

    config = MiniMaxConfig(hidden_size=24, num_attention_heads=4, head_dim=6, num_hidden_layers=3, block_size=8)
    index = 1
    theirs = filled(MiniMaxLightningAttention(config, index))
    share = 1 - index / (3 - 1 + 1e-5) + 1e-5
    spec = LinearAttention(
        4, 6, 6, "silu", "silu", decay=FixedDecay.slopes(4, share), norm=Norm(), norm_over="all", gate="sigmoid"
    )
    layer = spec.build(24)
    with torch.no_grad():
        q, k, v = theirs.qkv_proj.weight.view(4, 3, 6, 24).unbind(1)
        for mine, weight in ((layer.q, q), (layer.k, k), (layer.v, v)):
            mine.weight.copy_(weight.reshape(24, 24))
        layer.gate.weight.copy_(theirs.output_gate.weight)
        layer.o.weight.copy_(theirs.out_proj.weight)
        layer.norm.weight.copy_(theirs.norm.weight)
    x = torch.randn(2, 21, 24)
    close(layer(x, Context.of(tokens(2, 21))), theirs(x, None, None)[0])


def test_retention_equals_its_parallel_form():
    """(Q K^T * D) V with D_ij = gamma^(i - j) (Sun et al. 2023, equation 5), q and k turned as complex numbers."""
    layer = filled(RETENTION.build(16))
    x = torch.randn(1, 11, 16)
    q, k, v = (each(x).unflatten(-1, (2, -1)).transpose(1, 2) for each in (layer.q, layer.k, layer.v))
    turn = torch.polar(torch.ones(11, 4), torch.arange(11.0)[:, None] * 10000.0 ** -(torch.arange(4) / 4))
    q, k = (torch.view_as_complex(each.reshape(1, 2, 11, 4, 2)) * turn for each in (q, k))
    place = torch.arange(11)
    gamma = 1 - 2.0 ** (-5 - torch.arange(2.0))
    fade = gamma[:, None, None] ** (place[:, None] - place).clamp(min=0)
    y = ((q @ k.mH).real * fade).tril() @ v * 8**-0.5
    y = F.rms_norm(y, (12,), eps=1e-6) * layer.norm.weight
    expected = layer.o(y.transpose(1, 2).flatten(2) * F.silu(layer.gate(x)))
    close(layer(x, Context.of(tokens(1, 11))), expected)


def test_gated_form_fades_each_key_channel():
    """S_t = diag(alpha_t) S_{t-1} + k_t v_t^T with alpha_t = sigmoid(W x_t)^(1/16) (Yang et al. 2023, section 4.4)."""
    layer = filled(GATED.build(16))
    x = torch.randn(1, 10, 16)
    q, k, v = (each(x).unflatten(-1, (2, -1))[0] for each in (layer.q, layer.k, layer.v))
    alpha = layer.decay.step(x)[0].sigmoid().pow(1 / 16).unflatten(-1, (2, -1))
    state, out = torch.zeros(2, 8, 6), []
    for t in range(10):
        state = alpha[t, :, :, None] * state + k[t, :, :, None] * v[t, :, None]
        out.append((q[t, :, None] @ state)[:, 0] * 8**-0.5)
    y = (F.rms_norm(torch.stack(out), (6,), eps=1e-6) * layer.norm.weight).flatten(1)
    close(layer(x, Context.of(tokens(1, 10)))[0], layer.o(y * F.silu(layer.gate(x)[0])))


def test_state_does_not_grow_with_the_text():
    assert {name: slot.elements(10) for name, slot in GATED.slots().items()} == {"memory": 2 * 8 * 6}
    assert GATED.flops(16, 10) == GATED.flops(16, 10000)


def test_refuses_a_normaliser_over_turned_features():
    with pytest.raises(DougongError, match="drop the position"):
        LinearAttention(1, 4, 4, normaliser=True, position=Rope(4))
