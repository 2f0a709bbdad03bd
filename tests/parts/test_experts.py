"""A mixture of experts equals the formula, token by token, in outputs and in gradients."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dougong.base import DougongError
from dougong.base.record import record_from, record_to
from dougong.parts import experts, native
from dougong.parts.context import Context
from dougong.parts.experts import ClampedSwiGLU, MoE, MoELayer
from dougong.parts.feedforward import ACTIVATIONS, GatedMLP
from dougong.parts.grouped import Groups, _by_kernel, grouped
from dougong.parts.router import Base, ExpertChoice, Hash, TopK
from dougong.parts.routing import Routing

WIDTH = 12


def layer(spec: MoE, seed: int = 0) -> MoELayer:
    torch.manual_seed(seed)
    built = spec.build(WIDTH)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(0, 0.5)
    return built


def context(x: Tensor, **given) -> Context:
    ctx = Context.of(torch.zeros(x.shape[:2], dtype=torch.int64), **given)
    ctx.memo["tokens"] = torch.arange(x.shape[0] * x.shape[1]).view(x.shape[:2])
    return ctx


def naive(built: MoELayer, x: Tensor, ctx: Context) -> Tensor:
    """The sum over pairs, one after the other."""
    routing, experts, spec = built.router(x, ctx), built.experts, built.spec
    flat = x.flatten(0, 1)
    out = [torch.zeros(WIDTH) for _ in flat]
    for token, expert, weight in zip(routing.tokens, routing.experts, routing.weights, strict=True):
        if expert == spec.experts:
            continue

        def times(linear, v: Tensor, e=int(expert)) -> Tensor:
            y = linear.weight[e] @ v
            return y if linear.bias is None else y + linear.bias[e]

        up = times(experts.up, flat[token])
        if isinstance(spec.activation, ClampedSwiGLU):
            inner = spec.activation(times(experts.gate, flat[token]), up)
        elif spec.gated:
            inner = ACTIVATIONS[spec.activation](times(experts.gate, flat[token])) * up
        else:
            inner = ACTIVATIONS[spec.activation](up)
        out[token] = out[token] + weight * times(experts.down, inner)
    y = torch.stack(out).view(x.shape)
    if built.shared is not None:
        shared = built.shared(x, ctx)
        y = y + (shared if built.shared_gate is None else built.shared_gate(x).sigmoid() * shared)
    return y


SPECS = {
    "mixtral": MoE(4, 2, 10),
    "one": MoE(1, 1, 6),
    "many": MoE(16, 3, 5, TopK(normalise=False, scale=2.5)),
    "shared": MoE(5, 2, 7, shared=GatedMLP(9), shared_gate=True),
    "gpt-oss": MoE(4, 2, 8, TopK(bias=True), ClampedSwiGLU(limit=0.5), bias=True),
    "deepseek": MoE(8, 3, 6, TopK("sigmoid", scale=1.5, correction=True, groups=4, top_groups=2, group_best=2)),
    "switch": MoE(3, 1, 6, TopK(normalise=False, capacity=2), "relu", gated=False, bias=True),
    "expert choice": MoE(4, 2, 6, ExpertChoice()),
    "hash": MoE(4, 2, 6, Hash(3)),
    "base": MoE(3, 1, 6, Base()),
}


@pytest.mark.parametrize("name", SPECS)
def test_a_layer_is_the_weighted_sum_of_its_experts(name):
    built = layer(SPECS[name])
    x = torch.randn(2, 7, WIDTH, requires_grad=True)
    grad = torch.randn(x.shape)
    found, wanted = built(x, context(x)), naive(built, x, context(x))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    trained = [x, *(parameter for parameter in built.parameters() if parameter.requires_grad)]
    for mine, formula in zip(
        torch.autograd.grad(found, trained, grad, materialize_grads=True),
        torch.autograd.grad(wanted, trained, grad, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(mine, formula, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SPECS)
def test_costs_are_those_of_the_module(name):
    spec = SPECS[name]
    built = layer(spec)
    assert spec.parameters(WIDTH) == sum(parameter.numel() for parameter in built.parameters())
    idle = (spec.experts - spec.top_k) * sum(parameter[0].numel() for parameter in built.experts.parameters())
    assert spec.active_parameters(WIDTH) == spec.parameters(WIDTH) - idle
    assert record_from(MoE, record_to(spec)) == spec


def test_mixtral_8x7b_layer_by_the_published_numbers():
    spec = MoE(8, 2, 14336)
    attention = 4096 * (2 * 4096 + 2 * 1024)
    rest = 32 * (attention + 2 * 4096) + 2 * 32000 * 4096 + 4096
    assert round((rest + 32 * spec.parameters(4096)) / 1e9, 1) == 46.7
    assert round((rest + 32 * spec.active_parameters(4096)) / 1e9, 1) == 12.9


@settings(max_examples=30)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(0, 3), st.booleans(), st.integers(0, 9))
def test_grouped_products_are_one_product_a_group(sizes, outside, biased, seed):
    torch.manual_seed(seed)
    x = torch.randn(sum(sizes) + outside, 8, requires_grad=True)
    weight, bias = torch.randn(len(sizes), 16, 8, requires_grad=True), torch.randn(len(sizes), 16, requires_grad=True)
    leaves = [x, weight, bias] if biased else [x, weight]
    pieces = x.split([*sizes, outside])
    rows = [piece @ weight[e].T + (bias[e] if biased else 0) for e, piece in enumerate(pieces[:-1])]
    wanted = torch.cat([*rows, torch.zeros(outside, 16)])
    grad = torch.randn(wanted.shape)
    expected = torch.autograd.grad(wanted, leaves, grad, materialize_grads=True, allow_unused=True)
    for run in (grouped, _by_kernel) if sum(sizes) else (grouped,):
        found = run(x, weight, groups=Groups(torch.tensor(sizes)), bias=bias if biased else None)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        for mine, formula in zip(torch.autograd.grad(found, leaves, grad), expected, strict=True):
            torch.testing.assert_close(mine, formula, rtol=1e-4, atol=1e-4)


def test_large_products_take_the_fast_path_and_agree():
    torch.manual_seed(0)
    x, weight = torch.randn(700, 96), torch.randn(3, 160, 96)
    sizes = [300, 0, 400]
    found = grouped(x, weight, Groups(torch.tensor(sizes)))
    wanted = torch.cat([x[:300] @ weight[0].T, x[300:] @ weight[2].T])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_an_expert_without_tokens_gets_a_zero_gradient():
    weight = torch.randn(3, 4, 5, requires_grad=True)
    grouped(torch.randn(2, 5), weight, Groups(torch.tensor([1, 0, 1]))).sum().backward()
    assert weight.grad is not None and not weight.grad[1].any() and weight.grad[0].any()


@pytest.mark.parametrize("name", ["mixtral", "gpt-oss", "shared"])
def test_bfloat16_and_autocast_stay_near_float32(name):
    built = layer(SPECS[name])
    x = torch.randn(1, 9, WIDTH)
    wanted = built(x, context(x))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = built(x, context(x))
    mixed.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in built.parameters())
    low = built.bfloat16()(x.bfloat16(), context(x))
    for found in (mixed, low):
        error = (found.float() - wanted).norm() / wanted.norm()
        assert found.dtype == torch.bfloat16 and error < 0.05


def test_settings_that_contradict_each_other_are_refused():
    for wrong in (
        lambda: MoE(4, 5, 8),
        lambda: MoE(4, 1, 8, activation=ClampedSwiGLU(), gated=False),
        lambda: MoE(4, 1, 8, shared_gate=True),
        lambda: MoE(6, 1, 8, TopK(groups=4)).build(WIDTH),
        lambda: MoE(8, 3, 8, TopK(groups=4, top_groups=1)).build(WIDTH),
        lambda: MoE(4, 2, 8, Base()).build(WIDTH),
    ):
        with pytest.raises(DougongError):
            wrong()


COMPILED = """
import torch
from dougong.parts.context import Context
from dougong.parts.experts import ClampedSwiGLU, MoE
from dougong.parts.router import TopK

