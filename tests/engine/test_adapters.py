"""Many adapters on one base in one batch: every request gets what its adapter alone would give it."""

from __future__ import annotations

import asyncio

import pytest
import torch

from dougong.base import DougongError
from dougong.engine import Engine, Sampling, Service
from dougong.hub import LanguageModel
from dougong.model import Model, decoder_spec
from dougong.model.init import initialise
from dougong.tune import LoRA, attach, disabled

GREEDY = Sampling(max_tokens=12, temperature=0.0)
PROMPTS = [[5, 9, 2], [7, 1, 1, 8, 30, 4], [3], [5, 9, 2, 11, 17, 20, 23, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]]


def model(names: tuple[str, ...] = ("a", "b", "c")) -> LanguageModel:
    """A small decoder with an adapter of each name, far from their start."""
    made = Model(decoder_spec(vocab=61, width=32, depth=2, heads=4, context=64, kv_heads=2))
    initialise(made, 0)
    torch.manual_seed(1)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.1)
    lm = LanguageModel(made)
    for index, name in enumerate(names):
        tuning = attach(lm, LoRA(rank=4, alpha=8), match="*", name=name, seed=index)
        for parameter in tuning.parameters().values():
            torch.nn.init.normal_(parameter, 0.0, 0.3)
    return lm


def alone(lm: LanguageModel, name: str, prompt: list[int]) -> tuple[list[int], list[float]]:
    """With all other adapters off, and no other request."""
    off = [each for each in ("a", "b", "c") if each != name]
    with disabled(lm, off):
        done = Engine(lm).generate([prompt], GREEDY)[0]
    return done.tokens, done.logprobs


def test_each_request_of_a_crowd_gets_its_own() -> None:
    lm = model()
    names = ["a", "b", "", "c", "a", ""]
    prompts = [PROMPTS[index % len(PROMPTS)] for index in range(len(names))]
    crowd = Engine(lm, prefill_tokens=8).generate(prompts, GREEDY, adapter=names)
    told = set()
    for name, prompt, done in zip(names, prompts, crowd, strict=True):
        tokens, logprobs = alone(lm, name, prompt)
        assert done.tokens == tokens
        assert done.logprobs == pytest.approx(logprobs, abs=1e-4)
        told.add((name, tuple(tokens)))
    assert len({tokens for _, tokens in told}) > 3  # they do differ


def test_without_a_name_everything_that_is_on_acts_also_in_a_crowd() -> None:
    lm = model(("a", "b"))
    want = Engine(lm).generate(PROMPTS, GREEDY)
    got = Engine(lm).generate(PROMPTS, GREEDY, adapter=[None, "a", None, ""])
    assert [got[index].tokens for index in (0, 2)] == [want[index].tokens for index in (0, 2)]
    assert got[1].tokens != want[1].tokens or got[3].tokens != want[3].tokens


def test_the_prefix_cache_tells_adapters_apart() -> None:
    lm = model()
    engine, prompt = Engine(lm, page_size=4), PROMPTS[3]
    for name in ("a", "b", "", "a"):
        assert engine.generate([prompt], GREEDY, adapter=name)[0].tokens == alone(lm, name, prompt)[0]
    assert engine.stats()["prefix_hit_tokens"] >= 16  # the second "a" found the first


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_tokens=8, beams=2),
        Sampling(max_tokens=8, temperature=0.0, speculation="prompt_lookup"),
        Sampling(max_tokens=8, temperature=1.0, seed=3, n=2),
    ],
)
def test_searches_stand_in_the_adapter_too(sampling: Sampling) -> None:
    lm = model()
    got = Engine(lm).generate([PROMPTS[1]] * 3, sampling, adapter=["a", "", "b"])
    for index, name in enumerate(("a", "", "b")):
        with disabled(lm, [each for each in ("a", "b", "c") if each != name]):
            want = Engine(lm).generate([PROMPTS[1]], sampling)
        assert [each.tokens for each in got[index * sampling.n : (index + 1) * sampling.n]] == [
            each.tokens for each in want
        ]


def test_an_unknown_adapter_is_refused_before_any_work() -> None:
    engine = Engine(model(("english", "chinese")))
    with pytest.raises(DougongError, match=r"no adapter 'englsh'.*'english'"):
        engine.generate(PROMPTS, GREEDY, adapter="englsh")
    with pytest.raises(DougongError, match="none is attached"):
        Engine(model(())).generate(PROMPTS, GREEDY, adapter="a")
    with pytest.raises(DougongError, match="2 adapters for 4 prompts"):
        engine.generate(PROMPTS, GREEDY, adapter=["english", None])
    assert engine.idle


def test_the_service_takes_them() -> None:
    lm = model()

    async def both() -> list[list[int]]:
        service = Service(Engine(lm))
        try:
            answers = await asyncio.gather(
                *(service.generate(PROMPTS[0], GREEDY, adapter=name) for name in ("a", "b", ""))
            )
        finally:
            service.close()
        return [answer[0].tokens for answer in answers]

    assert asyncio.run(both()) == [alone(lm, name, PROMPTS[0])[0] for name in ("a", "b", "")]
