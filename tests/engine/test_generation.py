"""The engine's contracts: the cache changes nothing, the crowd changes nothing, streaming and scoring agree."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dougong.engine import Engine, Sampling
from dougong.hub import LanguageModel
from dougong.model import LayerSpec, Model, ModelSpec, initialise
from dougong.parts.embedding import Embedding
from dougong.parts.feedforward import MLP
from dougong.parts.norm import Norm
from dougong.parts.position import Learned
from dougong.parts.rope import Llama3, Yarn

from .standin import small

LM = small()
GREEDY = Sampling(max_tokens=12, temperature=0.0)
PROMPTS = ["a", "hello there", "斗拱", "once upon a time, in a land", "x" * 40, "", "zz"]


@torch.no_grad()
def slow_greedy(lm: LanguageModel, ids: list[int], steps: int) -> list[int]:
    """A full forward pass for every token."""
    ids = list(ids)
    for _ in range(steps):
        ids.append(int(lm.model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[-steps:]


@pytest.mark.parametrize("max_batch", [1, 3, 32])
@pytest.mark.parametrize("prefill_tokens", [4, 2048])
@pytest.mark.usefixtures("unchecked")
def test_greedy_is_the_same_alone_in_a_crowd_and_without_a_cache(max_batch: int, prefill_tokens: int) -> None:
    crowd = Engine(LM, max_batch, prefill_tokens).generate(PROMPTS, GREEDY)
    for prompt, answer in zip(PROMPTS, crowd, strict=True):
        assert answer.tokens == slow_greedy(LM, answer.prompt, 12)
        assert answer.tokens == Engine(LM).generate([prompt], GREEDY)[0].tokens
        assert answer.text == LM.tokenizer.decode(answer.tokens)


@pytest.mark.usefixtures("unchecked")
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 20)), min_size=1, max_size=7), st.integers(1, 4))
def test_any_arrivals_and_lengths_give_what_each_request_gives_alone(shapes: list[tuple[int, int]], room: int) -> None:
    prompts = [[(7 * place + size) % 250 for place in range(size)] for size, _ in shapes]
    samplings = [Sampling(max_tokens=n, temperature=float(i % 2), seed=i) for i, (_, n) in enumerate(shapes)]
    crowd = Engine(LM, max_batch=room, prefill_tokens=16).generate(prompts, samplings)
    for prompt, sampling, answer in zip(prompts, samplings, crowd, strict=True):
        alone = Engine(LM).generate([prompt], sampling)[0]
        assert answer.tokens == alone.tokens
        assert (answer.text, answer.finish_reason) == (alone.text, alone.finish_reason)


def _variants() -> dict[str, ModelSpec]:
    """A spec for each kind of part that reads positions, masks or state."""
    base = LM.spec
    layer = base.layers[0]

    def of(name: str, layer: LayerSpec = layer, embedding: Embedding = base.embedding) -> tuple[str, ModelSpec]:
        return name, dataclasses.replace(base, layers=(layer, layer), embedding=embedding)

    def rope(**options: Any) -> LayerSpec:
        position = dataclasses.replace(layer.mixer.position, **options)
        return dataclasses.replace(layer, mixer=dataclasses.replace(layer.mixer, position=position))

    def mixer(**options: Any) -> LayerSpec:
        return dataclasses.replace(layer, mixer=dataclasses.replace(layer.mixer, **options))

    return dict(
        [
            of("learned positions", mixer(position=None, bias=True), Embedding(Learned(base.context))),
            of("sliding window", mixer(window=5)),
            of("normalised heads", mixer(qk_norm=Norm())),
            of("many query heads", mixer(kv_heads=1)),
            of("as many keys", mixer(kv_heads=4)),
            of("interleaved", rope(interleaved=True, size=4)),
            of("yarn", rope(scaling=Yarn(4.0, 16))),
            of("llama 3", rope(scaling=Llama3(8.0, 1.0, 4.0, 32))),
            *[of(wiring, dataclasses.replace(layer, wiring=wiring)) for wiring in ("post", "sandwich", "parallel")],
            of("layer norm", dataclasses.replace(layer, norm=Norm("layer", bias=True), ffn=MLP(64, "gelu_tanh", True))),
        ]
    )


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", _variants())
def test_every_kind_of_part_in_a_ragged_crowd(name: str) -> None:
    model = initialise(Model(_variants()[name]))
    model.embedding.weight.data.mul_(50)
    model.head.weight.data.mul_(50)
    lm = LanguageModel(model, LM.tokenizer)
    crowd = Engine(lm, max_batch=3, prefill_tokens=12).generate(PROMPTS, dataclasses.replace(GREEDY, ignore_eos=True))
    for answer in crowd:
        assert answer.tokens == slow_greedy(lm, answer.prompt, 12)
    scores = Engine(lm).score([answer.prompt for answer in crowd], [answer.tokens for answer in crowd])
    for answer, score in zip(crowd, scores, strict=True):
        assert answer.logprobs == pytest.approx(score, abs=2e-4)


@pytest.mark.usefixtures("unchecked")
def test_seeds_belong_to_requests() -> None:
    sampling = Sampling(max_tokens=10, seed=5)
    alone = Engine(LM).generate(["hello"], sampling)[0]
    crowd = Engine(LM).generate(["x", "hello", "y", "hello"], sampling)
    assert crowd[1].tokens == crowd[3].tokens == alone.tokens
    assert Engine(LM).generate(["hello"], dataclasses.replace(sampling, seed=6))[0].tokens != alone.tokens
    fresh = {tuple(answer.tokens) for answer in Engine(LM).generate(["hello"] * 4, Sampling(max_tokens=10))}
    assert len(fresh) > 1


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(max_tokens=20, temperature=0.7, top_p=0.9, seed=1)])
def test_logprobs_are_those_of_a_full_forward(sampling: Sampling) -> None:
    engine = Engine(LM, max_batch=3)
    answers = engine.generate(PROMPTS, sampling)
    scores = engine.score([answer.prompt for answer in answers], [answer.tokens for answer in answers])
    for answer, score in zip(answers, scores, strict=True):
        assert answer.logprobs == pytest.approx(score, abs=2e-4)
        whole = torch.tensor([answer.prompt + answer.tokens])
        full = LM.model(whole).logits.log_softmax(-1)[0]
        expected = [full[len(answer.prompt) + i - 1, token].item() for i, token in enumerate(answer.tokens)]
        assert score == pytest.approx(expected, abs=2e-4)


@pytest.mark.usefixtures("unchecked")
def test_a_stream_put_together_is_the_completion() -> None:
    sampling = Sampling(max_tokens=16, seed=2, stop=("7", "ab"))
    engine = Engine(LM, max_batch=2)
    answers = engine.generate(PROMPTS, sampling)
    events = list(engine.stream(PROMPTS, sampling))
    for index, answer in enumerate(answers):
        own = [event for event in events if event.index == index]
        assert [event.token for event in own if event.token is not None] == answer.tokens
        assert "".join(event.text for event in own) == answer.text
        assert [event.finish_reason for event in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1].finish_reason == answer.finish_reason


@pytest.mark.usefixtures("unchecked")
def test_stop_strings_are_cut() -> None:
    engine = Engine(LM)
    free = engine.generate(["hello"], Sampling(max_tokens=12, temperature=0.0))[0]
    place = 5
    stop = free.text[place : place + 2]
    cut = engine.generate(["hello"], Sampling(max_tokens=12, temperature=0.0, stop=(stop,)))[0]
    assert cut.finish_reason == "stop"
    assert cut.text == free.text[: free.text.index(stop)]
    assert cut.tokens == free.tokens[: len(cut.tokens)]
    assert LM.tokenizer.decode(cut.tokens).startswith(cut.text)
    assert cut.logprobs == pytest.approx(free.logprobs[: len(cut.tokens)], abs=1e-5)


@pytest.mark.usefixtures("unchecked")
def test_end_of_text_and_stop_ids_end_the_answer() -> None:
    free = Engine(LM).generate(["hello"], GREEDY)[0]
    end = next(token for place, token in enumerate(free.tokens) if place > 3 and token not in free.tokens[:place])
    place = free.tokens.index(end)
    by_id = Engine(LM).generate(["hello"], dataclasses.replace(GREEDY, stop_ids=(end,)))[0]
    by_eos = Engine(dataclasses.replace(LM, generation={"eos_token_id": end})).generate(["hello"], GREEDY)[0]
    assert by_id == by_eos
    assert by_id.tokens == free.tokens[: place + 1]
    assert by_id.finish_reason == "stop"
    assert by_id.text == LM.tokenizer.decode(free.tokens[:place])
    ignoring = dataclasses.replace(GREEDY, ignore_eos=True)
    assert (
        Engine(dataclasses.replace(LM, generation={"eos_token_id": end})).generate(["hello"], ignoring)[0].tokens
        == free.tokens
    )


def test_the_context_ends_the_answer() -> None:
    answers = Engine(LM).generate([[1] * 60, [1] * 64, [1] * 63], Sampling(max_tokens=50, temperature=0.0))
    assert [len(answer.tokens) for answer in answers] == [4, 0, 1]
    assert [answer.finish_reason for answer in answers] == ["length"] * 3
    assert [event.index for event in Engine(LM).stream([[1] * 64], GREEDY)] == [0]


def test_without_a_tokenizer() -> None:
    lm = small(tokenizer=False)
    answer = Engine(lm).generate([[1, 2, 3]], GREEDY)[0]
    assert answer.tokens == slow_greedy(lm, [1, 2, 3], 12)
    assert answer.text == ""


@pytest.mark.usefixtures("unchecked")
def test_prompts_may_be_tensors() -> None:
    assert Engine(LM).generate(torch.tensor([[1, 2, 3]]), GREEDY) == Engine(LM).generate([[1, 2, 3]], GREEDY)  # pyright: ignore


def test_no_logprobs_where_none_are_asked_for() -> None:
    quiet = Engine(LM).generate(["a"], dataclasses.replace(GREEDY, logprobs=False))[0]
    assert quiet.logprobs == []
    assert quiet.tokens == Engine(LM).generate(["a"], GREEDY)[0].tokens


def test_scores_of_texts_are_scores_of_their_ids() -> None:
    engine = Engine(LM)
    prompt = engine.generate(["hello"], GREEDY)[0].prompt
    ids = engine.score([prompt], [LM.tokenizer.encode(" world")])
    assert engine.score(["hello"], [" world"])[0] == pytest.approx(ids[0])
    assert engine.score(["hello"], [""]) == [[]]
    assert engine.score([], []) == []
    tight = Engine(LM, prefill_tokens=1).score(["hello", "a", "bcd"], [" world", "b", "斗"])
    assert [len(each) for each in tight] == [6, 1, 3]
    for got, wanted in zip(tight, engine.score(["hello", "a", "bcd"], [" world", "b", "斗"]), strict=True):
        assert got == pytest.approx(wanted, abs=1e-4)


@pytest.mark.usefixtures("unchecked")
def test_an_abandoned_stream_leaves_nothing_broken() -> None:
    lm = small()
    lm.model.train()
    engine = Engine(lm)
    wanted = engine.generate(PROMPTS, GREEDY)
    stream = engine.stream(PROMPTS, GREEDY)
    for _ in range(9):
        next(stream)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    with pytest.raises(KeyboardInterrupt):
        stream.throw(KeyboardInterrupt())
    assert lm.model.training
    for again, first in zip(engine.generate(PROMPTS, GREEDY), wanted, strict=True):
        assert (again.tokens, again.text, again.finish_reason) == (first.tokens, first.text, first.finish_reason)
        # What the prefix cache knows was made in passes of other shapes, whose sums are rounded otherwise.
        assert again.logprobs == pytest.approx(first.logprobs, abs=1e-5)


def test_training_goes_on_after_generating() -> None:
    """What the engine leaves behind in caches must still carry gradients."""
    lm = small(seed=3)
    Engine(lm).generate(["hello"], GREEDY)
    lm.model(torch.tensor([[1, 2, 3, 4]])).logits.logsumexp(-1).sum().backward()
    assert all(parameter.grad is not None for parameter in lm.model.parameters())


def test_nothing_to_do() -> None:
    assert Engine(LM).generate([]) == []
    assert list(Engine(LM).stream([])) == []
