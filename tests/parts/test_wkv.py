"""RWKV 4 to 7: the papers' recurrences token by token, the contract of a sublayer, and the published tiny models."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dougong.base import DougongError
from dougong.parts.context import Context
from dougong.parts.wkv import WKV4, ChannelMix, wkv4
from dougong.parts.wkv6 import WKV5, WKV6, decaying, decaying_steps
from dougong.parts.wkv7 import FIRST_VALUES, WKV7, delta, delta_steps
from tests.parts.sublayers import built, check_contract, whole

FIRST = WKV7(16, 2, 8, True, decay_rank=4, rate_rank=3, value_rank=2, gate_rank=5)
SPECS = [
    ChannelMix(16, 40),
    ChannelMix(16, 40, gated=False),
    WKV4(16, 24),
    WKV5(16, 3, 8),
    WKV5(16, 2, 4, gate=False),
    WKV6(16, 3, 8, 4, 5),
    FIRST,
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_contract(spec):
    check_contract(spec, 16)


def test_a_spec_knows_its_width():
    with pytest.raises(DougongError, match=r"WKV4.width is 16; it stands in a model of width 20"):
        WKV4(16, 24).build(20)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def naive_wkv4(k: Tensor, v: Tensor, decay: Tensor, first: Tensor) -> Tensor:
    """The sums as the paper writes them (equation 14), in float64."""
    k, v, w, u = k.double(), v.double(), decay.double().exp(), first.double()
    out = []
    for t in range(k.shape[1]):
        age = t - 1 - torch.arange(t)
        exponents = torch.cat((k[:, :t] - age[:, None] * w, k[:, t : t + 1] + u), 1)  # (B, t + 1, C)
        out.append((exponents.softmax(1) * v[:, : t + 1]).sum(1))
    return torch.stack(out, 1)


@given(st.integers(1, 50), st.sampled_from([1.0, 30.0]), st.integers(0, 1000))
def test_wkv4_is_the_papers_sum(tokens, spread, seed):
    """However large or small the keys are."""
    k, v = noise(2, tokens, 3, seed=seed) * spread, noise(2, tokens, 3, seed=seed + 1)
    decay, first = noise(3, seed=seed + 2) * 2, noise(3, seed=seed + 3) * spread
    y, state = wkv4(k, v, decay, first, torch.zeros(2, 3, 3))
    torch.testing.assert_close(y, naive_wkv4(k, v, decay, first).float(), rtol=1e-4, atol=1e-5)
    # From a state in hand the sums go on as if the row had never been cut.
    more_k, more_v = noise(2, 5, 3, seed=seed + 4) * spread, noise(2, 5, 3, seed=seed + 5)
    y, _ = wkv4(more_k, more_v, decay, first, state)
    both = naive_wkv4(torch.cat((k, more_k), 1), torch.cat((v, more_v), 1), decay, first)
    torch.testing.assert_close(y, both[:, tokens:].float(), rtol=1e-4, atol=1e-5)


def test_wkv4_gradients_are_those_of_the_sum():
    inputs = [noise(2, 21, 3), noise(2, 21, 3, seed=1), noise(3, seed=2), noise(3, seed=3)]
    inputs = [each.double().requires_grad_() for each in inputs]
    upstream = noise(2, 21, 3, seed=4).double()
    y, _ = wkv4(*inputs, torch.zeros(2, 3, 3, dtype=torch.float64))
    ours = torch.autograd.grad((y * upstream).sum(), inputs)
    theirs = torch.autograd.grad((naive_wkv4(*inputs) * upstream).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@given(st.integers(1, 50), st.sampled_from([0.01, 1.0, 40.0]))
def test_decaying_chunks_are_the_recurrence(tokens, speed):
    """Decays so strong that their inverse would overflow included; gradients too."""
    r, k, v = (noise(2, tokens, 3, 4, seed=i).double().requires_grad_() for i in range(3))
    log_w = (-speed * noise(2, tokens, 3, 4, seed=3).double().exp()).requires_grad_()
    first, state = noise(3, 4, seed=4).double(), noise(2, 3, 4, 4, seed=5).double()
    ours, theirs = (f(r, k, v, log_w, first, state) for f in (decaying, decaying_steps))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    gradients = [torch.autograd.grad(y.square().sum() + s.square().sum(), (r, k, v, log_w)) for y, s in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-7)


@given(st.integers(1, 50))
def test_delta_chunks_are_the_recurrence(tokens):
    r, k, v = (noise(2, tokens, 3, 4, seed=i).double().requires_grad_() for i in range(3))
    key, rate = F.normalize(noise(2, tokens, 3, 4, seed=6).double(), dim=-1), noise(2, tokens, 3, 4, seed=7).double()
    a, b = (-key).requires_grad_(), (key * rate.sigmoid()).requires_grad_()
    log_w = (-0.606 * noise(2, tokens, 3, 4, seed=3).double().sigmoid()).requires_grad_()
    state = noise(2, 3, 4, 4, seed=5).double()
    ours, theirs = (f(r, k, v, log_w, a, b, state) for f in (delta, delta_steps))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    leaves = (r, k, v, log_w, a, b)
    gradients = [torch.autograd.grad(y.square().sum() + s.square().sum(), leaves) for y, s in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-7)


def test_delta_keeps_float32_precision_at_the_strongest_decay():
    r, k, v = (noise(2, 64, 3, 8, seed=i) for i in range(3))
    key = F.normalize(noise(2, 64, 3, 8, seed=6), dim=-1)
    inputs = (r, k, v, torch.full_like(r, -0.6065), -key, key, torch.zeros(2, 3, 8, 8))
    exact, _ = delta_steps(*(each.double() for each in inputs))
    torch.testing.assert_close(delta(*inputs)[0].double(), exact, rtol=1e-4, atol=1e-5)


def naive_wkv6(layer, x: Tensor) -> Tensor:
    """RWKV-6 as its paper writes it (section 4), one token after another."""
    spec, out = layer.spec, []
    state = torch.zeros(len(x), spec.heads, spec.head_size, spec.head_size)
    before = torch.zeros_like(x[:, 0])
    for token in x.unbind(1):
        back = before - token
        low = torch.tanh(layer.mix_down(token + back * layer.mix_x)).view(len(x), 5, spec.mix_rank)
        mixed = [token + back * (layer.mix[i] + low[:, i] @ layer.mix_up[i].weight.t()) for i in range(5)]
        raised = layer.decay_up(torch.tanh(layer.decay_down(mixed[0]))).view_as(state[..., 0])
        w = torch.exp(-torch.exp(layer.decay + raised))
        k, v, r = (f(m).view_as(w) for f, m in zip((layer.k, layer.v, layer.r), mixed[1:4], strict=True))
        new = torch.einsum("bhk,bhv->bhkv", k, v)
        y = torch.einsum("bhk,bhkv->bhv", r, state + layer.first[:, :, None] * new)
        state = w[..., None] * state + new
        normal = F.group_norm(y.flatten(1), spec.heads, layer.norm.weight, layer.norm.bias, spec.eps)
        out.append(layer.o(normal * F.silu(layer.gate(mixed[4]))))
        before = token
    return torch.stack(out, 1)


def test_wkv6_is_its_paper():
    layer, x = built(WKV6(16, 3, 8, 4, 5), 16), noise(2, 37, 16)
    with torch.no_grad():
        torch.testing.assert_close(whole(layer, x), naive_wkv6(layer, x), rtol=1e-4, atol=1e-5)


def test_wkv5_is_wkv6_without_what_depends_on_the_token():
    five, six = built(WKV5(16, 3, 8), 16), built(WKV6(16, 3, 8, 4, 5), 16)
    with torch.no_grad():
        own = dict(five.named_parameters())
        for name, parameter in six.named_parameters():
            parameter.copy_(own[name]) if name in own else parameter.zero_()
        shares = (five.mix_k, five.mix_v, five.mix_r, five.mix_gate)  # there they are shares of the token before
        six.mix.copy_(torch.stack((torch.zeros(16), *(1 - share for share in shares))))
        x = noise(2, 37, 16)
        torch.testing.assert_close(whole(five, x), whole(six, x), rtol=1e-4, atol=1e-5)


def test_later_wkv7_layers_take_values_of_the_first():
    first, later = built(FIRST, 16), built(WKV7(16, 2, 8, False, 4, 3, 2, 5), 16, seed=1)
    assert later.spec.parameters(16) == sum(p.numel() for p in later.parameters())
    x = noise(2, 20, 16)
    with pytest.raises(DougongError, match="no layer before it is `first`"):
        whole(later, x)
    documents = torch.tensor([[0] * 8 + [1] * 12, [4] * 20])

    def both(x: Tensor, **context) -> tuple[Tensor, Context]:
        ctx = Context.of(torch.zeros(x.shape[:2], dtype=torch.int64), **context)
        return later(x + first(x, ctx), ctx), ctx

    with torch.no_grad():
        packed, _ = both(x, documents=documents)
        torch.testing.assert_close(packed[0, 8:], both(x[:1, 8:])[0][0], rtol=1e-4, atol=1e-5)
        y, ctx = both(x)
        later.value.fill_(-30)  # a share of nothing: the layer's own values
        assert not torch.allclose(both(x)[0], y, rtol=1e-3)
        later.value.fill_(30)  # nothing but the first layer's
        later.v.weight.zero_()
        replaced = both(x)[0]
        later.v.weight.normal_()
        torch.testing.assert_close(both(x)[0], replaced)
        assert ctx.memo[FIRST_VALUES].shape == (2, 20, 16)
