"""Weights of a running model, moved: the same numbers, once in memory, seen by everybody who reads them."""

from __future__ import annotations

import copy
import gc
import weakref
from dataclasses import replace

import pytest
import torch

from dougong.compress import fuse, quantize
from dougong.engine import Engine, Sampling, settle
from dougong.hub import LanguageModel
from dougong.model import Model, decoder_spec, initialise
from dougong.parts.frozen import FrozenStorage
from dougong.tune import LoRA, attach

GREEDY = Sampling(max_tokens=12, temperature=0.0)


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(settle, "_LEAST", 1)


def _lm(method: str | None) -> LanguageModel:
    torch.manual_seed(0)
    spec = decoder_spec(256, width=64, depth=2, heads=4, context=64)
    lm = LanguageModel(initialise(Model(spec)).eval())
    if method is not None:
        quantize(lm, method)
        fuse(lm)
    return lm


def _frozen(lm: LanguageModel) -> list[torch.Tensor]:
    return [
        buffer
        for module in lm.model.modules()
        if isinstance(module, FrozenStorage)
        for name, buffer in module.named_buffers()
        if name != "like"
    ]


@pytest.mark.parametrize("method", [None, "int8", "int4", "packed"])
def test_answers_stay(method: str | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dougong.engine.engine.settle", lambda model: None)
    before = Engine(_lm(method), memory="16MiB").generate([[1, 2, 3], [9] * 20], GREEDY)
    monkeypatch.undo()
    monkeypatch.setattr(settle, "_LEAST", 1)
    after = Engine(_lm(method), memory="16MiB").generate([[1, 2, 3], [9] * 20], GREEDY)
    assert [each.tokens for each in before] == [each.tokens for each in after]
    assert [each.logprobs for each in before] == [each.logprobs for each in after]


@pytest.mark.parametrize("method", ["int8", "int4"])
def test_quantised_matrices_come_together_once(method: str):
    lm = _lm(method)
    values = [each.clone() for each in _frozen(lm)]
    refs = [weakref.ref(each) for each in _frozen(lm)]
    settle.settle(lm.model)
    gc.collect()
    assert all(ref() is None for ref in refs)
    assert all(torch.equal(one, other) for one, other in zip(values, _frozen(lm), strict=True))
    assert len({each.untyped_storage().data_ptr() for each in _frozen(lm)}) == 1
    places = [each.data_ptr() for each in _frozen(lm)]
    Engine(lm, memory="16MiB").generate([[1]], GREEDY)  # settled already: nothing moves
    assert [each.data_ptr() for each in _frozen(lm)] == places


def test_moving_does_not_disturb_an_engine_that_runs():
    lm = _lm("int8")
    first = Engine(lm, memory="16MiB")
    answer = first.generate([[1, 2, 3]], GREEDY)[0].tokens
    for module in lm.model.modules():  # as if some matrix had been put in its place since
        if isinstance(module, FrozenStorage):
            module._buffers.update({name: each.clone() for name, each in module._buffers.items() if each is not None})
    second = Engine(lm, memory="16MiB")
    stream = first.stream([[1, 2, 3]], GREEDY)
    told = [next(stream)]
    assert second.generate([[1, 2, 3]], GREEDY)[0].tokens == answer
    told += stream
    assert [event.token for event in told if event.token is not None] == answer


def test_adapters_still_train_and_copies_are_copies():
    lm = _lm("int8")
    with torch.inference_mode():  # whoever calls it so: the weights are no inference tensors after it
        Engine(lm, memory="16MiB").generate([[1, 2, 3]], GREEDY)
    attach(lm, LoRA(rank=2))
    lm.model(torch.tensor([[1, 2, 3]])).logits.float().logsumexp(-1).sum().backward()
    grads = [each.grad for each in lm.model.parameters() if each.requires_grad]
    assert grads and all(grad is not None and bool(grad.isfinite().all()) for grad in grads)
    other = copy.deepcopy(lm.model)
    buffer = next(each for name, each in other.named_buffers() if name.endswith("held"))
    assert buffer.untyped_storage().data_ptr() not in {each.untyped_storage().data_ptr() for each in _frozen(lm)}


def test_a_model_without_a_parameter(monkeypatch: pytest.MonkeyPatch):
    """Norms without weights, no biases, all matrices quantised: what type it computes in is known all the same."""
    spec = decoder_spec(256, width=64, depth=2, heads=4, context=64)
    assert spec.norm is not None
    bare = replace(spec.norm, weight=False)
    layers = tuple(replace(each, norm=bare) for each in spec.layers)
    lm = LanguageModel(initialise(Model(replace(spec, norm=bare, layers=layers))).eval())
    quantize(lm, "int8")
    assert not list(lm.model.parameters())
    assert len(Engine(lm, memory="16MiB").generate([[1, 2, 3]], GREEDY)[0].tokens) == 12
    assert lm.model.cache(1, 4) is not None
