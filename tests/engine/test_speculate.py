"""Speculation changes nothing but the time: token by token where it is greedy or named, in distribution elsewhere."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dougong.base import DougongError
from dougong.engine import Engine, Sampling
from dougong.engine.choose import Ahead, choose
from dougong.engine.filters import distribution
from dougong.engine.grammar import Grammar
from dougong.engine.propose import WINDOW, DraftModel, FurtherLayers, Guesses, PromptLookup, guess
from dougong.engine.request import Event, Request
from dougong.engine.runner import Runner
from dougong.engine.speculate import Speculative, verify
from dougong.hub import LanguageModel
from dougong.model import Model, ModelSpec, decoder_spec, initialise
from dougong.model.spec import MTP
from dougong.parts.context import Context
from tests.contract.models import SPECS

from .kinds import MEMORY, all_free, moved
from .standin import small

pytestmark = pytest.mark.usefixtures("unchecked")

VOCAB = 6
GREEDY = Sampling(max_tokens=16, temperature=0.0)


def request(
    sampling: Sampling, prompt: tuple[int, ...] = (1, 2), context: int = 64, ends: tuple[int, ...] = ()
) -> Request:
    return Request(0, list(prompt), sampling, None, context, frozenset(ends))


def toy(text: list[int], seed: int = 0, spread: float = 1.5) -> torch.Tensor:
    """Logits (1, V) of a language in which the last two tokens decide."""
    key = seed * 10_007 + sum((token + 1) * 31**place for place, token in enumerate(text[-2:]))
    return torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(key)) * spread


def rows_after(asked: Request, guesses: list[int]) -> torch.Tensor:
    text = asked.prompt + asked.output
    return torch.cat([toy(text + guesses[:count]) for count in range(len(guesses) + 1)])


NAMED = [
    GREEDY,
    Sampling(seed=3),
    Sampling(seed=4, temperature=0.7, top_k=3),
    Sampling(seed=5, top_p=0.8, repetition_penalty=1.4),
    Sampling(seed=6, presence_penalty=0.8, frequency_penalty=0.3, banned=(2,)),
    dataclasses.replace(GREEDY, repetition_penalty=1.5, forced=(3, 3)),
]


@given(st.sampled_from(NAMED), st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=4), min_size=1, max_size=5))
def test_named_guesses_give_the_tokens_that_would_come_without_them(
    sampling: Sampling, rounds: list[list[int]]
) -> None:
    fast, slow = request(sampling), request(sampling)
    for guesses in rounds:
        if fast.finished:
            break
        choices = verify(rows_after(fast, guesses), Guesses(guesses), fast)
        assert [choice.token for choice in choices[:-1]] == guesses[: len(choices) - 1]
        for choice in choices[: slow.room]:
            alone = choose(toy(slow.prompt + slow.output), [slow])[0]
            assert alone.token == choice.token
            assert alone.logprob == pytest.approx(choice.logprob, abs=1e-6)
            slow.accept(alone.token, 0.0)
            fast.accept(choice.token, 0.0)
        assert fast.finished or sampling.greedy or torch.equal(fast.generator.get_state(), slow.generator.get_state())


def chi_squared(counts: torch.Tensor, expected: torch.Tensor) -> None:
    """Mean k - 1 and variance 2 (k - 1): 6 deviations are not met by chance."""
    total, inside = counts.sum(), expected > 0
    assert counts[~inside].sum() == 0
    # Cells that are hardly ever met go together, for the statistic counts on about 5 in each.
    large = inside & (expected * total >= 5)
    rest = inside & ~large
    seen, wanted = list(counts[large]), list((expected * total)[large])
    if bool(rest.any()):
        seen.append(counts[rest].sum())
        wanted.append((expected * total)[rest].sum())
    chi = sum(float((a - b) ** 2 / b) for a, b in zip(seen, wanted, strict=True) if b > 0)
    free = max(1, len(seen) - 1)
    assert chi <= free + 6 * math.sqrt(2 * free) + 6, (chi, free)


DRAWN = [
    Sampling(),
    Sampling(temperature=0.6),
    Sampling(top_k=3),
    Sampling(top_p=0.7, min_p=0.05),
    Sampling(typical_p=0.6, repetition_penalty=1.3),
    Sampling(temperature=1.4, banned=((1, 4), 5), logit_bias=((0, 1.0),)),
]


def truth(sampling: Sampling, prompt: tuple[int, ...]) -> torch.Tensor:
    """Exact probabilities (V, V) of the next two tokens."""

    def after(output: list[int]) -> torch.Tensor:
        from dougong.engine.choose import adjusted

        row = Ahead(sampling, torch.Generator(), prompt, output, frozenset())
        return distribution(adjusted(toy([*prompt, *output]), [row]), sampling)[0].double()

    first = after([])
    return torch.stack([first[token] * after([token]) for token in range(VOCAB)])


@pytest.mark.parametrize("number", range(len(DRAWN)))
def test_guesses_that_were_drawn_leave_the_distribution_exact(number: int) -> None:
    """Guesses come from a flatter language, or another one, with the same filters or with none; pairs are counted."""
    base = DRAWN[number]
    other = base if number % 3 else Sampling(temperature=2.0)
    generator = torch.Generator().manual_seed(number)
    counts = torch.zeros(VOCAB, VOCAB, dtype=torch.float64)
    confirmed = 0
    samples = 300
    for seed in range(samples):
        asked = request(dataclasses.replace(base, seed=1000 * number + seed, max_tokens=2))
        while not asked.finished:
            text = asked.prompt + asked.output
            tokens: list[int] = []
            q: list[torch.Tensor] = []
            for _ in range(2):
                row = Ahead(other, generator, asked.prompt, [*asked.output, *tokens], frozenset())
                token, probabilities = guess(toy(text + tokens, seed=1 if number % 2 else 0, spread=1.0), row)
                assert probabilities is not None
                tokens.append(token)
                q.append(probabilities)
            choices = verify(rows_after(asked, tokens), Guesses(tokens, torch.cat(q)), asked)
            confirmed += len(choices) - 1
            for choice in choices:
                if not asked.finished:
                    asked.accept(choice.token, choice.logprob)
        counts[asked.output[0], asked.output[1]] += 1
    assert confirmed > samples // 10
    chi_squared(counts, truth(base, (1, 2)))


def test_equal_distributions_confirm_everything() -> None:
    asked = request(Sampling(seed=0))
    for _ in range(50):
        tokens: list[int] = []
        q: list[torch.Tensor] = []
        for _ in range(3):
            ahead = Ahead(asked.sampling, asked.generator, asked.prompt, [*asked.output, *tokens], frozenset())
            token, probabilities = guess(toy(asked.prompt + asked.output + tokens), ahead)
            assert probabilities is not None
            tokens.append(token)
            q.append(probabilities)
        assert len(verify(rows_after(asked, tokens), Guesses(tokens, torch.cat(q)), asked)) == 4


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 6), st.integers(0, 29))
def test_prompt_lookup_finds_the_longest_ending(text: list[int], most: int, cut: int) -> None:
    cut = min(cut, len(text) - 1) + 1
    lookup = PromptLookup()
    asked = request(GREEDY, tuple(text[:cut]))
    found = lookup.propose(asked, most)
    for token in text[cut:]:
        asked.output.append(token)
        found = lookup.propose(asked, most)  # told bit by bit, as answers grow
    expected: list[int] = []
    for size in (3, 2, 1):
        ending = text[-size:]
        places = [at for at in range(len(text) - size) if text[at : at + size] == ending] if len(text) > size else []
        if places:
            expected = text[places[-1] + size :][:most]
            break
    assert found.tokens == expected


def run(driver: Speculative, runner: Runner, pauses: torch.Generator | None = None) -> list[Event]:
    """All steps of a driver; now and then it gives its state back, and a long prompt comes in two pieces."""
    events: list[Event] = []
    while not driver.finished:
        if pauses is not None and float(torch.rand(1, generator=pauses)) < 0.3:
            driver.pause()
        work = driver.work()
        events += driver.take(runner.step(work))
    return events


@torch.no_grad()
def spread(spec: ModelSpec, seed: int = 0) -> Model:
    """A model whose logits leave no ties to rounding."""
    model = moved(spec, seed)
    model.embedding.weight.mul_(5)
    return model


KINDS = [
    "llama",
    "mistral",
    "softcap",
    "alibi",
    *[name for name in SPECS if name in ("mamba2", "mamba", "deltanet", "mla")],
]


@pytest.mark.parametrize("how", ["lookup", "draft", "itself"])
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_state_takes_refused_tokens_back(name: str, how: str) -> None:
    spec = SPECS[name]
    model, other = spread(spec), spread(spec, seed=1)
    runner = Runner(model, MEMORY, 4)
    second = Runner(model if how == "itself" else other, MEMORY, 4)
    prompt = (5, 6, 7, 5, 6, 7, 5, 6)
    for sampling in (GREEDY, Sampling(max_tokens=16, seed=3)):
        proposer = PromptLookup() if how == "lookup" else DraftModel(second, spec.vocab, 0)
        if how != "lookup" and not sampling.greedy:
            continue  # then only the distribution is the same
        plain = request(sampling, prompt)
        with torch.no_grad():
            while not plain.finished:
                logits = model(torch.tensor([plain.prompt + plain.output])).logits[:, -1]
                choice = choose(logits, [plain])[0]
                plain.accept(choice.token, choice.logprob)
        for pauses in (None, torch.Generator().manual_seed(1)):
            asked = request(sampling, prompt)
            driver = Speculative(runner, asked, proposer)
            events = run(driver, runner, pauses)
            assert asked.output == plain.output == [event.token for event in events]
            if how == "itself":
                assert driver.guessed == driver.confirmed > 0
            if how == "lookup":
                proposer = PromptLookup()
    assert all_free(runner) and all_free(second)


def mtp_model(depth: int, vocab: int = 40) -> Model:
    base = decoder_spec(vocab, 32, 2, 4, 64, kv_heads=2)
    spec = dataclasses.replace(base, mtp=MTP(depth, base.layers[0], base.layers[0].norm))
    return spread(spec)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_further_layers_guess_what_they_were_trained_to(depth: int) -> None:
    """On a text within their window the guesses are those of the layers run over the whole text."""
    model = mtp_model(depth)
    layers = FurtherLayers(model, 0)
    text = torch.randint(0, 40, (1, 9), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        hidden = model(text[:, :-1]).hidden
        layers.observe(0, hidden[0, :3])
        layers.observe(2, hidden[0, 2:])  # what is told twice counts once
        asked = request(dataclasses.replace(GREEDY, draft_tokens=depth), tuple(text[0].tolist()))
        found = layers.propose(asked, depth).tokens
        whole = text
        for step in range(depth):
            assert model.mtp is not None
            ctx = Context.of(whole)
            states = model.mtp(
                torch.cat((hidden, hidden[:, :1].expand(-1, step + 1, -1)), 1), model.embedding(whole, ctx), ctx
            )
            place = text.shape[1] - 2  # the last one whose state the model has made
            token = int(model.logits(states[step])[0, place].argmax())
            assert found[step] == token
            whole = torch.cat((whole, torch.tensor([[token]])), 1)


@pytest.mark.parametrize("depth", [1, 2])
def test_speculation_with_further_layers_is_greedy_decoding(depth: int) -> None:
    model = mtp_model(depth)
    lm = LanguageModel(model, None, generation={"eos_token_id": None})
    engine = Engine(lm, memory=MEMORY)
    prompts = [[1, 2, 3], list(range(30)), [7]]
    plain = engine.generate(prompts, GREEDY)
    fast = engine.generate(prompts, dataclasses.replace(GREEDY, speculation="mtp"))
    for a, b in zip(plain, fast, strict=True):
        assert a.tokens == b.tokens
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-3)
    again = [engine.generate(prompts, Sampling(max_tokens=12, seed=1, speculation="mtp")) for _ in range(2)]
    assert [each.tokens for each in again[0]] == [each.tokens for each in again[1]]
    assert WINDOW < 30 and engine.runner.open_sequences == 0


def tiny(seed: int) -> LanguageModel:
    model = initialise(Model(decoder_spec(5, 16, 1, 2, 32, kv_heads=1)), seed)
    model.embedding.weight.data.mul_(12)
    return LanguageModel(model, None, generation={"eos_token_id": None})


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.8, top_k=3)], ids=["free", "cut"])
def test_a_draft_model_leaves_the_engines_distribution_exact(sampling: Sampling) -> None:
    lm, draft = tiny(0), tiny(1)
    engine = Engine(lm, draft=draft, memory=MEMORY)
    count = 300
    samplings = [
        dataclasses.replace(sampling, max_tokens=2, seed=seed, speculation="draft", draft_tokens=2)
        for seed in range(count)
    ]
    counts = torch.zeros(5, 5, dtype=torch.float64)
    for answer in engine.generate([[1, 2]] * count, samplings):
        counts[answer.tokens[0], answer.tokens[1]] += 1
    with torch.no_grad():
        first = distribution(lm.model(torch.tensor([[1, 2]])).logits[:, -1], sampling)[0].double()
        exact = torch.stack(
            [
                first[token] * distribution(lm.model(torch.tensor([[1, 2, token]])).logits[:, -1], sampling)[0].double()
                for token in range(5)
            ]
        )
    chi_squared(counts, exact)


LM = small(context=64)
PROMPTS = ["hello hello hello", "once upon a time, once upon"]


@pytest.mark.parametrize("how", ["prompt_lookup", "draft"])
def test_in_the_engine_with_stops_grammars_and_several_answers(how: Any) -> None:
    engine = Engine(LM, draft=small(context=64, seed=1, depth=1), max_batch=3, memory=MEMORY)
    short = dataclasses.replace(GREEDY, max_tokens=9)
    grammar = Grammar.json_schema({"type": "array", "maxItems": 2}, max_string=4)
    samplings = [
        dataclasses.replace(short, stop=("7", "ab"), top_logprobs=2),
        dataclasses.replace(short, max_tokens=1, logit_bias=((65, 9.0),)),
        dataclasses.replace(short, max_tokens=25, grammar=grammar),
        dataclasses.replace(short, n=2, repetition_penalty=1.2),
    ]
    for sampling in samplings:
        plain = engine.generate(PROMPTS, sampling)
        fast = engine.generate(PROMPTS, dataclasses.replace(sampling, speculation=how))
        for a, b in zip(plain, fast, strict=True):
            assert (a.tokens, a.text, a.finish_reason, a.choice) == (b.tokens, b.text, b.finish_reason, b.choice)
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-3)
            assert [[token for token, _ in top] for top in a.tops] == [[token for token, _ in top] for top in b.tops]
    assert engine.runner.open_sequences == 0


def test_drawn_answers_by_lookup_are_those_of_the_seed() -> None:
    engine = Engine(LM, memory=MEMORY)
    sampling = Sampling(max_tokens=30, seed=5, n=2, temperature=0.8)
    plain = engine.generate(PROMPTS, sampling)
    fast = engine.generate(PROMPTS, dataclasses.replace(sampling, speculation="prompt_lookup"))
    assert [answer.tokens for answer in plain] == [answer.tokens for answer in fast]


def test_a_draft_model_with_more_or_fewer_rows_helps_too() -> None:
    draft = small(tokenizer=False, context=40)  # 50 rows where the model has 259, and a shorter context
    engine = Engine(small(tokenizer=False, context=64), draft=draft, memory=MEMORY)
    wider = Engine(draft, draft=LM_BARE, memory=MEMORY)
    for each in (engine, wider):
        plain = each.generate([[1, 2, 3]], dataclasses.replace(GREEDY, max_tokens=40))
        fast = each.generate([[1, 2, 3]], dataclasses.replace(GREEDY, max_tokens=40, speculation="draft"))
        assert plain[0].tokens == fast[0].tokens


LM_BARE = LanguageModel(small(context=64).model, None, generation={"eos_token_id": None})


def test_what_speculation_needs() -> None:
    with pytest.raises(DougongError, match="no further layers"):
        Engine(LM).generate(["a"], Sampling(speculation="mtp"))
    with pytest.raises(DougongError, match="no draft model"):
        Engine(LM).generate(["a"], Sampling(speculation="draft"))
    with pytest.raises(DougongError, match="must have the same tokenizer"):
        from dougong.tokenizer import train_tokenizer

        other = dataclasses.replace(small(), tokenizer=train_tokenizer(["aa bb"] * 4, 262))
        Engine(LM, draft=other).generate(["a"], Sampling(speculation="draft"))
