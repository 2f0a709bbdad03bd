"""Many requests in little memory: each gets what it would get alone, and everything is given back."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
import torch

from dougong.base import DougongError
from dougong.engine import Engine, Event, Sampling
from dougong.engine.request import completed
from dougong.hub import LanguageModel
from dougong.model import LayerSpec, Model, ModelSpec, decoder_spec
from dougong.parts.attention import Attention
from dougong.parts.feedforward import GatedMLP
from dougong.parts.heads import Pooled
from dougong.parts.norm import Norm
from dougong.parts.rope import Rope
from tests.contract.models import build as build_small

from .kinds import all_free, close, expected, moved, text

pytestmark = pytest.mark.usefixtures("unchecked")


def language_model(model: Model) -> LanguageModel:
    return LanguageModel(model, None, None, {}, {"eos_token_id": None})


LM = language_model(moved(decoder_spec(50, 32, 2, 4, 2048, kv_heads=2)))
KINDS = {"plain": LM} | {name: language_model(build_small(name)) for name in ("mistral", "latent", "delta", "mamba")}


def greedy(tokens: int, **options: Any) -> Sampling:
    return Sampling(max_tokens=tokens, temperature=0.0, **options)


def greedy_text(model: Model, prompt: list[int], tokens: int) -> list[int]:
    """The most probable tokens, by whole forward passes."""
    whole = list(prompt)
    for _ in range(tokens):
        whole.append(int(expected(model, whole)[-1].argmax()))
    return whole[len(prompt) :]


def drained(engine: Engine) -> list[Event]:
    events = []
    while not engine.idle:
        events += engine.step()
    return events


def by_request(events: list[Event]) -> dict[int, list[Event]]:
    found: dict[int, list[Event]] = {}
    for event in events:
        found.setdefault(event.index, []).append(event)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_requests_that_push_each_other_out_lose_nothing(kind: str) -> None:
    lm = KINDS[kind]
    prompts = [text(lm.model, 8 + number, number) for number in range(6)]
    samplings = [Sampling(max_tokens=20, seed=number, temperature=number % 2) for number in range(6)]
    wanted = [
        Engine(lm, prefix_cache=False).generate([each], one)[0] for each, one in zip(prompts, samplings, strict=True)
    ]
    engine = Engine(lm, memory=least(lm), page_size=4, prefill_tokens=8)
    for answer, alone in zip(engine.generate(prompts, samplings), wanted, strict=True):
        assert answer.tokens == alone.tokens
        assert answer.logprobs == pytest.approx(alone.logprobs, abs=2e-4)
    if engine.runner.pages:
        assert engine.stats()["preempted"] > 0
    assert all_free(engine.runner)


def least(lm: LanguageModel) -> int:
    """Bytes in which about two of the requests above fit."""
    for memory in range(8_000, 10_000_000, 4_000):
        try:
            runner = Engine(lm, memory=memory, page_size=4, prefill_tokens=8).runner
        except DougongError:
            continue
        if runner.fits(72, 1, 0, 8) and runner.division.rows >= 2:
            return memory
    raise AssertionError


def test_what_can_never_fit_is_refused_before_any_work() -> None:
    engine = Engine(LM, memory=200_000)
    with pytest.raises(
        DougongError, match=r"prompts\[1\] and its answer may take 1900 tokens, more than the engine's memory"
    ):
        engine.stream([[1], [1] * 900], [Sampling(max_tokens=9), Sampling(max_tokens=1000)])
    with pytest.raises(DougongError, match="in 40 sequences"):
        engine.submit([1] * 5, Sampling(max_tokens=100, n=40))
    assert engine.idle and engine.stats()["prompt_tokens"] == 0
    with pytest.raises(DougongError, match="memory is 'lots'"):
        Engine(LM, memory="lots")
    assert Engine(LM, memory="0.5 GiB").runner.free_bytes < 1 << 29


def test_state_stays_within_the_budget() -> None:
    for kind, lm in KINDS.items():
        memory = 3 << 20
        engine = Engine(lm, memory=memory, page_size=4)
        engine.generate([text(lm.model, 30, seed) for seed in range(9)], greedy(9))
        runner = engine.runner
        tensors = [buffer.data for buffer in (*runner.pools, *runner.lanes.buffers)] + runner.fixed._tensors
        held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        spare = runner.layout.row_bytes()  # the row by which two are exchanged
        assert held - spare <= memory, kind
        assert runner.lanes.bytes() <= runner.division.lanes


def counted(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that gets the number of tokens of every forward pass."""
    tokens: list[int] = []
    run = model.run

    def counting(ids: torch.Tensor, *rest: Any) -> Any:
        tokens.append(ids.numel())
        return run(ids, *rest)

    monkeypatch.setattr(model, "run", counting)
    return tokens


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_beginning_is_run_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, length = KINDS[kind], 1000 if kind == "plain" else 48
    prefix = text(lm.model, length)
    engine = Engine(lm, page_size=8, prefill_tokens=16 if length < 99 else 512)
    ran = counted(lm.model, monkeypatch)
    engine.generate([[*prefix, 1, 2, 3]], greedy(2))
    first = sum(ran)
    ran.clear()
    other = [*prefix, 4, 5]
    answer = engine.generate([other], greedy(3))[0]
    assert sum(ran) <= 2 + 3 + 8 < first / 3
    assert engine.stats()["prefix_hit_tokens"] >= length - 8
    assert answer.tokens == greedy_text(lm.model, other, 3)
    again = engine.generate([other], greedy(3))[0]
    assert again.tokens == answer.tokens
    assert again.logprobs == pytest.approx(answer.logprobs, abs=1e-4)


