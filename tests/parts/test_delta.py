"""The delta rule in its three forms, against the formula and transformers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dougong.base import DougongError
from dougong.parts.context import Context
from dougong.parts.decay import SoftplusDecay
from dougong.parts.delta import DeltaNet
from dougong.parts.norm import Norm
from tests.parts.fixed_state import check_contract, check_gradients, close, filled, tokens

PLAIN = DeltaNet(3, 3, 5, 4, beta_max=2.0)
GATED = DeltaNet(2, 4, 6, 5, decay=SoftplusDecay(), gate="silu")
KIMI = DeltaNet(3, 3, 6, 6, decay=SoftplusDecay(4), gate="sigmoid", gate_rank=4)
FORMS = {"plain": PLAIN, "no convolution": DeltaNet(2, 2, 4, 4, convolution=0), "gated": GATED, "kimi": KIMI}


@pytest.mark.parametrize("name", FORMS)
def test_contract(name):
    check_contract(FORMS[name], tolerance=3e-5)


@pytest.mark.parametrize("name", FORMS)
def test_gradients(name):
    check_gradients(FORMS[name])


def test_plain_form_follows_its_formula():
    """S_t = S_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T (Yang et al. 2024, equation 3), S transposed here."""
    spec = DeltaNet(2, 2, 4, 3, convolution=0)
    layer = filled(spec.build(8))
    x = torch.randn(1, 12, 8)
    q, k, v = (F.silu(each(x)).unflatten(-1, (2, -1))[0] for each in (layer.q, layer.k, layer.v))
    q, k = F.normalize(q, dim=-1) / 2, F.normalize(k, dim=-1)
    beta = layer.beta(x)[0].sigmoid()
    for head in range(2):
        state = torch.zeros(3, 4)
        for t in range(12):
            key, rate = k[t, head], beta[t, head]
            state = state @ (torch.eye(4) - rate * torch.outer(key, key)) + rate * torch.outer(v[t, head], key)
            v[t, head] = state @ q[t, head]
    expected = layer.o((F.rms_norm(v, (3,), eps=1e-6) * layer.norm.weight).flatten(1))
    close(layer(x, Context.of(tokens(1, 12)))[0], expected, 1e-4)


def copy(mine, theirs):
    with torch.no_grad():
        for own, weight in zip(mine, theirs, strict=True):
            own.copy_(weight.reshape(own.shape))


def test_gated_form_equals_transformers():
    from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig
    from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet

    config = Qwen3_5TextConfig(
        hidden_size=16, num_hidden_layers=1, linear_conv_kernel_dim=3, linear_key_head_dim=6, linear_value_head_dim=5,
        linear_num_key_heads=2, linear_num_value_heads=4,
    )  # fmt: skip
    theirs = filled(Qwen3_5GatedDeltaNet(config, 0))
    layer = DeltaNet(2, 4, 6, 5, 3, decay=SoftplusDecay(), gate="silu").build(16)
    mixed = theirs.in_proj_qkv.weight.split((12, 12, 20))
    copy((layer.q.weight, layer.k.weight, layer.v.weight), mixed)
    copy([layer.convolutions[name].weight for name in "qkv"], theirs.conv1d.weight.split((12, 12, 20)))
    copy((layer.gate.weight, layer.beta.weight), (theirs.in_proj_z.weight, theirs.in_proj_b.weight))
    copy((layer.decay.step.weight, layer.o.weight), (theirs.in_proj_a.weight, theirs.out_proj.weight))
    copy((layer.decay.bias, layer.decay.log_rate), (theirs.dt_bias, theirs.A_log))
    copy((layer.norm.weight,), (theirs.norm.weight,))
    x = torch.randn(2, 70, 16)
    close(layer(x, Context.of(tokens(2, 70))), theirs(x), 3e-5)


def test_kimi_form_equals_transformers():
    from transformers.models.kimi_linear.configuration_kimi_linear import KimiLinearConfig
    from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearDeltaAttention

    config = KimiLinearConfig(
        hidden_size=16, num_hidden_layers=1, linear_conv_kernel_dim=3, linear_head_dim=6, linear_num_heads=3
    )
    theirs = filled(KimiLinearDeltaAttention(config, 0))
    spec = DeltaNet(3, 3, 6, 6, 3, decay=SoftplusDecay(6), norm=Norm(eps=1e-5), gate="sigmoid", gate_rank=6)
    layer = spec.build(16)
    copy((layer.q.weight, layer.k.weight), (theirs.q_proj.weight, theirs.k_proj.weight))
    copy((layer.v.weight, layer.beta.weight), (theirs.v_proj.weight, theirs.b_proj.weight))
    copy([layer.convolutions[name].weight for name in "qkv"], theirs.conv1d.weight.split(18))
    forget = theirs.forget_gate
    copy((layer.decay.step.a.weight, layer.decay.step.b.weight), (forget.f_a_proj.weight, forget.f_b_proj.weight))
    copy((layer.decay.bias, layer.decay.log_rate), (forget.dt_bias, forget.A_log))
    copy((layer.gate.a.weight, layer.gate.b.weight), (theirs.g_a_proj.weight, theirs.g_b_proj.weight))
    copy((layer.norm.weight, layer.o.weight), (theirs.o_norm.weight, theirs.o_proj.weight))
    x = torch.randn(2, 70, 16)
    close(layer(x, Context.of(tokens(2, 70))), theirs(x), 3e-5)


def test_a_key_written_twice_keeps_its_last_value():
    """What sets the rule apart from linear attention, which would add the two."""
    from dougong.parts.linear_recurrence import scan

    k = F.normalize(torch.randn(1, 1, 1, 4), dim=-1).expand(1, 1, 2, 4)
    v = torch.randn(1, 1, 2, 3)
    y, _ = scan(k, k, v, torch.zeros(1, 1, 2, 1), torch.ones(1, 1, 2))
    close(y, v)


@pytest.mark.parametrize("heads", [(0, 4), (3, 4)])
def test_refuses_value_heads_that_do_not_divide(heads):
    with pytest.raises(DougongError, match="multiple of the key heads"):
        DeltaNet(*heads, 4, 4)


def test_initial_decays_are_those_published():
    layer = SoftplusDecay(3).build(8, 2, 4)
    layer.initial(torch.Generator().manual_seed(0))
    step = F.softplus(layer.bias)
    assert step.min() * 1.01 >= 1e-3
    assert step.max() <= 0.1 * 1.01
    assert 0 <= layer.log_rate.min() <= layer.log_rate.max() <= 2.78
