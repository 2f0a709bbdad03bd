"""y + s B A x by hand is what autograd makes of the formula, whatever is frozen; what nothing asks for is not kept."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dougong.tune import LoRA, LoRAFA, attach, attached
from dougong.tune.thin import add_thin, thin_linear

from .models import build, run, text

SIZES = st.integers(1, 7)


def operands(rows: int, inputs: int, outputs: int, rank: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows * 1000 + inputs * 100 + outputs * 10 + rank)
    shapes = {"a": (rank, inputs), "b": (outputs, rank), "x": (2, rows, inputs), "y": (2, rows, outputs)}
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


@settings(max_examples=40)
@given(SIZES, SIZES, SIZES, st.integers(1, 3), st.sets(st.sampled_from("abxy"), min_size=1))
def test_it_is_the_formula_with_its_gradients(rows, inputs, outputs, rank, trained):
    found = []
    for formula in (add_thin, lambda s, a, b, x, y: y + s * (x @ a.t() @ b.t())):
        given = operands(rows, inputs, outputs, rank)
        for name in trained:
            given[name].requires_grad_(True)
        value = formula(1.7, **given)
        (value * torch.arange(value.numel(), dtype=value.dtype).view(value.shape)).sum().backward()
        found.append([value.detach(), *(given[name].grad for name in sorted(trained))])
        assert all(given[name].grad is None for name in "abxy" if name not in trained)
    for mine, expected in zip(*found, strict=True):
        assert torch.allclose(mine, expected, rtol=1e-10, atol=1e-10)


@settings(max_examples=40)
@given(SIZES, SIZES, SIZES, st.integers(1, 3), st.sets(st.sampled_from(["a", "b", "x", "bias"]), min_size=1))
def test_the_whole_product_is_the_formula_with_its_gradients(rows, inputs, outputs, rank, trained):
    weight = torch.randn(outputs, inputs, dtype=torch.float64, generator=torch.Generator().manual_seed(inputs))
    found = []
    for formula in (thin_linear, lambda s, a, b, x, weight, bias: F.linear(x, weight + s * b @ a, bias)):
        given = operands(rows, inputs, outputs, rank)
        given = {"bias": given.pop("y")[0, 0], **given}
        for name in trained:
            given[name].requires_grad_(True)
        value = formula(1.7, weight=weight, **given)
        (value * torch.arange(value.numel(), dtype=value.dtype).view(value.shape)).sum().backward()
        found.append([value.detach(), *(given[name].grad for name in sorted(trained))])
        assert all(each.grad is None for name, each in given.items() if name not in trained)
    for mine, expected in zip(*found, strict=True):
        assert torch.allclose(mine, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", [LoRA(rank=2), LoRAFA(rank=2), LoRA(rank=2, dropout=0.5)])
def test_many_rows_and_few_learn_the_same(method, monkeypatch):
    """Whichever way the product is made; with dropout there is one way alone."""
    found = []
    for pays in (lambda *sizes: True, lambda *sizes: False):
        monkeypatch.setattr("dougong.tune.lora.pays", pays)
        lm = build("llama")
        attach(lm, method)
        for plug in attached(lm)["default"].plugs.values():
            torch.nn.init.normal_(plug.b, std=0.1, generator=torch.Generator().manual_seed(1))
        lm.model.train()
        torch.manual_seed(0)
        run(lm, text(3, 9)).square().sum().backward()
        found.append([each.grad for each in attached(lm)["default"].parameters().values()])
    for mine, expected in zip(*found, strict=True):
        assert (mine is None) == (expected is None)
        assert mine is None or torch.allclose(mine, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(("trained", "kept"), [("b", {"low"}), ("ab", {"x", "low", "b"}), ("y", set())])
def test_only_what_a_gradient_needs_is_kept(trained, kept):
    """LoRA-FA keeps r numbers a token where LoRA keeps the input."""
    given = operands(5, 4, 3, 2)
    for name in trained:
        given[name].requires_grad_(True)
    sizes = {"x": 40, "low": 20, "a": 8, "b": 6}
    seen: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: seen.append(each.numel()) or each, lambda each: each):
        add_thin(1.0, **given)
    assert sorted(seen) == sorted(sizes[name] for name in kept)


def test_lora_fa_keeps_less_than_lora():
    seen = {}
    for method in (LoRA(rank=2), LoRAFA(rank=2)):
        lm = build("llama", hidden_size=64, intermediate_size=256)
        lm.model.train()
        attach(lm, method)
        kept: dict[int, int] = {}

        def keep(each: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            kept[each.untyped_storage().data_ptr()] = each.untyped_storage().nbytes()
            return each

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda each: each):
            run(lm, text(4, 32)).sum()
        seen[type(method).__name__] = sum(kept.values())
    assert seen["LoRAFA"] < seen["LoRA"]
