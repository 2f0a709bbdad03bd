"""What holds for every decoder, whatever it is made of."""

from __future__ import annotations

import json

import pytest
import torch

from dougong.base import DougongError
from dougong.data.batch import Batch
from dougong.model import Model, ModelSpec
from dougong.parts.linear import Linear
from dougong.train import causal_lm, next_token
from dougong.train.objectives import token_logprobs

from .models import SPECS, build, text

families = pytest.mark.parametrize("name", SPECS)


def close(actual, expected, tolerance=1e-4):
    assert float((actual - expected).abs().max()) <= tolerance * max(1.0, float(expected.abs().max()))


def run_in_steps(model, tokens, cuts):
    """Logits of a text that is fed in pieces of the given sizes."""
    cache, out, start = model.cache(len(tokens), tokens.shape[1] + 3), [], 0
    for size in cuts:
        piece = tokens[:, start : start + size]
        out.append(model.run(piece, cache.context(piece), cache).logits)
        cache.advance(size)
        start += size
    return torch.cat(out, 1)


@families
@torch.no_grad()
def test_full_forward_is_token_by_token_is_chunked(name):
    model, tokens = build(name), text(2, 20)
    full = model(tokens).logits
    close(run_in_steps(model, tokens, [1] * 20), full)
    close(run_in_steps(model, tokens, [7, 1, 8, 4]), full)


@families
@torch.no_grad()
def test_ragged_rows_in_one_cache(name):
    """Rows of different lengths, padded at their end, go on as if each were alone."""
    model, tokens, counts = build(name), text(3, 12), torch.tensor([12, 5, 8])
    cache = model.cache(3, 16)
    first = torch.where(torch.arange(12) < counts[:, None], tokens, 0)
    model.run(first, cache.context(first, counts), cache)
    cache.advance(counts)
    after = text(3, 2, seed=9)
    logits = []
    for step in range(2):
        piece = after[:, step : step + 1]
        logits.append(model.run(piece, cache.context(piece), cache).logits)
        cache.advance(1)
    for row, count in enumerate(counts):
        alone = torch.cat((tokens[row : row + 1, :count], after[row : row + 1]), 1)
        close(torch.cat(logits, 1)[row], model(alone).logits[0, -2:])


@families
@torch.no_grad()
def test_packed_documents_are_separate_documents(name):
    model, tokens = build(name), text(1, 18)
    sizes = [5, 1, 12]
    documents = torch.tensor([[0] * 5 + [1] + [2] * 12])
    positions = torch.cat([torch.arange(size) for size in sizes])[None]
    packed = model(tokens, documents=documents, positions=positions).logits
    separate = torch.cat([model(part).logits for part in tokens.split(sizes, 1)], 1)
    close(packed, separate)


@families
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_changes_nothing(name, side):
    model, tokens = build(name), text(2, 9)
    padding = torch.zeros(2, 13, dtype=torch.bool)
    padded = torch.zeros(2, 13, dtype=torch.int64)
    place = slice(4, 13) if side == "left" else slice(0, 9)
    padding[:] = True
    padding[:, place] = False
    padded[:, place] = tokens
    logits = model(padded, padding=padding).logits
    close(logits[:, place], model(tokens).logits)
    assert torch.isfinite(logits).all()


@families
def test_gradients_are_finite_and_equal_when_recomputed(name):
    model, tokens = build(name), text(2, 10)

    def gradients():
        model.zero_grad()
        loss = causal_lm(model(tokens[:, :-1]).hidden, model.head, tokens[:, 1:])
        loss.sum.backward()
        return {key: parameter.grad.clone() for key, parameter in model.named_parameters()}

    plain = gradients()
    model.recompute = True
    again = gradients()
    assert all(
        torch.isfinite(grad).all() and grad.abs().sum() > 0 for key, grad in plain.items() if "k.bias" not in key
    )
    for key in plain:
        close(again[key], plain[key], 1e-5)


@families
def test_the_loss_is_that_of_the_logits(name):
    model, tokens = build(name), text(2, 11)
    targets = tokens[:, 1:].clone()
    targets[0, :3] = -100
    features = model.features(model(tokens[:, :-1]).hidden)
    loss = causal_lm(features, model.head, targets, softcap=model.spec.head.softcap)
    logprobs = token_logprobs(model(tokens[:, :-1]).logits, targets)
    assert float(loss.weight) == 17
    close(loss.sum, -logprobs.sum())


@families
def test_the_spec_knows_the_parameters_and_the_state(name):
    model, spec = build(name), SPECS[name]
    assert spec.parameters() == sum(parameter.numel() for parameter in model.parameters())
    assert (spec.active_parameters() < spec.parameters()) == (name == "experts")
    limits = [slot.window for each in spec.state_slots() for slot in each.values() if slot.window]
    if not limits:
        assert spec.state_bytes(32) * 3 == model.cache(3, 32).bytes()
    else:
        assert spec.state_bytes(32) == spec.state_bytes(limits[0])
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@families
@torch.no_grad()
def test_bfloat16_is_near_float32(name):
    model, tokens = build(name), text(2, 12)
    truth = model(tokens).logits
    low = model.bfloat16()(tokens).logits
    assert low.dtype == torch.bfloat16
    assert float((low.float() - truth).norm() / truth.norm()) <= 0.1


@families
def test_accumulation_is_one_big_batch(name):
    """The sums of ragged micro-batches add up to those of the whole."""
    model, tokens = build(name), text(8, 11)
    targets = tokens[:, 1:].clone()
    for row in range(8):
        targets[row, row + 2 :] = -100
    batch = Batch(tokens[:, :-1], targets, torch.arange(10).expand(8, -1), None)
    results = []
    for parts in (1, 3, 8):
        model.zero_grad()
        losses = [next_token(model, micro) for micro in batch.micro(parts)]
        for loss in losses:
            loss.sum.backward()
        results.append((sum(loss.weight for loss in losses), [p.grad.clone() for p in model.parameters()]))
    for weight, grads in results[1:]:
        assert float(weight) == float(results[0][0])
        for mine, whole in zip(grads, results[0][1], strict=True):
            close(mine, whole, 1e-5)


@families
def test_tied_weights_are_one(name):
    model = build(name)
    tied = SPECS[name].head.tied
    assert (model.head.storage is model.embedding.storage) == tied
    assert ("head.weight" in model.weights()) != tied
    assert len(list(model.linears())) == 1 + sum(isinstance(m, Linear) for m in model.layers.modules())


def test_bad_tokens_are_refused_by_name():
    model = build("gpt2")
    with pytest.raises(DougongError, match=r"token id 50 .* vocabulary of 50"):
        model(torch.tensor([[1, 50]]))
    with pytest.raises(DougongError, match="token id -1"):
        model(torch.tensor([[1, -1]]))
    with pytest.raises(DougongError, match=r"65 tokens.*64 positions"):
        model(text(1, 65))
    with pytest.raises(DougongError, match="encoder"):
        model(text(1, 5), source=text(1, 5))


def test_wrong_specs_are_refused_by_name():
    data = SPECS["llama"].to_json()
    data["layers"][0]["mixer"]["heads"] = 4
    data["layers"][0]["mixer"]["kv_heads"] = 3
    with pytest.raises(DougongError, match="4 heads over 3 kv_heads"):
        ModelSpec.from_json(data)
    data = SPECS["llama"].to_json()
    data["widht"] = data.pop("width")
    with pytest.raises(DougongError, match="widht; did you mean 'width'"):
        ModelSpec.from_json(data)
    assert isinstance(Model(SPECS["llama"]), torch.nn.Module)
