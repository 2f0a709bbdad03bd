"""Our own kernels against PyTorch's: products to the bit, for both add the same integers; the rest to rounding."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dougong.parts import native
from dougong.parts.feedforward import ACTIVATIONS, activated
from dougong.parts.int4 import GROUPS, Int4
from dougong.parts.int8 import Int8
from dougong.parts.matmul import linear
from dougong.parts.norm import Norm
from dougong.parts.rope import turn


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    if native.kernels() is None:
        pytest.skip(native.missing())


def _plain(storage: Int8 | Int4, x: Tensor, bias: Tensor | None) -> Tensor:
    """The product in whole numbers, straight from the definition."""
    largest = x.abs().amax(1, keepdim=True)
    p = (torch.where(largest > 0, 127 * x / largest, 0.0)).round().to(torch.int64)
    q = storage.q if isinstance(storage, Int8) else storage.bytes(0, storage.out_features).t()
    y = (p @ q.t().to(torch.int64)).float() * storage.factor * largest
    return y if bias is None else y + bias


def _case(rows: int, out: int, inner: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = (torch.randn(*shape, generator=generator) for shape in ((out, inner), (rows, inner), (out,)))
    return next(made), next(made), next(made)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 150), st.integers(1, 300), st.booleans(), st.integers(0, 99))
def test_eight_bits_of_any_shape_are_exact(rows: int, out: int, inner: int, biased: bool, seed: int):
    weight, x, bias = _case(rows, out, inner, seed)
    storage = Int8.of(weight)
    given_bias = bias if biased else None
    assert torch.equal(storage.product(x, given_bias), _plain(storage, x, given_bias))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 4),
    st.integers(1, 6),
    st.sampled_from(GROUPS),
    st.booleans(),
    st.integers(0, 99),
)
def test_four_bits_of_any_shape_are_exact(rows: int, out: int, inner: int, group: int, biased: bool, seed: int):
    weight, x, bias = _case(rows, 64 * out, group * inner, seed)
    storage = Int4.of(weight, group)
    given_bias = bias if biased else None
    assert torch.equal(storage.product(x, given_bias), _plain(storage, x, given_bias))


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_eight_bits_are_pytorchs_to_the_bit(rows: int, monkeypatch: pytest.MonkeyPatch):
    weight, x, bias = _case(rows, 96, 200, 0)
    storage = Int8.of(weight)
    ours = storage.product(x, bias)
    monkeypatch.setattr(native, "_found", lambda: (None, ""))
    assert torch.equal(storage.product(x, bias), ours)


def test_four_bits_differ_from_pytorchs_by_its_rounding_alone(monkeypatch: pytest.MonkeyPatch):
    weight, x, _ = _case(5, 128, 256, 0)
    storage = Int4.of(weight)
    ours = storage.product(x, None)
    monkeypatch.setattr(native, "_found", lambda: (None, ""))
    theirs = storage.product(x, None)
    assert not torch.equal(theirs, ours)  # or this compares one with itself
    assert bool(((theirs - ours).abs() <= ours.abs() * 2**-8).all())


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 13),
    st.integers(1, 40),
    st.integers(1, 150),
    st.booleans(),
    st.sampled_from((torch.float32, torch.bfloat16)),
    st.integers(0, 99),
)
def test_floats_of_any_shape(rows: int, out: int, inner: int, biased: bool, kind: torch.dtype, seed: int):
    weight, x, bias = _case(rows, out, inner, seed)
    weight = weight.to(kind)
    kernels = native.kernels()
    assert kernels is not None
    y = kernels.linear(x, weight, bias if biased else None)
    expected = x.double() @ weight.double().t() + (bias if biased else 0)
    assert torch.allclose(y.double(), expected, rtol=1e-5, atol=1e-5)
    alone = torch.cat([kernels.linear(row, weight, bias if biased else None) for row in x.split(1)])
    assert torch.equal(alone, y)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_linear_takes_them_for_few_rows(kind: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    weight, x, bias = (each.to(kind) for each in _case(6, 512, 512, 0))
    called: list[int] = []
    kernels = native.kernels()
    assert kernels is not None
    plain = kernels.linear
    monkeypatch.setattr(kernels, "linear", lambda *given: called.append(1) or plain(*given))
    with torch.no_grad():
        ours = linear(x.view(2, 3, 512), weight, bias)
    assert called and ours.shape == (2, 3, 512) and ours.dtype == kind
    assert torch.allclose(
        ours.view(6, 512).float(), F.linear(x.float(), weight.float(), bias.float()), rtol=1e-2, atol=1e-3
    )
    called.clear()
    linear(x, weight, bias)  # a gradient is asked for
    assert not called


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(1, 200), st.booleans(), st.integers(0, 99))
def test_rms_norm(rows: int, width: int, weighted: bool, seed: int):
    weight, x, _ = _case(rows, 1, width, seed)
    norm = Norm(eps=1e-5, weight=weighted).build(width)
    if norm.weight is not None:
        norm.weight.data.copy_(weight[0])
    expected = (x.double() * (x.double().square().mean(-1, keepdim=True) + 1e-5).rsqrt()).float()
    expected = expected * weight[0] if weighted else expected
    with torch.no_grad():
        assert torch.allclose(norm(x), expected, rtol=1e-6, atol=1e-7)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 24), st.integers(0, 9), st.booleans(), st.integers(0, 99))
def test_a_turn(batch: int, heads: int, half: int, rest: int, alone: bool, seed: int):
    size = 2 * half + rest
    angles, whole, _ = _case(batch, 1 if alone else batch, (heads + 1) * size, seed)
    x = whole.view(batch, 1, heads + 1, size)[:, :, :heads]  # rows that do not touch
    angle = angles[:, None, :half]
    a, b = x[..., :half], x[..., half : 2 * half]
    cos, sin = angle.cos()[:, :, None], angle.sin()[:, :, None]
    expected = torch.cat((a * cos - b * sin, b * cos + a * sin, x[..., 2 * half :]), -1).transpose(1, 2)
    with torch.no_grad():
        assert torch.allclose(turn(x, angle.cos(), angle.sin()), expected, atol=1e-6)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 90),
    st.sampled_from((5, 16, 44, 64)),
    st.sampled_from(("none", "shared", "ragged")),
    st.integers(0, 99),
)
def test_attention_of_one_query(batch: int, heads: int, group: int, count: int, size: int, seen: str, seed: int):
    generator = torch.Generator().manual_seed(seed)
    q = 3 * torch.randn(batch, heads, group, size, generator=generator)
    # Keys as a pool holds them: room for more of them, and values beside them.
    pool = torch.randn(2, batch, heads, count + 5, size, generator=generator)[:, :, :, :count]
    mask = None
    if seen != "none":
        mask = torch.zeros(1 if seen == "shared" else batch, 1, 1, count)
        hidden = torch.rand(mask.shape, generator=generator) < 0.4
        hidden[..., 0] = False
        mask.masked_fill_(hidden, -torch.inf)
    kernels = native.kernels()
    assert kernels is not None
    y = kernels.attend(q, pool[0], pool[1], mask, size**-0.5)
    scores = (q.double() @ pool[0].double().transpose(-1, -2)) * size**-0.5
    expected = (scores if mask is None else scores + mask).softmax(-1) @ pool[1].double()
    assert torch.allclose(y.double(), expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 40),
    st.integers(0, 100),
    st.sampled_from((5, 16, 44, 64, 100)),
    st.sampled_from(("causal", "all", "shared", "ragged")),
    st.integers(0, 99),
)
def test_attention_of_many_queries(
    batch: int, heads: int, group: int, tokens: int, held: int, size: int, seen: str, seed: int
):
    generator = torch.Generator().manual_seed(seed)
    count = tokens + held
    q = 3 * torch.randn(batch, tokens, heads * group + 1, size, generator=generator)[:, :, :-1].transpose(1, 2)
    pool = torch.randn(2, batch, heads, count + 5, size, generator=generator)[:, :, :, :count]
    visible = torch.ones(batch, 1, tokens, count, dtype=torch.bool)
    mask = None
    if seen == "causal":
        visible = visible.tril(held)
    elif seen != "all":
        visible = torch.rand(1 if seen == "shared" else batch, 1, tokens, count, generator=generator) < 0.6
        visible[..., 0] = True
        mask = torch.zeros(visible.shape).masked_fill_(~visible, -torch.inf)
    kernels = native.kernels()
    assert kernels is not None
    y = kernels.attend_rows(q, pool[0], pool[1], mask, seen == "causal", size**-0.5)
    k, v = (each.double().repeat_interleave(group, 1) for each in pool)
    scores = (q.double() @ k.transpose(-1, -2) * size**-0.5).masked_fill(~visible, -torch.inf)
    assert torch.allclose(y.double(), scores.softmax(-1) @ v, rtol=1e-5, atol=2e-6)


def test_a_query_that_sees_nothing_gives_nothing():
    kernels = native.kernels()
    assert kernels is not None
    q, k = torch.randn(1, 2, 3, 16), torch.randn(1, 1, 4, 16)
    mask = torch.zeros(1, 1, 3, 4)
    mask[:, :, 1] = -torch.inf
    y = kernels.attend_rows(q, k, k, mask, False, 1.0)
    assert bool((y[:, :, 1] == 0).all()) and bool((y[:, :, [0, 2]] != 0).all())


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(native.ACTIVATIONS)),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 600),
    st.booleans(),
    st.integers(0, 99),
)
def test_activations(name: str, batch: int, tokens: int, width: int, gated: bool, seed: int):
    whole = 4 * torch.randn(batch, tokens, 2 * width, generator=torch.Generator().manual_seed(seed))
    whole[..., ::7] *= 30  # far out, where exponentials overflow
    gate, up = whole.split(width, -1)
    expected = ACTIVATIONS[name](gate.double()) * (up.double() if gated else 1)
    with torch.no_grad():
        y = activated(name, gate, up if gated else None)
        kernels = native.kernels()
        assert kernels is not None and kernels.can_activate(name, gate, up)
    # The activation is within 1e-6 of its own, whatever it is multiplied by.
    allowed = 2e-6 * expected.abs() + 2e-5 + (1e-6 * up.double().abs() if gated else 0)
    assert bool(((y.double() - expected).abs() <= allowed).all())
    assert not kernels.can_activate(name, gate.transpose(0, 1), up) or batch == 1 or tokens == 1


def test_scores_of_any_size_and_none_at_all():
    kernels = native.kernels()
    assert kernels is not None
    q, k = torch.zeros(1, 1, 1, 16), torch.zeros(1, 1, 4, 16)
    q[..., 0], k[0, 0, :, 0] = 1.0, torch.tensor([1e4, -1e4, 0.0, 1e4])
    values = torch.arange(64.0).view(1, 1, 4, 16)
    assert torch.allclose(kernels.attend(q, k, values, None, 1.0), values[:, :, [0, 3]].mean(2, keepdim=True))
    nothing = torch.full((1, 1, 1, 4), -torch.inf)
    assert bool((kernels.attend(q, k, values, nothing, 1.0) == 0).all())


def test_queries_whose_rows_lie_apart():
    kernels = native.kernels()
    assert kernels is not None
    q = torch.randn(3, 6, 1, 32, generator=torch.Generator().manual_seed(0))[:, :4].reshape(3, 2, 2, 32)
    assert not q.is_contiguous()
    k, v = torch.randn(2, 3, 2, 9, 32, generator=torch.Generator().manual_seed(1))
    expected = (q @ k.transpose(-1, -2) * 0.2).softmax(-1) @ v
    assert torch.allclose(kernels.attend(q, k, v, None, 0.2), expected, atol=1e-5)


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_the_default_type_is_not_theirs(default: torch.dtype):
    weight, x, _ = _case(2, 64, 64, 0)
    expected = Int8.of(weight).product(x, None)
    kernels = native.kernels()
    assert kernels is not None
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        storages = Int8.of(weight), Int4.of(weight)
        results = [each.product(x, None) for each in storages]
        results += [kernels.linear(x, weight, None), kernels.rms_norm(x, None, 1e-6)]
    finally:
        torch.set_default_dtype(before)
    assert all(each.dtype == torch.float32 for each in results) and torch.equal(results[0], expected)


def test_a_traced_tensor_is_left_to_pytorch():
    with FakeTensorMode():
        assert native.serving(torch.zeros(2)) is None
    assert native.serving(torch.zeros(2, device="meta")) is None
    assert native.serving(torch.zeros(2)) is not None


def test_bfloat16_goes_in_and_comes_out():
    weight, x, bias = _case(2, 64, 64, 0)
    for storage in (Int8.of(weight), Int4.of(weight)):
        x16, bias16 = x.bfloat16(), bias.bfloat16()
        assert torch.equal(storage.product(x16, bias16), _plain(storage, x16.float(), bias16.float()).bfloat16())


def test_rows_that_lie_apart():
    weight, x, _ = _case(4, 64, 64, 0)
    for storage in (Int8.of(weight), Int4.of(weight)):
        apart = torch.cat((x, x), 1)[:, :64]
        assert not apart.is_contiguous()
        assert torch.equal(storage.product(apart, None), storage.product(x, None))


def test_threads_do_not_show():
    weight, x, bias = _case(7, 320, 256, 0)
    storages, before = (Int8.of(weight), Int4.of(weight)), torch.get_num_threads()
    several: list[list[Tensor]] = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        several.append([storage.product(x, bias) for storage in storages])
    torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*several, strict=True))


def test_absent_kernels_say_why(tmp_path: Path):
    code = "from dougong.parts import native; print(native.kernels(), native.missing())"
    for environment, reason in (
        ({"DOUGONG_NATIVE": "0"}, "None DOUGONG_NATIVE is 0"),
        ({"PATH": str(tmp_path)}, "None there is no C compiler"),
        ({"XDG_CACHE_HOME": "/dev/null"}, "None building them failed"),
    ):
        home = {"HOME": str(tmp_path), **environment}
        done = subprocess.run([sys.executable, "-c", code], env=home, capture_output=True, text=True)
        assert done.stdout.startswith(reason), done.stdout + done.stderr


def test_a_compiler_that_fails_is_no_error(tmp_path: Path):
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\n[ \"$1\" = --version ] && exit 0\necho 'no such thing' >&2\nexit 1\n")
    broken.chmod(0o755)
    code = "from dougong.parts import native; print(native.kernels(), native.missing())"
    home = {"HOME": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], env=home, capture_output=True, text=True)
    assert "building them failed" in done.stdout and "no such thing" in done.stdout, done.stdout + done.stderr
    assert not list((tmp_path / ".cache" / "dougong").iterdir())


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 99))
def test_the_gate_of_a_swiglu_and_its_gradients_are_the_formula(rows: int, width: int):
    gate, up, grad = (torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 4 for seed in range(3))
    found = []
    for formula in (lambda gate, up: activated("silu", gate, up), lambda gate, up: F.silu(gate) * up):
        inputs = gate.clone().requires_grad_(True), up.clone().requires_grad_(True)
        y = formula(*inputs)
        found.append((y, *torch.autograd.grad(y, inputs, grad)))
    for mine, truth in zip(*found, strict=True):
        assert torch.allclose(mine, truth, rtol=1e-5, atol=1e-6)


def test_the_gate_is_finite_however_far_it_is_driven():
    gate = torch.tensor([-1e30, -200.0, -88.0, -0.0, 0.0, 88.0, 200.0, 1e30], requires_grad=True)
    y = activated("silu", gate, torch.ones(8))
    y.sum().backward()
    assert torch.allclose(y, F.silu(gate)) and gate.grad is not None
    assert torch.allclose(gate.grad, torch.tensor([0, 0, 0, 0.5, 0.5, 1, 1, 1]), atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 99), st.booleans())
def test_the_gradient_of_a_norm_is_the_one_in_float64(rows: int, width: int, frozen: bool):
    generator = torch.Generator().manual_seed(rows * 100 + width)
    x, grad = torch.randn(rows, width, generator=generator), torch.randn(rows, width, generator=generator)
    norm = Norm("rms", 1e-5).build(width)
    torch.nn.init.normal_(norm.weight, 1.0, 0.3, generator=generator)
    norm.weight.requires_grad_(not frozen)
    x.requires_grad_(True)
    y = norm(x)
    mine = torch.autograd.grad(y, x, grad)[0]
    wide = x.detach().double().requires_grad_(True)
    truth = F.rms_norm(wide, (width,), norm.weight.detach().double(), 1e-5)
    assert torch.allclose(y, truth.float(), rtol=1e-5, atol=1e-5)
    expected = torch.autograd.grad(truth, wide, grad.double())[0].float()
    # Along x the two terms cancel, in a single column wholly: what is left is rounding of the larger.
    terms = grad.abs().amax(-1) * (x.detach().square().mean(-1) + 1e-5).rsqrt()
    assert torch.allclose(mine, expected, rtol=1e-4, atol=1e-5 * float(terms.max()))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(2, 9), st.integers(1, 3), st.integers(1, 20), st.integers(0, 5), st.booleans())
def test_whole_texts_are_turned_and_their_gradients_turned_back(batch, tokens, heads, h, rest, rows_differ):
    generator = torch.Generator().manual_seed(batch * 1000 + tokens * 100 + h)
    x = torch.randn(batch, tokens, heads, 2 * h + rest, generator=generator)
    angles = torch.randn(batch if rows_differ else 1, tokens, h, generator=generator)
    grad = torch.randn(batch, heads, tokens, 2 * h + rest, generator=generator)
    found = []
    for kind in (torch.float32, torch.float64):  # the formula in float64
        given_x = x.to(kind).requires_grad_(True)
        y = turn(given_x, angles.to(kind).cos(), angles.to(kind).sin())
        found.append((y.float(), torch.autograd.grad(y, given_x, grad.to(kind))[0].float()))
    for mine, truth in zip(*found, strict=True):
        assert torch.allclose(mine, truth, rtol=1e-5, atol=1e-5)
