"""What holds for every family, on a model of a configuration drawn at random."""

from __future__ import annotations

import json

import pytest
import torch

from dougong.hub.families import FAMILIES
from dougong.model import Model, initialise
from dougong.parts.segments import Segments
from tests.hub import foreign
from tests.hub.draws import DRAWN

pytest.importorskip("transformers", reason="the configurations are those of transformers")

families = pytest.mark.parametrize("family", [name for name in FAMILIES if name in DRAWN])
TOLERANCE = 1e-4


def described(family: str, seed: int) -> dict:
    """A whole config.json, defaults filled in."""
    import transformers

    config = foreign.draw_config(family, seed)
    return json.loads(transformers.AutoConfig.for_model(family, **config).to_json_string(use_diff=False))


def build(family: str, seed: int = 1) -> Model:
    """Every parameter moved off its initial value."""
    model = initialise(Model(FAMILIES[family].from_config(described(family, seed))), seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def text(model: Model, rows: int, tokens: int) -> torch.Tensor:
    return torch.randint(0, model.spec.vocab, (rows, tokens), generator=torch.Generator().manual_seed(7))


def close(actual, expected, tolerance=TOLERANCE):
    actual, expected = actual.detach().float(), expected.detach().float()
    assert torch.isfinite(actual).all()
    assert float((actual - expected).abs().max()) <= tolerance * max(1.0, float(expected.abs().max()))


def in_steps(model: Model, tokens: torch.Tensor, cuts: list[int]) -> torch.Tensor:
    cache, out, start = model.cache(len(tokens), tokens.shape[1] + 3), [], 0
    for size in cuts:
        piece = tokens[:, start : start + size]
        out.append(model.run(piece, cache.context(piece), cache).logits)
        cache.advance(size)
        start += size
    return torch.cat(out, 1)


@families
@pytest.mark.parametrize("seed", [1, 2])
@torch.no_grad()
def test_whole_text_is_token_by_token_is_chunks(family, seed):
    model = build(family, seed)
    tokens = text(model, 2, 24)
    whole = model(tokens).logits
    close(in_steps(model, tokens, [1] * 24), whole)
    close(in_steps(model, tokens, [9, 1, 2, 5, 1, 6]), whole)


@families
@torch.no_grad()
def test_ragged_rows_step_by_step_are_rows_alone(family):
    """Padding at the end of a step's rows must not enter any state."""
    model = build(family)
    tokens, counts = text(model, 3, 12), [torch.tensor(each) for each in ([7, 3, 12], [5, 9, 1])]
    more = text(model, 3, 9)
    cache = model.cache(3, 40)
    first = model.run(tokens, cache.context(tokens, counts[0]), cache).logits
    cache.advance(counts[0])
    second = model.run(more, cache.context(more, counts[1]), cache).logits
    for row in range(3):
        a, b = int(counts[0][row]), int(counts[1][row])
        alone = model(torch.cat((tokens[row, :a], more[row, :b]))[None]).logits[0]
        close(first[row, :a], alone[:a])
        close(second[row, :b], alone[a:])


@families
@torch.no_grad()
def test_packed_documents_and_padding(family):
    model = build(family)
    tokens = text(model, 2, 20)
    cuts = (6, 13, 20)
    documents = torch.tensor([[0] * 6 + [1] * 7 + [2] * 7] * 2)
    positions = torch.cat([torch.arange(end - start) for start, end in zip((0, *cuts), cuts, strict=False)])[None]
    packed = model(tokens, documents=documents, positions=positions).logits
    for start, end in zip((0, *cuts), cuts, strict=False):
        close(packed[:, start:end], model(tokens[:, start:end]).logits)
    padding = torch.zeros(2, 20, dtype=torch.bool)
    padding[0, :5] = padding[1, 17:] = True
    padded = model(tokens, padding=padding).logits
    close(padded[0, 5:], model(tokens[:1, 5:]).logits[0])
    close(padded[1, :17], model(tokens[1:, :17]).logits[0])


@families
def test_gradients_are_finite_and_the_same_when_recomputed(family):
    model = build(family)
    tokens = text(model, 2, 17)
    results = []
    for recompute in (False, True):
        model.recompute = recompute
        model.zero_grad()
        logits = model(tokens).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.roll(-1, 1).flatten()).backward()
        results.append({name: weight.grad for name, weight in model.weights().items() if weight.grad is not None})
    first, second = results
    assert first.keys() == second.keys()
    for name, grad in first.items():
        assert torch.isfinite(grad).all(), name
        close(second[name], grad, 1e-5)


@families
@torch.no_grad()
def test_bfloat16_is_near_float32(family):
    model = build(family)
    tokens = text(model, 1, 12)
    exact = model(tokens).logits
    low = model.to(torch.bfloat16)(tokens).logits.float()
    assert float((low - exact).norm() / exact.norm()) <= 0.1


@families
def test_the_spec_counts_what_is_there(family):
    for seed in range(4):
        spec = FAMILIES[family].from_config(described(family, seed))
        model = Model(spec)
        assert spec.parameters() == sum(weight.numel() for weight in model.parameters())
        assert 0 < spec.active_parameters() <= spec.parameters()
        cache, slots = model.cache(1, 16), list(spec.state_slots())
        held = sum(
            slot.elements(16) if slot.window is None else 16 * slot.elements(1)
            for each in slots
            for slot in each.values()
        )
        assert cache.bytes() == sum(
            tensor.numel() * tensor.element_size() for layer in cache.layers for tensor in layer.tensors.values()
        )
        assert held == sum(tensor.numel() for layer in cache.layers for tensor in layer.tensors.values())


def test_documents_are_cut_and_put_back():
    documents = torch.tensor([[-1, -1, 0, 0, 1, 1, 1], [3, 3, 3, 4, -1, 5, 5]])
    x = torch.arange(14.0).view(2, 7, 1)
    from dougong.parts.context import Context

    segments = Segments.of(Context(torch.arange(7)[None], documents=documents))
    assert segments is not None
    rows = segments.split(x)
    assert rows.squeeze(-1).tolist() == [[2, 3, 0], [4, 5, 6], [7, 8, 9], [10, 0, 0], [12, 13, 0]]
    back = segments.join(rows, x)
    assert torch.equal(back, x.masked_fill((documents < 0)[..., None], 0))
