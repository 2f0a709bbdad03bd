"""Rotations that depend on the length of a text: its keys are those of its length, however it is read."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dougong.engine import Engine, Sampling
from dougong.hub import LanguageModel
from dougong.model import Model, ModelSpec, decoder_spec, initialise
from dougong.parts.attention import Attention
from dougong.parts.delta import DeltaNet
from dougong.parts.rope import DynamicNTK, LongRope, Rope, Scaling

pytestmark = pytest.mark.usefixtures("unchecked")
BORDER = 16
LONG = LongRope((1.0, 1.5, 2.0, 2.5), (4.0, 5.0, 6.0, 7.0), BORDER, 1.2)
DYNAMIC = DynamicNTK(4.0, BORDER)
PROMPTS = [list(range(1, 1 + length)) for length in (3, BORDER - 1, BORDER, BORDER + 1, 40)]


def _lm(scaling: Scaling) -> LanguageModel:
    torch.manual_seed(0)
    spec = decoder_spec(97, width=32, depth=3, heads=4, context=96)
    model = initialise(Model(_scaled(spec, scaling))).eval()
    with torch.no_grad():
        for each in model.parameters():
            each.add_(torch.randn_like(each) * 0.1)
    return LanguageModel(model)


def _scaled(spec: ModelSpec, scaling: Scaling) -> ModelSpec:
    def changed(mixer: Attention) -> Attention:
        assert isinstance(mixer.position, Rope)
        return replace(mixer, position=replace(mixer.position, scaling=scaling))

    layers = [replace(each, mixer=changed(each.mixer)) for each in spec.layers if isinstance(each.mixer, Attention)]
    return replace(spec, layers=tuple(layers))


def _stepwise(lm: LanguageModel, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    """log p of each token by the whole text before it, read at once."""
    out = []
    with torch.no_grad():
        for count, token in enumerate(tokens):
            out.append(lm.model(torch.tensor([prompt + tokens[:count]])).logits[0, -1].log_softmax(-1)[token])
    return torch.stack(out)


@pytest.mark.parametrize(("prefill", "page", "count"), [(3, 5, 1), (7, 1, 2), (2048, 16, 2)])
def test_longrope_in_any_pieces(prefill: int, page: int, count: int):
    lm = _lm(LONG)
    engine = Engine(lm, memory="8MiB", prefill_tokens=prefill, page_size=page, max_batch=4)
    sampling = Sampling(max_tokens=14, temperature=0.0 if count == 1 else 1.0, seed=1, n=count, logprobs=True)
    for _ in range(2):  # the second time from the prefix cache
        for answer in engine.generate(PROMPTS, sampling):
            wanted = _stepwise(lm, answer.prompt, answer.tokens)
            assert torch.allclose(torch.tensor(answer.logprobs), wanted, atol=1e-4)
    runner = engine.runner
    runner.forget()
    assert all(pages.free == pages.total for pages in runner.pages)


@pytest.mark.parametrize("options", [{"beams": 3}, {"speculation": "prompt_lookup"}], ids=["beams", "lookup"])
def test_longrope_for_others_who_look_ahead(options: dict):
    lm = _lm(LONG)
    sampling = Sampling(max_tokens=12, temperature=0.0, logprobs=True, ignore_eos=True, **options)
    for answer in Engine(lm, memory="8MiB", page_size=4).generate([list(range(1, 13))], sampling):
        wanted = _stepwise(lm, answer.prompt, answer.tokens)
        border = BORDER - 12  # a rejected guess beyond the border may bring the change a few tokens early
        assert torch.allclose(torch.tensor(answer.logprobs)[border:], wanted[border:], atol=1e-4)


def test_dynamic_ntk_reads_prompts_as_a_whole():
    lm = _lm(DYNAMIC)
    one = Sampling(max_tokens=1, temperature=0.0, logprobs=True)
    for prefill in (3, 7, 2048):
        engine = Engine(lm, memory="8MiB", prefill_tokens=prefill, page_size=4)
        for answer in engine.generate([*PROMPTS, *PROMPTS], one):
            assert torch.allclose(torch.tensor(answer.logprobs), _stepwise(lm, answer.prompt, answer.tokens), atol=1e-4)


def test_memory_for_one_reading_is_enough():
    lm = _lm(LONG)
    whole = Engine(lm, memory="8MiB", page_size=4)
    sampling = Sampling(max_tokens=40, temperature=0.0)
    expected = whole.generate([[1, 2, 3]] * 2, sampling)
    bytes_a_token = sum(whole.runner.layout.token_bytes(table) for table in range(len(whole.runner.pages)))
    small = Engine(lm, memory=int(bytes_a_token * 48 * 2.2), page_size=4, prefix_cache=False)
    assert [each.tokens for each in small.generate([[1, 2, 3]] * 2, sampling)] == [each.tokens for each in expected]


def test_a_recurrence_beside_it_begins_anew_too():
    """A layer with a state of fixed size reads the text again from its first token, not on top of what it had read."""
    torch.manual_seed(0)
    spec = _scaled(decoder_spec(97, width=32, depth=2, heads=4, context=96), LONG)
    mixed = replace(spec, layers=(replace(spec.layers[0], mixer=DeltaNet(2, 4, 8, 8)), spec.layers[1]))
    lm = LanguageModel(initialise(Model(mixed)).eval())
    with torch.no_grad():
        for each in lm.model.parameters():
            each.add_(torch.randn_like(each) * 0.1)
    engine = Engine(lm, memory="8MiB", page_size=4)
    assert engine.runner.recurrent
    sampling = Sampling(max_tokens=14, temperature=0.0, logprobs=True)
    for answer in engine.generate([list(range(1, 1 + length)) for length in (3, 9, BORDER)], sampling):
        wanted = _stepwise(lm, answer.prompt, answer.tokens)
        assert torch.allclose(torch.tensor(answer.logprobs), wanted, atol=1e-4)
