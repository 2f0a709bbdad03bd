"""Fusing and quantising: every family, in any order, with adapters, tied or not."""

from __future__ import annotations

import copy

import pytest
import torch

from dougong.base import DougongError
from dougong.compress import Quantized, fuse, quantize
from dougong.hub import LanguageModel, save
from dougong.model import Model, decoder_spec, initialise
from dougong.parts.fused import Part
from dougong.parts.int4 import Int4
from dougong.parts.int8 import Int8
from dougong.parts.linear import Dense, Linear
from dougong.parts.packed import serves
from dougong.tune import LoRA, attach, merge
from tests.contract.models import SPECS, build, text

families = pytest.mark.parametrize("name", SPECS)


def near(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def wide(tied: bool = True, seed: int = 0) -> LanguageModel:
    """A model whose matrices have the sizes that 4 bits ask for, moved off its initial values."""
    spec = decoder_spec(320, 128, 2, 4, 64, kv_heads=2, ffn=256, tied=tied)
    model = initialise(Model(spec), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return LanguageModel(model, family="llama")


def in_steps(model: Model, tokens: torch.Tensor, cuts: list[int]) -> torch.Tensor:
    cache, out, start = model.cache(len(tokens), tokens.shape[1]), [], 0
    for size in cuts:
        piece = tokens[:, start : start + size]
        out.append(model.run(piece, cache.context(piece), cache).logits)
        cache.advance(size)
        start += size
    return torch.cat(out, 1)


@families
@torch.no_grad()
def test_a_fused_model_is_the_model(name: str):
    lm, tokens = LanguageModel(build(name)), text(2, 15)
    expected, names = lm.model(tokens).logits, [path for path, _ in lm.model.linears()]
    assert fuse(lm) > 0
    assert float((lm.model(tokens).logits - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))
    assert fuse(lm) == 0  # once is enough
    assert [path for path, _ in lm.model.linears()] == names


@families
@torch.no_grad()
def test_eight_bits_stay_near_and_steps_agree(name: str):
    """Whole, token by token and in chunks: quantised activations have a scale a token, so nothing else matters."""
    # Kernels for one and for many queries differ by 1e-7. On some texts that tips an activation to its next level.
    plain, tokens = build(name), text(2, 15, seed=1)
    expected = plain.double()(tokens).logits.float()
    lm = LanguageModel(build(name))
    report = quantize(lm, "int8")
    fuse(lm)
    whole = lm.model(tokens).logits
    assert near(whole, expected) <= 0.15
    assert report.matrices["int8"] >= 5 and report.bytes_after < report.bytes_before / 2
    for cuts in ([1] * 15, [6, 1, 8]):
        assert near(in_steps(lm.model, tokens, cuts), whole) <= 1e-3


@pytest.mark.parametrize("method", ["int8", "int4"])
@torch.no_grad()
def test_fusing_before_and_after_quantising_is_the_same(method: str):
    tokens = text(2, 9)
    first, second, apart = wide(), wide(), wide()
    fuse(first)
    quantize(first, method)
    quantize(second, method)
    fuse(second)
    quantize(apart, method)
    assert torch.equal(first.model(tokens).logits, second.model(tokens).logits)
    assert torch.equal(first.model(tokens).logits, apart.model(tokens).logits)


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_four_bits(tied: bool):
    lm, tokens = wide(tied), text(2, 15)
    expected = lm.model(tokens).logits
    report = quantize(lm, "int4", group=64)
    assert (
        near(lm.model(tokens).logits, expected) <= 0.5
    )  # of random weights, which cancel; test_load.py has trained ones
    assert (lm.model.head.storage is lm.model.embedding.storage) == tied
    assert report == Quantized({"int4": 15}, report.bytes_before, report.bytes_after)
    assert all(isinstance(linear.storage, Int4) and linear.storage.group == 64 for _, linear in lm.model.linears())
    whole = lm.model(tokens).logits
    assert near(in_steps(lm.model, tokens, [1] * 15), whole) <= 1e-2


@torch.no_grad()
def test_matrices_that_four_bits_do_not_fit_take_eight():
    lm = LanguageModel(build("llama"))
    assert quantize(lm, "int4").matrices == {"int8": 15}


@torch.no_grad()
def test_packed_floats_are_the_floats():
    if not serves(torch.float32):
        pytest.skip("oneDNN does not pack float32 on this CPU")
    lm, tokens = wide(), text(2, 15)
    expected = lm.model(tokens).logits
    fuse(lm)
    report = quantize(lm, "packed")
    assert near(lm.model(tokens).logits, expected) <= 1e-5
    assert isinstance(lm.model.head.storage, Dense)  # the table is read by rows
    assert report.bytes_after == report.bytes_before and report.matrices == {"packed": 8}


@pytest.mark.parametrize("method", ["int8", "int4", "packed"])
@torch.no_grad()
def test_a_quantised_model_s_state_comes_back(method: str):
    if method == "packed" and not serves(torch.float32):
        pytest.skip("oneDNN does not pack float32 on this CPU")
    first, second, tokens = wide(), wide(seed=1), text(2, 9)
    for lm in (first, second):
        quantize(lm, method)
        fuse(lm)
    state = {name: tensor.clone() for name, tensor in first.model.state_dict().items()}
    second.model.load_state_dict(state)
    assert torch.equal(second.model(tokens).logits, first.model(tokens).logits)
    copied = copy.deepcopy(first.model) if method != "packed" else first.model
    assert torch.equal(copied(tokens).logits, first.model(tokens).logits)


@torch.no_grad()
def test_the_biases_of_a_fused_model_come_back_too():
    first, second, tokens = LanguageModel(build("qwen2")), LanguageModel(build("qwen2", seed=1)), text(2, 9)
    for lm in (first, second):
        fuse(lm)
    second.model.load_state_dict(first.model.state_dict())
    assert torch.equal(second.model(tokens).logits, first.model(tokens).logits)


@pytest.mark.parametrize("method", ["int8", "int4"])
def test_adapters_work_on_quantised_and_fused_weights(method: str):
    lm, tokens = wide(), text(2, 9)
    fuse(lm)
    quantize(lm, method)
    before = lm.model(tokens).logits.detach()
    tuning = attach(lm, LoRA(rank=4))
    assert torch.equal(lm.model(tokens).logits, before)  # B is zero at the start
    trained = list(tuning.parameters().values())
    rate = torch.optim.SGD(trained, 0.5)
    for _ in range(2):
        rate.zero_grad()
        loss = lm.model(tokens[:, :-1]).logits.flatten(0, 1)
        torch.nn.functional.cross_entropy(loss, tokens[:, 1:].flatten()).backward()
        assert all(each.grad is not None for each in trained)
        rate.step()
    with torch.no_grad():
        after = lm.model(tokens).logits
        assert near(after, before) > 1e-4
        merge(lm)  # the merged matrices leave what was fused
        assert near(lm.model(tokens).logits, after) <= 0.05


def test_an_adapter_put_on_before_stays():
    lm, tokens = wide(), text(2, 9)
    tuning = attach(lm, LoRA(rank=4))
    with torch.no_grad():
        for parameter in tuning.parameters().values():
            parameter.add_(0.1)
        expected = lm.model(tokens).logits
        fuse(lm)
        assert near(lm.model(tokens).logits, expected) <= 1e-5
        quantize(lm, "int8")
        assert near(lm.model(tokens).logits, expected) <= 0.05


@torch.no_grad()
def test_a_replaced_bias_or_weight_is_noticed():
    """Whoever puts another bias or matrix on one of the fused Linears is heard."""
    lm, tokens = LanguageModel(build("qwen2")), text(1, 9)
    fuse(lm)
    mixer = lm.model.layers[0].mixer
    other = LanguageModel(build("qwen2"))
    for each in (mixer, other.model.layers[0].mixer):
        each.k.bias = torch.nn.Parameter(each.k.bias + 1)
        each.q.storage = copy.deepcopy(other.model.layers[1].mixer.q.storage)
    assert near(lm.model(tokens).logits, other.model(tokens).logits) <= 1e-5
    assert isinstance(mixer.v.storage, Part)


@torch.no_grad()
def test_what_is_skipped_stays():
    lm = wide()
    quantize(lm, "int8", skip=("head", "down", "layers.0.*"))
    kinds = {path: type(linear.storage) for path, linear in lm.model.linears()}
    assert kinds["head"] is Dense and kinds["layers.1.ffn.down"] is Dense and kinds["layers.0.mixer.q"] is Dense
    assert kinds["layers.1.mixer.q"] is Int8
    routed = LanguageModel(build("experts"))
    quantize(routed, "int8")
    assert all(isinstance(each.storage, Dense) for path, each in routed.model.linears() if "router" in path)


def test_fused_weights_do_not_learn():
    lm = LanguageModel(build("qwen2"))
    fuse(lm)
    lm.model(text(1, 9)).logits.sum().backward()
    mixer = lm.model.layers[0].mixer
    assert mixer.q.bias.grad is None and mixer.q.storage.whole.storage.weight.grad is None
    assert mixer.o.weight.grad is not None


def test_refusals_are_in_words(tmp_path):
    lm = wide()
    for options, words in (
        ({"method": "int3"}, ["'int3'", "int8, int4, packed"]),
        ({"method": "int4", "group": 16}, ["group is 16", "32, 64, 128"]),
    ):
        with pytest.raises(DougongError) as caught:
            quantize(lm, **options)
        assert all(word in str(caught.value) for word in words)
    quantize(lm, "int8")
    with pytest.raises(DougongError, match="kept as int8 already"):
        quantize(lm, "int4")
    with pytest.raises(DougongError, match="without quantize"):
        save(lm, tmp_path / "model")
    fused = wide()
    fuse(fused)
    with pytest.raises(DougongError, match="fused for running"):
        save(fused, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_sharded_linears_are_left_apart():
    lm = wide()

    class Everywhere:
        def before(self, x):
            return x

        def after(self, y):
            return y

    for _, linear in lm.model.linears():
        linear.placement = Everywhere()
    assert fuse(lm) == 0
    assert all(isinstance(each.storage, Dense) for each in lm.model.modules() if isinstance(each, Linear))
