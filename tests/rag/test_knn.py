"""kNN-LM by the engine: the formula, whatever is asked beside it, and a lower perplexity with a real model."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import dougong
from dougong.base import DougongError
from dougong.compress import quantize
from dougong.engine import Engine, Grammar, Sampling
from dougong.hub import LanguageModel
from dougong.model import ModelSpec, decoder_spec
from dougong.rag.datastore import Datastore
from dougong.rag.knn import KnnLM, surprise
from dougong.tokenizer import byte_tokenizer
from tests.engine.kinds import moved
from tests.engine.standin import small

GREEDY = Sampling(max_tokens=20, temperature=0.0, ignore_eos=True)
STORED = [list(b"a text that was read before this one"), list(b"another text, of other words"), list(b"yes and no")]
PROMPTS = [list(b"a te"), list(b"another text that was"), list(b"n")]


def made(stored: list[list[int]] = STORED, storage: str = "float32") -> tuple[LanguageModel, Datastore]:
    tokenizer = byte_tokenizer()
    spec = decoder_spec(tokenizer.vocab_size, width=64, depth=2, heads=4, kv_heads=2, context=64, tied=False)
    lm = LanguageModel(moved(spec), tokenizer)
    if storage != "float32":
        quantize(lm, storage)
    datastore = Datastore(lm.spec.width, lm.spec.vocab)
    datastore.add_texts(Engine(lm), stored)
    return lm, datastore


@torch.no_grad()
def directly(lm: LanguageModel, tokens: list[int], stored: list[list[int]], knn: KnnLM) -> Tensor:
    """Probabilities (T, V) after each token, place by place, from the model's forward pass and the paper's formula."""
    keys = torch.cat([lm.model(torch.tensor([row])).hidden[0, :-1] for row in stored]).float()
    values = [token for row in stored for token in row[1:]]
    out = lm.model(torch.tensor([tokens]))
    told = []
    for query, own in zip(out.hidden[0].float(), out.logits[0].float().softmax(-1), strict=True):
        far = ((keys - query) ** 2).sum(-1)
        nearest = far.argsort()[: knn.k]
        scale = max(1e-6, float(far[nearest].mean())) if knn.temperature is None else knn.temperature
        weights = (-far[nearest] / scale).softmax(-1)
        looked_up = torch.zeros(lm.spec.vocab)
        for weight, which in zip(weights, nearest.tolist(), strict=True):
            looked_up[values[which]] += weight
        told.append(knn.lam * looked_up + (1 - knn.lam) * own)
    return torch.stack(told)


SETTINGS = [(0.3, 4, 50.0), (0.25, 16, None), (0.9, 1, 1.0), (1.0, 5, None)]


@pytest.mark.parametrize(("lam", "k", "temperature"), SETTINGS)
@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_perplexity_and_greedy_text_are_those_of_the_formula(
    storage: str, lam: float, k: int, temperature: float | None
) -> None:
    lm, datastore = made(storage=storage)
    engine, knn = Engine(lm, page_size=4), KnnLM(datastore, lam=lam, k=k, temperature=temperature)
    texts = [list(b"a text of other words"), list(b"no, yes")]
    if lam < 1:
        total, count = surprise(engine, texts, knn)
        chosen = [directly(lm, each[:-1], STORED, knn)[torch.arange(len(each) - 1), each[1:]] for each in texts]
        assert count == sum(len(each) - 1 for each in texts)
        assert total == pytest.approx(-float(torch.cat(chosen).log().sum()), rel=1e-3)
    answers = engine.generate(PROMPTS, replace(GREEDY, processor=knn, top_logprobs=2))
    for answer, prompt in zip(answers, PROMPTS, strict=True):
        whole = list(prompt)
        for token, logprob, top in zip(answer.tokens, answer.logprobs, answer.tops, strict=True):
            told = directly(lm, whole, STORED, knn)[-1]
            assert float(told[token]) == pytest.approx(float(told.max()), abs=1e-3)
            assert math.exp(logprob) == pytest.approx(float(told[token]), abs=1e-3)
            assert math.exp(top[1][1]) == pytest.approx(float(told.topk(2).values[1]), abs=1e-3)
            whole.append(token)
        assert len(answer.tokens) == GREEDY.max_tokens


def test_no_weight_is_the_plain_engine_to_the_bit() -> None:
    lm, datastore = made()
    engine, knn = Engine(lm), KnnLM(datastore, lam=0.0)
    for sampling in (GREEDY, Sampling(max_tokens=20, seed=3, n=2, top_logprobs=3), replace(GREEDY, beams=2)):
        plain = engine.generate(PROMPTS, sampling)
        assert engine.generate(PROMPTS, replace(sampling, processor=knn)) == plain
    assert engine.score_texts(PROMPTS, processor=knn) == engine.score_texts(PROMPTS)


@pytest.mark.parametrize(
    "asked", [{}, {"temperature": 1.3, "seed": 5, "n": 3}, {"beams": 3}, {"top_p": 0.9, "seed": 1}]
)
def test_all_weight_says_nothing_that_is_not_stored(asked: dict) -> None:
    lm, datastore = made()
    sampling = Sampling(**{"max_tokens": 20, "temperature": 0.0, "ignore_eos": True, **asked})
    answers = Engine(lm).generate(PROMPTS, replace(sampling, processor=KnnLM(datastore, lam=1.0)))
    stored = {token for row in STORED for token in row[1:]}
    assert all(set(answer.tokens) <= stored for answer in answers)
    assert all(math.isfinite(each) for answer in answers for each in answer.logprobs)


def test_what_was_stored_is_repeated() -> None:
    lm, datastore = made([list(b"one two three four")])
    knn = KnnLM(datastore, lam=1.0, k=1)
    (answer,) = Engine(lm).generate([list(b"one")], Sampling(max_tokens=15, temperature=0.0, processor=knn))
    assert answer.text == " two three four"


def test_requests_with_and_without_it_share_a_batch() -> None:
    lm, datastore = made()
    one, other = KnnLM(datastore, lam=0.5), KnnLM(datastore, lam=0.9, k=3)
    samplings = [
        replace(GREEDY, processor=one),
        GREEDY,
        replace(GREEDY, processor=other),
        Sampling(max_tokens=20, seed=1, n=2, processor=one),
        replace(GREEDY, processor=one, grammar=Grammar.regex("[a-z ]{4,9}"), ignore_eos=False),
        replace(GREEDY, processor=other, speculation="prompt_lookup"),
    ]
    together = Engine(lm, page_size=4, prefill_tokens=8).generate(PROMPTS * 2, samplings)
    alone = [each for p, s in zip(PROMPTS * 2, samplings, strict=True) for each in Engine(lm).generate([p], s)]
    assert [each.tokens for each in together] == [each.tokens for each in alone]
    for each, its in zip(together, alone, strict=True):
        assert each.logprobs == pytest.approx(its.logprobs, abs=2e-3)
    (guessed,) = Engine(lm).generate([PROMPTS[2]], replace(GREEDY, processor=other))
    assert together[6].tokens == guessed.tokens  # guesses change nothing
    assert all(each in "abcdefghijklmnopqrstuvwxyz " for each in together[5].text) and together[5].text


@given(st.integers(0, 999), st.sampled_from([0.0, 1e-6, 0.25, 0.999, 1.0]), st.integers(1, 40))
def test_it_is_a_distribution_with_the_share_that_is_asked_for(seed: int, lam: float, k: int) -> None:
    draw = np.random.default_rng(seed)
    datastore = Datastore(6, 12)
    datastore.add(draw.normal(size=(30, 6)).astype(np.float32), draw.integers(0, 5, 30))
    hidden = torch.from_numpy(draw.normal(size=(4, 6)).astype(np.float32) * 10)
    logits = torch.from_numpy(draw.normal(size=(4, 12)).astype(np.float32) * 30)
    before = logits.clone()
    told = KnnLM(datastore, lam=lam, k=k).process(hidden, logits).double().softmax(-1)
    assert torch.equal(logits, before)
    own = logits.double().softmax(-1)
    assert torch.allclose(told.sum(-1), torch.ones(4).double())
    # Of tokens that no place has, what the model says, less the share: the rest is the datastore's.
    assert torch.allclose(told[:, 5:], (1 - lam) * own[:, 5:], rtol=1e-3, atol=1e-30)
    assert ((told[:, :5] - (1 - lam) * own[:, :5]).sum(-1) - lam).abs().max() < 1e-5


def test_numbers_that_are_broken_stay_so() -> None:
    _, datastore = made()
    hidden, logits = torch.zeros(2, 64), torch.zeros(2, datastore.vocab)
    hidden[0], logits[0] = torch.nan, torch.nan
    for lam in (0.3, 1.0):
        told = KnnLM(datastore, lam=lam).process(hidden, logits)
        assert told[0].isnan().all() and not told[1].isnan().any()


@pytest.fixture
def stories(data: Path) -> LanguageModel:
    return dougong.load(next((data / "weights" / "stories260K").glob("*.bin")))


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_a_look_at_the_play_lowers_the_perplexity_of_its_rest(stories: LanguageModel, data: Path, kind) -> None:
    """A model of children's stories meets Shakespeare: what it reads of the play tells it about the rest."""
    text = next((data / "text" / "tinyshakespeare").glob("*.txt")).read_text(encoding="utf-8")
    assert stories.tokenizer is not None
    ids = stories.tokenizer.encode(text[:40_000])
    engine, datastore = Engine(stories), Datastore(stories.spec.width, stories.spec.vocab, kind)
    datastore.add_texts(engine, [ids[:-2000]], 256)
    before, count = surprise(engine, [ids[-2000:]], length=256)
    after, same = surprise(engine, [ids[-2000:]], KnnLM(datastore, k=32), 256)
    assert count == same == 1999
    assert math.exp(after / count) < 0.5 * math.exp(before / count)


def test_settings_that_cannot_be() -> None:
    _, datastore = made()
    for wrong in ({"lam": 1.5}, {"lam": math.nan}, {"k": 0}, {"temperature": 0.0}, {"temperature": math.inf}):
        options: dict[str, Any] = wrong
        ((name, value),) = wrong.items()
        with pytest.raises(DougongError, match=f"^{name} is {value}; expected"):
            KnnLM(datastore, **options)
    with pytest.raises(DougongError, match="empty; add texts"):
        KnnLM(Datastore(8, 8))


def test_models_that_it_cannot_serve() -> None:
    _, datastore = made()
    knn = KnnLM(datastore)
    for other in (small(width=32), small(tokenizer=False, width=64)):
        with pytest.raises(DougongError, match="keys of width 64 and a vocabulary of"):
            Engine(other).generate([[1]], Sampling(processor=knn))
    both_ways: ModelSpec = replace(small(width=64).spec, causal=False)
    with pytest.raises(DougongError, match="reads both ways"):
        knn.check(both_ways)
