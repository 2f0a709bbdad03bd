"""Heads for tasks: what they give, with padding on either side, and what they cost."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dougong
from dougong.base import DougongError
from dougong.hub import LanguageModel
from dougong.model import Model, ModelSpec, initialise
from dougong.parts.embedding import Transform
from dougong.parts.heads import Classifier, Pooled, Span, TokenClassifier, pool, reward, value
from dougong.parts.norm import Norm
from tests.contract.models import SPECS, text

LABELS = ("no", "yes", "perhaps")
TANH, NORMED = Transform("tanh", None), Transform("gelu", Norm("layer", 1e-5, bias=True))
TASKS = {
    "first": Classifier(LABELS),
    "pooler": Classifier(LABELS, transform=TANH, dropout=0.1),
    "last": Classifier(LABELS, at="last", bias=False),
    "mean": Classifier(LABELS, at="mean", transform=NORMED),
    "tokens": TokenClassifier(LABELS, transform=NORMED),
    "span": Span(),
    "embedding": Pooled("mean", normalise=True),
    "dense": Pooled("first", TANH),
    "reward": reward(),
    "value": value(),
}
SHAPES = {"tokens": (2, 9, 3), "span": (2, 9, 2), "value": (2, 9, 1), "reward": (2, 1)}
SHAPES |= {"embedding": (2, 24), "dense": (2, 24)}


def build(task, keep_head: bool = False) -> Model:
    spec = SPECS["llama"]
    model = initialise(Model(replace(spec, head=spec.head if keep_head else None, task=task)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


@given(st.integers(1, 5), st.integers(0, 4), st.integers(0, 4), st.sampled_from(["first", "last", "mean"]))
@settings(max_examples=40, deadline=None)
def test_pooling_sees_real_tokens_alone(tokens, left, right, at):
    real = torch.tensor([[False] * left + [True] * tokens + [False] * right])
    hidden = torch.randn(1, left + tokens + right, 3)
    inner = hidden[:, left : left + tokens]
    expected = {"first": inner[:, 0], "last": inner[:, -1], "mean": inner.mean(1)}[at]
    assert torch.allclose(pool(hidden, real, at), expected, atol=1e-6)
    assert torch.allclose(pool(inner, None, at), expected, atol=1e-6)


@pytest.mark.parametrize("name", TASKS)
@torch.no_grad()
def test_shapes_padding_and_costs(name):
    task = TASKS[name]
    model = build(task)
    tokens = text(2, 9)
    out = model(tokens).task
    assert out.shape == SHAPES.get(name, (2, 3))
    assert model.spec.parameters() == sum(weight.numel() for weight in model.parameters())
    assert ModelSpec.from_json(json.loads(json.dumps(model.spec.to_json()))) == model.spec
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[0, :4] = padding[1, 6:] = True
    padded = model(tokens, padding=padding).task
    for row in range(2):
        here = ~padding[row]
        alone = model(tokens[row][here][None]).task[0]
        assert torch.allclose(padded[row][here] if out.ndim == 3 else padded[row], alone, atol=1e-5)


@torch.no_grad()
def test_what_an_output_calls_it():
    tokens = text(2, 9)
    classes = build(TASKS["last"])(tokens)
    assert classes.logits is classes.task
    with pytest.raises(DougongError, match="several numbers"):
        _ = classes.value
    assert build(reward())(tokens).value.shape == (2,)
    assert build(value())(tokens).value.shape == (2, 9)
    embedding = build(TASKS["embedding"])(tokens)
    assert torch.allclose(embedding.embedding.norm(dim=-1), torch.ones(2), atol=1e-5)
    with pytest.raises(DougongError, match="no head over the vocabulary"):
        _ = embedding.logits
    with pytest.raises(DougongError, match="embedding"):
        _ = classes.embedding
    with pytest.raises(DougongError, match="no head for a task"):
        _ = build(None)(tokens).task


@torch.no_grad()
def test_a_policy_with_a_value_head_has_both():
    tokens = text(2, 9)
    out = build(value(), keep_head=True)(tokens)
    assert out.logits.shape == (2, 9, 50)
    assert out.value.shape == (2, 9)


def test_packed_documents_have_no_score_of_their_own():
    documents = torch.tensor([[0] * 4 + [1] * 5] * 2)
    with pytest.raises(DougongError, match="row of its own"):
        build(TASKS["last"])(text(2, 9), documents=documents)
    build(TASKS["tokens"])(text(2, 9), documents=documents)


def test_labels_are_needed():
    with pytest.raises(DougongError, match="no labels"):
        Classifier(())


@pytest.mark.parametrize("task", [TASKS["last"], reward(), value(), Span(), None])
@torch.no_grad()
def test_a_decoder_with_a_head_for_a_task_is_saved_and_loaded(task, tmp_path):
    model, tokens = build(task), text(2, 9)
    dougong.save(LanguageModel(model, family="llama"), tmp_path)
    again = dougong.load(tmp_path)
    assert again.spec == model.spec
    assert torch.equal(again.model(tokens).hidden, model(tokens).hidden)
    assert task is None or torch.equal(again.model(tokens).task, model(tokens).task)


def test_gradients_reach_the_body_and_the_head():
    for task in TASKS.values():
        model = build(task)
        model(text(2, 9)).task.square().sum().backward()
        assert all(torch.isfinite(weight.grad).all() for weight in model.weights().values())
