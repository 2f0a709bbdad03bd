"""A processor's distribution takes the place of the model's, for whatever else a request asks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, final

import pytest
import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.compress import quantize
from dougong.engine import Completion, Contrastive, Engine, Event, Grammar, LogitsProcessor, Sampling
from dougong.hub import LanguageModel
from dougong.model import ModelSpec, decoder_spec
from dougong.parts import native
from dougong.tune import LoRA, attach, disabled
from tests.contract.models import SPECS, build

from .kinds import MEMORY, all_free, moved, text
from .standin import small

pytestmark = pytest.mark.usefixtures("unchecked")

LM = small()
PROMPTS = [list(b"hello there"), list(b"he"), list(b"hello, and a longer text than the others are")]


@final
class Further:
    """logits + W h: what a head of other weights would say."""

    def __init__(self, spec: ModelSpec, seed: int = 7, scale: float = 3.0):
        generator = torch.Generator().manual_seed(seed)
        self.weight = scale * torch.randn(spec.vocab, spec.width, generator=generator)
        self.calls: list[int] = []

    def check(self, spec: ModelSpec) -> None:
        if tuple(self.weight.shape) != (spec.vocab, spec.width):
            raise DougongError(f"made for {tuple(self.weight.shape)}, not {(spec.vocab, spec.width)}")

    def process(self, hidden: Tensor, logits: Tensor) -> Tensor:
        self.calls.append(len(hidden))
        return logits.float() + hidden.float() @ self.weight.T


@final
class Faulty:
    """Whatever a function makes of the logits."""

    def __init__(self, made: Callable[[Tensor], Tensor]):
        self._made = made

    def check(self, spec: ModelSpec) -> None:
        pass

    def process(self, hidden: Tensor, logits: Tensor) -> Tensor:
        return self._made(logits)


FURTHER = Further(LM.spec)


def other_head(lm: LanguageModel, processor: Further) -> LanguageModel:
    """The model that needs no processor to say the same."""
    model = copy.deepcopy(lm.model)
    with torch.no_grad():
        model.head.weight.add_(processor.weight)
    return LanguageModel(model, lm.tokenizer)


OTHER = other_head(LM, FURTHER)


def same(answers: list[Completion], wanted: list[Completion]) -> None:
    assert [each.tokens for each in answers] == [each.tokens for each in wanted]
    assert [each.text for each in answers] == [each.text for each in wanted]
    for one, other in zip(answers, wanted, strict=True):
        assert one.finish_reason == other.finish_reason
        assert one.logprobs == pytest.approx(other.logprobs, abs=2e-3)
        for top, its in zip(one.tops, other.tops, strict=True):
            assert [value for _, value in top] == pytest.approx([value for _, value in its], abs=2e-3)


ASKED: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "drawn": {"seed": 1},
    "cut": {"seed": 2, "temperature": 0.8, "top_k": 20, "min_p": 0.01},
    "nucleus": {"seed": 3, "top_p": 0.9},
    "several": {"seed": 4, "n": 3},
    "the best of several": {"seed": 5, "n": 2, "best_of": 4},
    "tops": {"temperature": 0.0, "top_logprobs": 5},
    "bias and bans": {"temperature": 0.0, "logit_bias": {101: 9.0}, "banned": (104,), "forced": (104, 105)},
    "penalties": {"seed": 6, "repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.2},
    "grammar": {"seed": 7, "grammar": Grammar.regex("[0-9]{1,6}")},
    "beams": {"beams": 3, "n": 2},
    "contrastive": {"contrastive": Contrastive(0.4, 3)},
    "looked up": {"temperature": 0.0, "speculation": "prompt_lookup"},
    "drafted": {"seed": 8, "speculation": "draft"},
}


@pytest.mark.parametrize("asked", ASKED)
def test_it_is_the_model_with_another_head(asked: str) -> None:
    sampling = Sampling(max_tokens=12, **ASKED[asked])
    draft = small(depth=1, seed=1)
    with_processor = replace(sampling, processor=FURTHER)
    answers = Engine(LM, memory=MEMORY, page_size=4, draft=draft).generate(PROMPTS, with_processor)
    same(answers, Engine(OTHER, memory=MEMORY, page_size=4, draft=draft).generate(PROMPTS, sampling))
    plain = Engine(LM, memory=MEMORY, draft=draft).generate(PROMPTS, sampling)
    assert [each.tokens for each in answers] != [each.tokens for each in plain]


def test_requests_with_and_without_one_share_steps() -> None:
    third = Further(LM.spec, seed=8)
    greedy = Sampling(max_tokens=10, temperature=0.0)
    samplings = [replace(greedy, processor=each) for each in (FURTHER, None, third, FURTHER, None, None)]
    samplings[5] = replace(greedy, beams=2, processor=FURTHER)
    prompts = PROMPTS * 2
    FURTHER.calls.clear()
    answers = Engine(LM, memory=MEMORY, page_size=4).generate(prompts, samplings)
    assert max(FURTHER.calls) >= 3  # one call for all of its requests in a step
    for answer, prompt, sampling in zip(answers, prompts, samplings, strict=True):
        same([answer], Engine(LM, memory=MEMORY).generate([prompt], sampling))


@pytest.mark.parametrize("name", SPECS)
def test_decoding_and_scoring_agree_for_every_kind_of_layer(name: str) -> None:
    lm = LanguageModel(build(name), None)
    processor = Further(lm.spec, scale=0.5)
    engine = Engine(lm, memory=MEMORY, page_size=4, prefill_tokens=8)
    prompts = [text(lm.model, length, seed=length) for length in (3, 17, 5)]
    answers = engine.generate(prompts, Sampling(max_tokens=9, temperature=0.0, processor=processor))
    again = engine.generate(prompts, Sampling(max_tokens=9, temperature=0.0, processor=processor))  # known prefixes
    assert [each.tokens for each in answers] == [each.tokens for each in again]
    told = engine.score(prompts, [each.tokens for each in answers], processor=processor)
    for answer, prompt, scores in zip(answers, prompts, told, strict=True):
        assert answer.logprobs == pytest.approx(scores, abs=2e-3)
        whole = lm.model(torch.tensor([[*prompt, *answer.tokens]]))
        direct = processor.process(whole.hidden[0], whole.logits[0])[len(prompt) - 1 : -1].log_softmax(-1)
        assert direct.argmax(-1).tolist() == answer.tokens
        assert direct.amax(-1).tolist() == pytest.approx(scores, abs=2e-3)


@pytest.mark.parametrize("method", ["int8", "int4"])
def test_steps_that_run_by_tape(method: str) -> None:
    if native.kernels() is None:
        pytest.skip(native.missing())
    lm = LanguageModel(moved(decoder_spec(vocab=64, width=256, depth=2, heads=4, kv_heads=2, context=96)))
    quantize(lm, method)
    processor = Further(lm.spec, scale=0.2)
    engine = Engine(lm, memory=MEMORY)
    assert engine.runner.taped is not None
    prompts = [text(lm.model, length, seed=length) for length in (3, 17, 5)]
    answers = engine.generate(prompts, Sampling(max_tokens=9, temperature=0.0, processor=processor))
    told = engine.score(prompts, [each.tokens for each in answers], processor=processor)
    for answer, scores in zip(answers, told, strict=True):
        assert answer.logprobs == pytest.approx(scores, abs=2e-3)


def test_requests_that_push_each_other_out_lose_nothing() -> None:
    greedy = Sampling(max_tokens=15, temperature=0.0, ignore_eos=True, processor=FURTHER)
    wanted = [Engine(LM, memory=MEMORY).generate([prompt], greedy)[0] for prompt in PROMPTS]
    engine = Engine(LM, memory=MEMORY, max_batch=2, page_size=4)
    tickets, events = [], list[Event]()
    for urgency, prompt in enumerate(PROMPTS):
        tickets.append(engine.submit(prompt, greedy, priority=urgency))
        events += [*engine.step(), *engine.step()]
    while not engine.idle:
        events += engine.step()
    assert engine.stats()["preempted"] > 0
    for ticket, answer in zip(tickets, wanted, strict=True):
        assert [event.token for event in events if event.index == ticket.number] == answer.tokens
    assert all_free(engine.runner)


def test_a_request_with_an_adapter_has_its_own_states_looked_at() -> None:
    lm = small(tokenizer=False)
    tuning = attach(lm, LoRA(rank=2), match="*", name="own")
    torch.manual_seed(1)
    for parameter in tuning.parameters().values():
        torch.nn.init.normal_(parameter, 0.0, 0.3)
    engine, processor = Engine(lm, memory=MEMORY), Further(lm.spec)
    sampling = Sampling(max_tokens=8, temperature=0.0, processor=processor)
    own, base = engine.generate([[1, 2, 3]] * 2, sampling, adapter=["own", ""])
    assert own.tokens != base.tokens
    for answer, name in ((own, "own"), (base, "")):
        told = engine.score([[1, 2, 3]], [answer.tokens], name, processor)[0]
        assert answer.logprobs == pytest.approx(told, abs=2e-3)
        (states,) = engine.hidden_states([[1, 2, 3, *answer.tokens[:-1]]], name)
        with torch.no_grad(), disabled(lm, [] if name else ["own"]):
            out = lm.model(torch.tensor([[1, 2, 3, *answer.tokens[:-1]]]))
            logits = processor.process(out.hidden[0, 2:], out.logits[0, 2:])
        assert torch.allclose(states, out.hidden[0], atol=1e-3)
        assert logits.argmax(-1).tolist() == answer.tokens


@pytest.mark.parametrize("length", [1, 7])
def test_hidden_states_are_those_that_the_head_reads(length: int) -> None:
    texts = [text(LM.model, size, seed=size) for size in (length, 20, 2 * length, 33)]
    states = Engine(LM, prefill_tokens=40).hidden_states(texts)
    for row, tokens in zip(states, texts, strict=True):
        with torch.no_grad():
            wanted = LM.model(torch.tensor([tokens])).hidden[0]
        assert row.shape == wanted.shape and torch.allclose(row, wanted, atol=1e-4)
    assert Engine(LM).hidden_states([]) == []


@pytest.mark.parametrize(
    ("made", "error"),
    [(lambda logits: logits[:, :-1], "a row of the vocabulary's size"), (lambda logits: logits / 0, "not finite")],
)
def test_a_processor_that_fails_harms_no_other(made: Callable[[Tensor], Tensor], error: str) -> None:
    greedy = Sampling(max_tokens=6, temperature=0.0)
    engine = Engine(LM, memory=MEMORY)
    good = engine.submit(PROMPTS[0], greedy)
    bad = [engine.submit(PROMPTS[1], replace(greedy, n=2, temperature=1.0, processor=Faulty(made)))]
    bad += [engine.submit(PROMPTS[1], replace(greedy, beams=2, processor=Faulty(made)))]
    events: list[Event] = []
    while not engine.idle:
        events += engine.step()
    tokens = [event.token for event in events if event.index == good.number]
    assert tokens == Engine(LM).generate([PROMPTS[0]], greedy)[0].tokens
    for ticket in bad:
        reasons = [event.finish_reason for event in events if event.index == ticket.number]
        assert set(reasons) == {"error"} and error in (ticket.error or "")
    assert all_free(engine.runner)
    with pytest.raises(DougongError, match=error):
        engine.generate([PROMPTS[1]], replace(greedy, processor=Faulty(made)))
    assert all_free(engine.runner)


def test_a_model_that_it_cannot_serve_is_refused_before_any_work() -> None:
    engine, other = Engine(LM), Further(small(width=16).spec)
    assert isinstance(other, LogitsProcessor)
    with pytest.raises(DougongError, match="made for"):
        engine.generate(PROMPTS, Sampling(processor=other))
    with pytest.raises(DougongError, match="made for"):
        engine.score_texts(PROMPTS, processor=other)
    assert other.calls == []