torch.manual_seed(0)
built = MoE(4, 2, 10, TopK(bias=True, balance=0.1), ClampedSwiGLU(), bias=True).build(12)
for parameter in built.parameters():
    torch.nn.init.normal_(parameter, 0, 0.5)
x = torch.randn(2, 6, 12, requires_grad=True)


def run(x):
    ctx = Context.of(torch.zeros(2, 6, dtype=torch.int64))
    return built(x, ctx).square().sum() + sum(total / weight for total, weight in ctx.memo["auxiliary"])


leaves = [x, *built.parameters()]
eager = torch.autograd.grad(run(x), leaves)
compiled = torch.autograd.grad(torch.compile(run, backend="aot_eager", fullgraph=True)(x), leaves)
for one, other in zip(eager, compiled, strict=True):
    torch.testing.assert_close(one, other)
"""


def test_one_compiled_graph_is_eager():
    """In a process of its own: a compiler cannot look through the checks of shapes that stand around all functions."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "spec",
    [
        MoE(5, 2, 7),
        MoE(5, 2, 7, gated=False, bias=True, activation="relu2"),
        MoE(4, 2, 7, bias=True, activation=ClampedSwiGLU()),
        MoE(3, 1, 7, TopK(capacity=2), activation="gelu", shared=GatedMLP(5)),
    ],
)
def test_without_a_gradient_expert_by_expert_gives_the_same(spec: MoE) -> None:
    built, x = layer(spec), torch.randn(2, 9, WIDTH)
    want = built(x, context(x)).detach()
    with torch.no_grad():
        torch.testing.assert_close(built(x, context(x)), want)
        one = x[:1, :1]  # most experts have no row
        torch.testing.assert_close(built(one, context(one)), naive(built, one, context(one)))