def test_what_is_said_is_known_in_the_next_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(LM, page_size=4)
    answer = engine.generate([text(LM.model, 20)], greedy(21))[0]
    ran = counted(LM.model, monkeypatch)
    engine.generate([[*answer.prompt, *answer.tokens, 7, 8, 9]], greedy(1))
    assert sum(ran) <= 3 + 4


def test_new_weights_make_everything_new() -> None:
    lm = language_model(moved(decoder_spec(50, 32, 2, 4, 256, kv_heads=2)))
    engine, prompt = Engine(lm, page_size=4), text(LM.model, 40)
    engine.generate([prompt], greedy(2))
    optimizer = torch.optim.SGD(lm.model.parameters(), lr=0.5)
    lm.model(torch.tensor([prompt])).logits.square().mean().backward()
    optimizer.step()
    answer = engine.generate([prompt], greedy(4))[0]
    assert engine.stats()["prefix_hit_tokens"] == 0
    assert answer.logprobs == pytest.approx(engine.score([prompt], [answer.tokens])[0], abs=2e-4)
    engine.generate([prompt], greedy(1))
    assert engine.stats()["prefix_hit_tokens"] == 39
    lm.model.embedding.weight.data.mul_(1.5)  # which PyTorch does not count
    engine.reset()
    answer = engine.generate([prompt], greedy(4))[0]
    assert answer.logprobs == pytest.approx(engine.score([prompt], [answer.tokens])[0], abs=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_n_answers_are_n_requests_with_seeds_that_follow(kind: str) -> None:
    lm = KINDS[kind]
    prompts = [text(lm.model, 13, 1), text(lm.model, 5, 2)]
    sampling = Sampling(max_tokens=9, seed=3, n=3, top_logprobs=2)
    answers = Engine(lm, page_size=4).generate(prompts, sampling)
    assert [answer.choice for answer in answers] == [0, 1, 2] * 2
    assert [answer.prompt for answer in answers] == [prompts[0]] * 3 + [prompts[1]] * 3
    for answer in answers:
        one = dataclasses.replace(sampling, n=1, seed=3 + answer.choice)
        alone = Engine(lm).generate([answer.prompt], one)[0]
        assert answer.tokens == alone.tokens
        assert [len(top) for top in answer.tops] == [2] * 9
    assert len({tuple(answer.tokens) for answer in answers}) > 2


def test_answers_share_the_pages_of_their_prompt() -> None:
    engine = Engine(LM, page_size=4, prefix_cache=False)
    engine.submit(text(LM.model, 100), Sampling(max_tokens=8, n=5))
    engine.step()
    engine.step()
    used = engine.stats()["pages"] - engine.stats()["free_pages"]
    assert used == 25 + 5
    drained(engine)
    assert all_free(engine.runner)


def test_the_best_of_several_are_told() -> None:
    sampling = Sampling(max_tokens=6, seed=1, n=2, best_of=6)
    answers = Engine(LM).generate([[1, 2, 3]], sampling)
    every = Engine(LM).generate([[1, 2, 3]], dataclasses.replace(sampling, n=6, best_of=None))
    every.sort(key=lambda answer: -sum(answer.logprobs) / len(answer.logprobs))
    assert {tuple(answer.tokens) for answer in answers} == {tuple(answer.tokens) for answer in every[:2]}
    assert [answer.choice for answer in answers] == [0, 1]


def test_a_request_that_ends_early_frees_its_place() -> None:
    engine = Engine(LM, max_batch=2, page_size=4)
    tickets = [engine.submit(text(LM.model, 30, seed), greedy(50)) for seed in range(4)]
    events = engine.step()
    assert (engine.stats()["running"], engine.stats()["waiting"]) == (2, 2)
    waits, runs = tickets[3], tickets[0]
    assert [event.finish_reason for event in engine.cancel(waits)] == ["cancelled"]
    assert [(event.index, event.finish_reason) for event in engine.cancel(runs)] == [(runs.number, "cancelled")]
    assert engine.cancel(runs) == [] and runs.done
    events += engine.step()
    assert (engine.stats()["running"], engine.stats()["waiting"]) == (2, 0)
    left = by_request(events + drained(engine))
    for ticket in tickets[1:3]:
        answer = completed(ticket.prompt, ticket.sampling, 0, left[ticket.number])
        assert answer.tokens == greedy_text(LM.model, ticket.prompt, 50)
    assert all_free(engine.runner)


def test_higher_priorities_go_first_and_push_lower_ones_out() -> None:
    engine = Engine(LM, max_batch=1)
    slow = engine.submit([1, 2, 3], greedy(12))
    engine.step()
    engine.step()
    late, urgent = engine.submit([4, 5], greedy(3)), engine.submit([6, 7], greedy(3), priority=1)
    events = drained(engine)
    ends = [event.index for event in events if event.finish_reason]
    assert ends == [urgent.number, slow.number, late.number]
    assert engine.stats()["preempted"] == 1
    told = [event.token for event in events if event.index == slow.number]
    assert told == greedy_text(LM.model, [1, 2, 3], 12)[-len(told) :]


def test_prompts_do_not_hold_up_those_who_generate() -> None:
    engine = Engine(LM, prefill_tokens=16, page_size=4)
    first = engine.submit([1, 2, 3], greedy(40))
    engine.step()
    engine.submit(text(LM.model, 200), greedy(2))
    for _ in range(10):  # the long prompt takes 13 steps
        assert [event.index for event in engine.step()] == [first.number]


def test_broken_numbers_harm_no_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(LM, page_size=4)
    wanted = greedy_text(LM.model, [1, 2, 3], 8)
    engine.submit([9, 9, 9], greedy(8))
    good = engine.submit([1, 2, 3], greedy(8))
    logits = LM.model.logits

    def broken(hidden: torch.Tensor) -> torch.Tensor:
        out = logits(hidden)
        if len(out) == 2:
            out[0] = torch.nan
        return out

    monkeypatch.setattr(LM.model, "logits", broken)
    events = by_request(drained(engine))
    assert [event.token for event in events[good.number]] == wanted
    assert [event.finish_reason for event in events[good.number - 1]] == ["error"]
    assert all_free(engine.runner)


def test_a_step_that_fails_ends_what_ran_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(LM, max_batch=1, page_size=4)
    ran, waits = engine.submit([1, 2], greedy(5)), engine.submit([3, 4], greedy(5))
    engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(LM.model.embedding, "forward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.step()
    events = by_request(drained(engine))
    assert events[ran.number][-1].finish_reason == "error" and "ZeroDivisionError" in str(ran.error)
    assert [event.token for event in events[waits.number]] == greedy_text(LM.model, [3, 4], 5)
    assert all_free(engine.runner)


def test_calls_and_submitted_requests_share_the_engine() -> None:
    engine = Engine(LM)
    ticket = engine.submit([1, 2], greedy(6))
    answer = engine.generate([[3, 4]], greedy(9))[0]
    assert answer.tokens == greedy_text(LM.model, [3, 4], 9)
    assert [event.token for event in drained(engine) if event.index == ticket.number] == greedy_text(
        LM.model, [1, 2], 6
    )


@pytest.mark.parametrize("kv", ["int8", "fp8"])
def test_bytes_for_keys_and_values_change_little(kv: Any) -> None:
    prompts = [text(LM.model, 20, seed) for seed in range(3)]
    exact, rough = (Engine(LM, kv=kind).generate(prompts, greedy(4)) for kind in (None, kv))
    engine = Engine(LM, kv=kv)
    for prompt, a, b in zip(prompts, exact, rough, strict=True):
        assert b.logprobs[0] == pytest.approx(a.logprobs[0], abs=0.3)
        assert b.tokens == engine.generate([prompt], greedy(4))[0].tokens


@pytest.mark.parametrize("kind", KINDS)
def test_a_crowd_that_comes_and_goes_leaves_every_page_free(kind: str) -> None:
    lm, rng = KINDS[kind], random.Random(kind)
    engine = Engine(lm, max_batch=6, prefill_tokens=24, memory=2 * least(lm), page_size=4)
    begin = [text(lm.model, length, length) for length in (4, 9, 16)]
    live: list[Any] = []
    ended: dict[int, list[Event]] = {}
    tickets = []
    for _ in range(200 if kind == "plain" else 50):
        for _ in range(rng.randrange(3)):
            prompt = rng.choice(begin) + text(lm.model, rng.randrange(1, 12), rng.randrange(99))
            sampling = Sampling(
                max_tokens=rng.randrange(1, 14),
                temperature=rng.choice([0.0, 1.0]),
                seed=rng.randrange(9),
                n=rng.choice([1, 1, 2]),
            )
            tickets.append(engine.submit(prompt, sampling, priority=rng.randrange(2)))
            live.append(tickets[-1])
        for event in engine.step():
            ended.setdefault(event.index, []).append(event)
        if live and rng.random() < 0.3:
            gone = live.pop(rng.randrange(len(live)))
            for event in engine.cancel(gone):
                ended.setdefault(event.index, []).append(event)
    for event in drained(engine):
        ended.setdefault(event.index, []).append(event)
    assert all_free(engine.runner)
    fresh = Engine(lm, prefix_cache=False)
    for ticket in tickets:
        reasons = [event.finish_reason for event in ended[ticket.number] if event.finish_reason]
        assert len(reasons) == ticket.sampling.n and set(reasons) <= {"length", "cancelled"}
    for ticket in rng.sample(tickets, 8):
        wanted = fresh.generate([ticket.prompt], ticket.sampling)
        for choice, answer in enumerate(wanted):
            own = [event.token for event in ended[ticket.number] if event.choice == choice and event.token is not None]
            assert own == answer.tokens[: len(own)]


def encoder_decoder() -> Model:
    norm = Norm("rms", 1e-6)
    mixer = Attention(4, 4, 8, position=Rope(8))
    ffn = GatedMLP(48)
    encoder = ModelSpec(50, 32, 64, (LayerSpec(mixer, ffn, norm),) * 2, norm=norm, head=None, causal=False)
    layer = LayerSpec(mixer, ffn, norm, cross=Attention(4, 4, 8))
    return moved(ModelSpec(50, 32, 64, (layer,) * 2, norm=norm, encoder=encoder))


def test_an_encoder_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = encoder_decoder()
    engine = Engine(language_model(model), page_size=4)
    sources = [text(model, length, length) for length in (9, 4, 17)]
    prompts = [[1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [6]]
    asked = []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda tokens: asked.append(tokens) or encode(tokens))
    answers = engine.generate(prompts, greedy(8, n=2), source=sources)
    assert len(asked) == 3
    for number, (prompt, source) in enumerate(zip(prompts, sources, strict=True)):
        whole = list(prompt)
        with torch.no_grad():
            for _ in range(8):
                whole.append(int(model(torch.tensor([whole]), torch.tensor([source])).logits[0, -1].argmax()))
        for answer in answers[2 * number : 2 * number + 2]:
            assert answer.prompt + answer.tokens == whole
    assert all_free(engine.runner)
    with pytest.raises(DougongError, match="give `source`"):
        engine.generate([[1]])
    with pytest.raises(DougongError, match="has no encoder"):
        Engine(LM).generate([[1]], source=[[2]])
    with pytest.raises(DougongError, match="1 sources for 2 prompts"):
        engine.generate([[1], [2]], source=[[2]])


def test_embeddings_are_those_of_each_text_alone() -> None:
    texts = [text(LM.model, length, length) for length in (3, 12, 7, 3)]
    together = Engine(LM).embed(texts)
    for row, each in zip(together, texts, strict=True):
        with torch.no_grad():
            mean = LM.model(torch.tensor([each])).hidden[0].mean(0)
        close(row, mean / mean.norm(), 1e-5)
    spec = dataclasses.replace(LM.spec, task=Pooled("last"), causal=False)
    pooled = language_model(moved(spec))
    rows = Engine(pooled).embed(texts)
    for row, each in zip(rows, texts, strict=True):
        with torch.no_grad():
            close(row, pooled.model(torch.tensor([each])).embedding[0], 1e-4)
    assert Engine(LM).embed([]).shape == (0, 32)
    with pytest.raises(DougongError, match="tokens see the whole text"):
        Engine(pooled).generate([[1]])
