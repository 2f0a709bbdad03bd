"""Mamba and Mamba-2: chunks against the recurrence, transformers' mixers, and the contract of a mixer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dougong.base import DougongError
from dougong.parts.norm import Norm
from dougong.parts.ssd import Mamba2, dual_steps, state_space_dual
from dougong.parts.ssm import Mamba, selective_scan, selective_steps
from tests.parts.sublayers import built, check_contract, whole

SPECS = [
    Mamba(24, 4, 3),
    Mamba(20, 5, 2, kernel=2, bias=True, conv_bias=False, activation="gelu", inner_norm=Norm("rms")),
    Mamba2(4, 6, 5, groups=2, norm_groups=2),
    Mamba2(3, 8, 4, kernel=2, bias=True, conv_bias=False, activation="gelu", steps=(0.05, 0.9), norm_first=True),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_contract(spec):
    check_contract(spec, 16)


def test_uneven_groups_are_refused():
    with pytest.raises(DougongError, match="3 heads in 2 groups"):
        Mamba2(3, 8, 4, groups=2)


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check_agreement(chunked: Callable, steps: Callable, inputs: list[Tensor]) -> None:
    """Outputs, last state and gradients."""
    inputs = [each.requires_grad_() for each in inputs]
    results = [f(*inputs) for f in (chunked, steps)]
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)
    gradients = [torch.autograd.grad(y.square().sum() + s.square().sum(), inputs) for y, s in results]
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-7)


@given(st.integers(1, 40), st.sampled_from([0.01, 1.0, 100.0]))
def test_the_scan_is_the_recurrence(tokens, speed):
    u, dt = noise(2, tokens, 3, seed=0), noise(2, tokens, 3, seed=1).exp()
    b, c = noise(2, tokens, 4, seed=2), noise(2, tokens, 4, seed=3)
    a, state = -speed * noise(3, 4, seed=4).exp(), noise(2, 3, 4, seed=5)
    check_agreement(selective_scan, selective_steps, [u, dt, a, b, c, state])


@given(st.sampled_from([1, 2, 40, 64, 65, 150]), st.sampled_from([0.01, 1.0, 100.0]), st.sampled_from([1, 2, 4]))
def test_the_dual_is_the_recurrence(tokens, speed, groups):
    u, dt = noise(2, tokens, 4, 3, seed=0), noise(2, tokens, 4, seed=1).exp()
    b, c = noise(2, tokens, groups, 5, seed=2), noise(2, tokens, groups, 5, seed=3)
    a, state = -speed * noise(4, seed=4).exp(), noise(2, 4, 3, 5, seed=5)
    check_agreement(state_space_dual, dual_steps, [u, dt, a, b, c, state])


@torch.no_grad()
def copy(pairs: dict[str, list[str]], theirs: torch.nn.Module, layer: torch.nn.Module) -> None:
    """Fill their parameters with ours: each name of theirs with the concatenation of ours."""
    own = {name.replace(".storage.", "."): parameter for name, parameter in layer.named_parameters()}
    for name, parameter in theirs.named_parameters():
        parameter.copy_(torch.cat([own.pop(each) for each in pairs.get(name, [name])]).view_as(parameter))
    assert not own


@pytest.mark.parametrize("bias, conv_bias", [(False, True), (True, False)])
def test_mamba_is_transformers_own(bias, conv_bias):
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    spec = Mamba(32, 5, 3, kernel=3, bias=bias, conv_bias=conv_bias)
    config = MambaConfig(
        hidden_size=16, state_size=5, time_step_rank=3, conv_kernel=3, use_bias=bias, use_conv_bias=conv_bias
    )
    layer, theirs = built(spec, 16), MambaMixer(config, 0)
    pairs = {
        "A_log": ["a_log"],
        "D": ["skip"],
        "conv1d.weight": ["conv.weight"],
        "conv1d.bias": ["conv.bias"],
        "in_proj.weight": ["up.weight", "gate.weight"],
        "in_proj.bias": ["up.bias", "gate.bias"],
        "x_proj.weight": ["dt_down.weight", "b.weight", "c.weight"],
        "dt_proj.weight": ["dt_up.weight"],
        "dt_proj.bias": ["dt_bias"],
        "out_proj.weight": ["o.weight"],
        "out_proj.bias": ["o.bias"],
    }
    copy(pairs, theirs, layer)
    x = torch.randn(2, 21, 16)
    torch.testing.assert_close(whole(layer, x), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias, conv_bias, groups", [(False, True, 1), (True, False, 2), (False, True, 4)])
def test_mamba2_is_transformers_own(bias, conv_bias, groups):
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    limits = (0.0, float("inf")) if groups == 1 else (0.4, 0.9)
    spec = Mamba2(4, 8, 5, groups, 3, bias, conv_bias, steps=(limits[0], limits[1] if groups > 1 else None))
    spec = Mamba2(**{**vars(spec), "norm_groups": groups})
    config = Mamba2Config(
        hidden_size=16, num_heads=4, head_dim=8, state_size=5, n_groups=groups, conv_kernel=3, use_bias=bias,
        use_conv_bias=conv_bias, time_step_limit=limits, chunk_size=8,
    )  # fmt: skip
    layer, theirs = built(spec, 16), Mamba2Mixer(config, 0)
    inputs = ("gate", "up", "b", "c", "dt")
    pairs = {
        "A_log": ["a_log"],
        "D": ["skip"],
        "norm.weight": ["norm"],
        "conv1d.weight": ["conv.weight"],
        "conv1d.bias": ["conv.bias"],
        "in_proj.weight": [f"{name}.weight" for name in inputs],
        "in_proj.bias": [f"{name}.bias" for name in inputs],
        "out_proj.weight": ["o.weight"],
        "out_proj.bias": ["o.bias"],
    }
    copy(pairs, theirs, layer)
    x = torch.randn(2, 21, 16)
    torch.testing.assert_close(whole(layer, x), theirs(x), rtol=1e-4, atol=1e-5)
