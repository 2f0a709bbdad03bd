"""Beam search finds what transformers' does, with the same scores; and what looking at everything would find."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

import dougong
from dougong.base import DougongError
from dougong.engine import Engine, Sampling
from dougong.engine.beam import BeamSearch
from dougong.engine.grammar import Grammar
from dougong.engine.request import Event, Request
from dougong.engine.runner import Runner
from dougong.hub import LanguageModel
from dougong.model import Model, decoder_spec
from tests.contract.models import SPECS

from .kinds import MEMORY, all_free, moved
from .standin import small

pytestmark = pytest.mark.usefixtures("unchecked")

VOCAB = 20
PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def model() -> Model:
    made = moved(decoder_spec(VOCAB, 32, 2, 4, 64, kv_heads=2, tied=False))
    made.head.weight.data.mul_(2)
    return made


@pytest.fixture(scope="module")
def theirs(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Any:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("beams")
    dougong.save(LanguageModel(model, None, "llama"), folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def search(
    model: Model, sampling: Sampling, ends: tuple[int, ...] = (), pause: bool = False, prompt: list[int] = PROMPT
) -> tuple[BeamSearch, list[Event]]:
    """The driver alone on a runner; `pause`: it gives its state back before every third step."""
    runner = Runner(model, MEMORY, 4)
    requests = [
        Request(0, prompt, sampling, None, model.spec.context, frozenset(ends), choice) for choice in range(sampling.n)
    ]
    driver = BeamSearch(runner, requests)
    events: list[Event] = []
    for step in itertools.count():
        if driver.finished:
            break
        if pause and step % 3 == 2:
            driver.pause()
        with torch.inference_mode():
            events += driver.take(runner.step(driver.work()))
    assert all_free(runner)
    return driver, events


@pytest.mark.parametrize("early", [False, True, "never"])
@pytest.mark.parametrize("penalty", [-1.0, 0.0, 1.0, 2.0])
@pytest.mark.parametrize(("beams", "ends"), [(2, (7,)), (4, (7, 2)), (3, ()), (5, (0, 11))])
def test_texts_and_scores_are_those_of_transformers(
    model: Model, theirs: Any, early: Any, penalty: float, beams: int, ends: tuple[int, ...]
) -> None:
    wanted = theirs.generate(
        torch.tensor([PROMPT]),
        attention_mask=torch.ones(1, len(PROMPT), dtype=torch.int64),
        max_new_tokens=9,
        num_beams=beams,
        num_return_sequences=beams,
        length_penalty=penalty,
        early_stopping=early,
        do_sample=False,
        eos_token_id=list(ends) or None,
        pad_token_id=VOCAB - 1,
        return_dict_in_generate=True,
        output_scores=True,
    )
    sampling = Sampling(max_tokens=9, beams=beams, n=beams, length_penalty=penalty, early_stopping=early)
    driver, _ = search(model, sampling, ends)
    assert [beam.score for beam in driver.best] == pytest.approx(wanted.sequences_scores.tolist(), abs=1e-4)
    for beam, row in zip(driver.best, wanted.sequences[:, len(PROMPT) :].tolist(), strict=True):
        assert beam.tokens == row[: len(beam.tokens)]
        assert all(token == VOCAB - 1 for token in row[len(beam.tokens) :])


def test_penalties_are_those_of_transformers(model: Model, theirs: Any) -> None:
    wanted = theirs.generate(
        torch.tensor([PROMPT]),
        attention_mask=torch.ones(1, len(PROMPT), dtype=torch.int64),
        max_new_tokens=8,
        min_new_tokens=3,
        num_beams=3,
        repetition_penalty=1.4,
        bad_words_ids=[[6], [9, 2]],
        do_sample=False,
        eos_token_id=7,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    sampling = Sampling(max_tokens=8, min_tokens=3, beams=3, repetition_penalty=1.4, banned=(6, (9, 2)))
    driver, events = search(model, sampling, (7,))
    assert driver.best[0].score == pytest.approx(float(wanted.sequences_scores[0]), abs=1e-4)
    told = [event.token for event in events]
    assert told == wanted.sequences[0, len(PROMPT) :].tolist()[: len(told)]


@torch.no_grad()
def test_a_beam_as_wide_as_the_tree_finds_the_best_text(model: Model) -> None:
    tokens = 2
    logs = {}
    for text in itertools.product(range(VOCAB), repeat=tokens):
        own = model(torch.tensor([PROMPT + list(text)])).logits[0].log_softmax(-1)
        logs[text] = sum(float(own[len(PROMPT) - 1 + place, token]) for place, token in enumerate(text))
    best = sorted(logs, key=lambda text: -logs[text])[:3]
    driver, events = search(model, Sampling(max_tokens=tokens, beams=VOCAB, n=3))
    assert [tuple(beam.tokens) for beam in driver.best[:3]] == best
    assert [beam.score * tokens for beam in driver.best[:3]] == pytest.approx([logs[text] for text in best], abs=1e-4)
    for choice, text in enumerate(best):
        own = [event for event in events if event.choice == choice]
        assert tuple(event.token for event in own) == text
        assert sum(event.logprob for event in own) == pytest.approx(logs[text], abs=1e-4)
        assert own[-1].finish_reason == "length"


@pytest.mark.parametrize(
    "name", ["llama", "mistral", *[name for name in ("mamba2", "deltanet", "mla") if name in SPECS]]
)
def test_beams_that_gave_their_state_back_go_on_as_before(name: str) -> None:
    model = moved(SPECS[name])
    sampling = Sampling(max_tokens=10, beams=4, n=2)
    straight, events = search(model, sampling, (7,))
    stopped, others = search(model, sampling, (7,), pause=True)
    assert [beam.tokens for beam in straight.best] == [beam.tokens for beam in stopped.best]
    assert [beam.score for beam in straight.best] == pytest.approx([beam.score for beam in stopped.best], abs=1e-4)
    assert [event.token for event in events] == [event.token for event in others]


def test_one_beam_wide_is_greedy(model: Model) -> None:
    lm = LanguageModel(model, None, generation={"eos_token_id": 7})
    engine = Engine(lm, memory=MEMORY)
    greedy = engine.generate([PROMPT], Sampling(max_tokens=9, temperature=0.0))[0]
    driver, _ = search(model, Sampling(max_tokens=9, beams=1), (7,))
    assert driver.best[0].tokens == greedy.tokens


def test_in_the_engine_beside_others() -> None:
    lm = small(context=64)
    engine = Engine(lm, memory=MEMORY, max_batch=8)
    beams = Sampling(max_tokens=12, beams=3, n=2, top_logprobs=2)
    mixed = engine.generate(["hello", "abc", "hello"], [beams, Sampling(max_tokens=12, temperature=0.0), beams])
    alone = engine.generate(["hello"], beams)
    assert [answer.tokens for answer in mixed[:2]] == [answer.tokens for answer in alone]
    assert [answer.tokens for answer in mixed[3:]] == [answer.tokens for answer in alone]
    for answer in alone:
        scores = engine.score([answer.prompt], [answer.tokens])[0]
        assert answer.logprobs == pytest.approx(scores, abs=2e-4)
        assert answer.text == lm.tokenizer.decode(answer.tokens)
        assert all(len(top) == 2 and top[0][1] >= top[1][1] for top in answer.tops)
    means = [sum(answer.logprobs) / len(answer.tokens) for answer in alone]
    assert means == sorted(means, reverse=True)
    assert engine.runner.open_sequences == 0


def test_beams_under_a_grammar_and_stop_strings() -> None:
    pytest.importorskip("xgrammar")
    lm = small(context=64)
    lm.generation["eos_token_id"] = lm.tokenizer.eos_id  # one way to end, else "yes" is found once for each
    engine = Engine(lm, memory=MEMORY)
    options = ["yes", "yes indeed", "no", "nothing"]
    answers = engine.generate(["well?"], Sampling(max_tokens=20, beams=4, n=4, grammar=Grammar.choice(options)))
    assert sorted(answer.text for answer in answers) == sorted(options)
    free = engine.generate(["hello"], Sampling(max_tokens=12, beams=2))[0]
    stop = free.text[4:6]
    cut = engine.generate(["hello"], Sampling(max_tokens=12, beams=2, stop=(stop,)))[0]
    assert (cut.text, cut.finish_reason) == (free.text[: free.text.index(stop)], "stop")


def test_where_everything_is_banned_the_answer_is_an_error() -> None:
    lm = small(tokenizer=False)
    with pytest.raises(DougongError, match="no token is allowed"):
        Engine(lm, memory=MEMORY).generate([[1]], Sampling(beams=2, banned=tuple(range(lm.spec.vocab))))