@pytest.mark.parametrize("rows", [(1, 1), (3, 1), (2, 7)])
@pytest.mark.parametrize("name", SPECS)
@torch.no_grad()
def test_a_few_tokens_without_sorting_give_the_same(name: str, rows: tuple[int, int], monkeypatch: pytest.MonkeyPatch):
    if native.kernels() is None:
        pytest.skip(native.missing())
    built, x = layer(SPECS[name]), torch.randn(*rows, WIDTH, generator=torch.Generator().manual_seed(1))
    assert built.experts.few(x.flatten(0, 1), built.router(x, context(x))) is None  # too few weights to gain
    monkeypatch.setattr(experts.ExpertsLayer, "directly", lambda *_: None)
    sorted_way = built(x, context(x))
    monkeypatch.setattr(experts, "MANY", 1)
    assert built.experts.few(x.flatten(0, 1), built.router(x, context(x))) is not None
    torch.testing.assert_close(built(x, context(x)), naive(built, x, context(x)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(built(x, context(x)), sorted_way, rtol=1e-4, atol=1e-5)
    low = built.to(torch.bfloat16)
    exact, found = naive(built.float(), x, context(x)), low.to(torch.bfloat16)(x.bfloat16(), context(x))
    assert found.dtype == torch.bfloat16
    assert float((found.float() - exact).norm()) <= 0.1 * float(exact.norm()) + 1e-6
    with monkeypatch.context() as off:
        off.setattr(native, "_found", lambda: (None, "switched off"))
        assert built.experts.few(x.bfloat16().flatten(0, 1), built.router(x.bfloat16(), context(x))) is None


def drawn_routing(experts: int, tokens: int, dtype: torch.dtype) -> Routing:
    """Any number of pairs a token, none too, some of them dropped, most of them with one expert."""
    per_token = torch.randint(0, experts + 1, (tokens,))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), per_token.cumsum(0)])
    pairs = int(offsets[-1])
    chosen = torch.where(torch.rand(pairs) < 0.5, 0, torch.randint(0, experts + 1, (pairs,)))
    return Routing(torch.arange(tokens).repeat_interleave(per_token), chosen, torch.rand(pairs).to(dtype), offsets)


def pair_by_pair(built: MoELayer, x: Tensor, routing: Routing) -> Tensor:
    """What the experts give in float64."""
    own, out = copy.deepcopy(built.experts).double(), torch.zeros(x.shape, dtype=torch.float64)
    for token, expert, weight in zip(routing.tokens, routing.experts, routing.weights.double(), strict=True):
        if expert < built.spec.experts:
            row = x[token].double()[None]
            out[token] += weight * own._one(row, int(expert), lambda part, v, e: part.one(v, e))[0]
    return out


@settings(max_examples=60)
@given(
    experts=st.integers(1, 6),
    tokens=st.integers(1, 130),
    width=st.integers(1, 70),
    hidden=st.integers(1, 70),
    activation=st.sampled_from([*sorted(native.ACTIVATIONS), ClampedSwiGLU(1.3, 0.7)]),
    gated=st.booleans(),
    bias=st.booleans(),
    half=st.booleans(),
)
@example(experts=5, tokens=70, width=37, hidden=3205, activation="silu", gated=True, bias=True, half=False)
@example(experts=5, tokens=70, width=38, hidden=3206, activation="silu", gated=True, bias=True, half=True)
@example(experts=5, tokens=49, width=5, hidden=1537, activation="relu", gated=False, bias=True, half=False)
@torch.no_grad()
def test_the_kernel_gives_what_the_experts_give_pair_by_pair(
    experts: int, tokens: int, width: int, hidden: int, activation, gated: bool, bias: bool, half: bool
) -> None:
    kernels = native.kernels()
    if kernels is None:
        pytest.skip(native.missing())
    dtype = torch.bfloat16 if half else torch.float32
    gated = gated or isinstance(activation, ClampedSwiGLU)
    torch.manual_seed(tokens)
    built = MoE(experts, 1, hidden, activation=activation, gated=gated, bias=bias).build(width)
    for parameter in built.parameters():
        parameter.normal_(0, 0.5)
    built, x = built.to(dtype), torch.randn(tokens, width).to(dtype)
    routing = drawn_routing(experts, tokens, dtype)
    found = built.experts.directly(x, routing)
    if found is None:  # too few panels for the threads, or what a CPU cannot multiply in pairs
        odd = half and (width % 2 or hidden % 2 or not kernels.can_mix(x[:, :0], ()))
        assert odd or min(len(routing.experts), experts) < 2 * torch.get_num_threads()
        return
    exact = pair_by_pair(built, x, routing)
    assert found.dtype == dtype
    assert float((found.double() - exact).norm()) <= (1e-2 if half else 3e-6) * float(exact.norm()) + 1e-6


@torch.no_grad()
def test_a_tokens_sum_does_not_depend_on_who_else_is_there() -> None:
    if native.kernels() is None:
        pytest.skip(native.missing())
    built, x = layer(MoE(6, 2, 30)), torch.randn(1, 90, WIDTH)
    routing = built.router(x, context(x))
    whole = built.experts.directly(x[0], routing)
    assert whole is not None
    for count in (8, 23, 60):
        part = Routing.of(routing.experts.view(90, 2)[:count], routing.weights.view(90, 2)[:count])
        found = built.experts.directly(x[0, :count], part)
        assert found is not None and torch.equal(found, whole[:count])


@torch.no_grad()
def test_a_layer_asks_the_kernel_first_and_does_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    if native.kernels() is None:
        pytest.skip(native.missing())
    built, x = layer(MoE(6, 2, 30, TopK(capacity=9))), torch.randn(2, 40, WIDTH)
    asked, real = [], native.Kernels.experts

    def asking(self, *given):
        asked.append(1)
        return real(self, *given)

    monkeypatch.setattr(native.Kernels, "experts", asking)
    found = built(x, context(x))
    assert asked
    monkeypatch.setattr(native, "_found", lambda: (None, "switched off"))
    torch.testing.assert_close(found, built(x, context(x)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.view(-1, WIDTH), naive(built, x, context(x)).view(-1, WIDTH), rtol=1e-4, atol=1e-5)
    assert len(asked) == 1
