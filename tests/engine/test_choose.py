"""Choosing for a batch: penalties equal transformers' and OpenAI's, the short list equals the whole vocabulary, and no
row knows of another."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dougong.base import DougongError
from dougong.engine import Sampling
from dougong.engine.choose import adjusted, choose, sampled
from dougong.engine.filters import distribution, draw, typical
from dougong.engine.grammar import Matcher

pytestmark = pytest.mark.usefixtures("unchecked")


@dataclass
class Ask:
    """A request as far as choosing looks at it."""

    sampling: Sampling
    generator: torch.Generator = field(default_factory=torch.Generator)
    prompt: tuple[int, ...] = ()
    output: tuple[int, ...] = ()
    ends: frozenset[int] = frozenset()
    matcher: Matcher | None = None


def greedy(**options: Any) -> Sampling:
    return Sampling(temperature=0.0, **options)


ids = st.lists(st.integers(0, 11), max_size=8).map(tuple)
logits12 = st.lists(st.integers(-32, 32).map(lambda n: n / 8), min_size=12, max_size=12).map(
    lambda x: torch.tensor([x])
)


@settings(max_examples=50)
@given(logits12, ids, ids, st.sampled_from([0.5, 1.0, 1.3, 2.0]))
def test_repetition_penalty_is_that_of_transformers(
    logits: torch.Tensor, prompt: tuple[int, ...], output: tuple[int, ...], penalty: float
) -> None:
    processors = pytest.importorskip("transformers").generation.logits_process
    wanted = logits
    if prompt or output:
        reference = processors.RepetitionPenaltyLogitsProcessor(penalty)
        wanted = reference(torch.tensor([prompt + output]), logits.clone())
    found = adjusted(logits, [Ask(greedy(repetition_penalty=penalty), prompt=prompt, output=output)])
    torch.testing.assert_close(found, wanted)


@given(logits12, ids, st.floats(-2, 2), st.floats(-2, 2))
def test_presence_and_frequency_are_openais_formula(
    logits: torch.Tensor, output: tuple[int, ...], presence: float, frequency: float
) -> None:
    ask = Ask(greedy(presence_penalty=presence, frequency_penalty=frequency), prompt=(1, 2, 3), output=output)
    found = adjusted(logits, [ask])[0].tolist()
    for token, value in enumerate(logits[0].tolist()):
        count = output.count(token)
        assert found[token] == pytest.approx(value - count * frequency - (count > 0) * presence, abs=1e-5)


@given(logits12, ids, st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=3).map(tuple), min_size=1, max_size=4))
def test_banned_sequences_are_those_of_transformers(
    logits: torch.Tensor, text: tuple[int, ...], banned: list[tuple[int, ...]]
) -> None:
    processors = pytest.importorskip("transformers").generation.logits_process
    reference = processors.NoBadWordsLogitsProcessor([list(each) for each in banned])
    text = (0, 1, *text)
    wanted = reference(torch.tensor([text]), logits.clone())
    for cut in (2, len(text)):  # wherever the prompt ends and the answer begins
        found = adjusted(logits, [Ask(greedy(banned=tuple(banned)), prompt=text[:cut], output=text[cut:])])
        assert found.isinf().tolist() == wanted.isinf().tolist()


def test_bias_bans_and_forced_tokens() -> None:
    logits = torch.zeros(5, 6)
    rows = [
        Ask(greedy(logit_bias={3: 2.0, 99: 5.0})),  # type: ignore[arg-type]
        Ask(greedy(banned=(0, 1))),
        Ask(greedy(forced=(5, 4))),
        Ask(greedy(forced=(5, 4)), output=(5,)),
        Ask(greedy(forced=(5, 4)), output=(5, 4)),
    ]
    before = logits.clone()
    assert [choice.token for choice in choose(logits, rows)] == [3, 2, 5, 4, 0]
    assert torch.equal(logits, before)
    assert [choice.logprob for choice in choose(logits, rows)] == pytest.approx([-math.log(6)] * 5)


def test_no_end_before_min_tokens() -> None:
    logits = torch.tensor([[0.0, 1.0, 9.0]])
    ask = Ask(greedy(min_tokens=2), ends=frozenset({2}))
    assert choose(logits, [ask])[0].token == 1
    ask.output = (0, 0)
    assert choose(logits, [ask])[0].token == 2


def test_where_nothing_is_allowed_no_token_comes_and_the_others_go_on() -> None:
    logits = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    for temperature in (0.0, 1.0):
        asks = [Ask(Sampling(temperature=temperature, banned=(0, 1, 2, 3))), Ask(Sampling(temperature=temperature))]
        first, second = choose(logits, asks)
        assert first.token is None
        assert second.token in range(4)


@given(logits12, st.floats(0.05, 1.0, exclude_max=True))
def test_typical_is_that_of_transformers(logits: torch.Tensor, p: float) -> None:
    processors = pytest.importorskip("transformers").generation.logits_process
    weights = logits.softmax(-1)[0]
    away = (weights.log() - (weights * weights.log()).sum()).abs()
    kept = set((typical(logits, p)[0] > -math.inf).nonzero()[:, 0].tolist())
    wanted = set((processors.TypicalLogitsWarper(p)(torch.zeros(1, 1), logits)[0] > -math.inf).nonzero()[:, 0].tolist())
    # Sums that meet p, and distances that differ by rounding, may fall on either side.
    sums = weights[away.argsort()].cumsum(-1)
    if float((sums - p).abs().min()) > 1e-5 and not _nearly_tied(away):
        assert kept == wanted
    assert kept and (kept <= wanted or wanted <= kept or _nearly_tied(away))


def _nearly_tied(values: torch.Tensor) -> bool:
    gaps = values.sort().values.diff()
    return bool(((gaps > 0) & (gaps < 1e-5)).any())


CUTS = [
    Sampling(),
    Sampling(temperature=0.5, top_k=5),
    Sampling(top_k=1),
    Sampling(temperature=1.5, top_k=20, top_p=0.8, min_p=0.02),
    Sampling(top_p=0.6),
    Sampling(temperature=0.7, top_p=0.95, min_p=0.01),
    Sampling(top_p=0.9, typical_p=0.5),
    Sampling(top_k=30, typical_p=0.7),
    Sampling(min_p=0.1),
    Sampling(typical_p=0.3),
]


@pytest.mark.parametrize("cut", CUTS, ids=range(len(CUTS)))
def test_the_order_of_filters_is_that_of_transformers(cut: Sampling) -> None:
    generation = pytest.importorskip("transformers").generation
    logits = torch.randn(16, 50, generator=torch.Generator().manual_seed(3)) * 3
    process = generation.logits_process
    scores = process.TemperatureLogitsWarper(cut.temperature)(torch.zeros(16, 1), logits)
    if cut.top_k is not None:
        scores = process.TopKLogitsWarper(cut.top_k)(torch.zeros(16, 1), scores)
    if cut.top_p < 1:
        scores = process.TopPLogitsWarper(cut.top_p)(torch.zeros(16, 1), scores)
    if cut.min_p > 0:
        scores = process.MinPLogitsWarper(cut.min_p)(torch.zeros(16, 1), scores)
    if cut.typical_p < 1:
        scores = process.TypicalLogitsWarper(cut.typical_p)(torch.zeros(16, 1), scores)
    torch.testing.assert_close(distribution(logits, cut), scores.softmax(-1), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("spread", [0.05, 4.0], ids=["flat", "peaked"])
@pytest.mark.parametrize("cut", CUTS, ids=range(len(CUTS)))
def test_the_short_list_draws_from_the_whole_vocabularys_distribution(cut: Sampling, spread: float) -> None:
    """One number in the middle of each token's share of [0, 1) must give every token that the filters keep, once in
    proportion: compared as exact shares by a fine grid of numbers."""
    vocab, grid = 1100, 3000
    logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(1)) * spread
    logits[0, 7:9] = logits[0, 5]  # some ties
    exact = distribution(logits, cut)[0].double()
    uniform = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid
    found = torch.cat([sampled(logits.expand(300, -1), [cut] * 300, part) for part in uniform.split(300)])
    shares = torch.bincount(found, minlength=vocab).double() / grid
    assert float(shares[exact == 0].sum()) == 0
    assert float((shares - exact).abs().max()) < 1.5 / grid


def test_ties_with_the_kth_are_kept_beyond_the_short_list() -> None:
    logits = torch.zeros(1, 100)
    logits[0, :3] = 1.0
    uniform = torch.linspace(0, 0.999, 500, dtype=torch.float64)
    assert set(sampled(logits.expand(500, -1), [Sampling(top_k=2)] * 500, uniform).tolist()) == {0, 1, 2}
    assert len(set(sampled(logits.expand(500, -1), [Sampling(top_k=4)] * 500, uniform).tolist())) == 100


@settings(max_examples=60)
@given(st.integers(1, 6000), st.floats(0, 1, exclude_max=True), st.integers(0, 2**32))
def test_a_draw_by_blocks_inverts_the_cumulative_distribution(size: int, u: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(1, size, generator=generator, dtype=torch.float64).square()
    weights[torch.rand(1, size, generator=generator) < 0.7] = 0
    weights[0, int(torch.randint(size, (1,), generator=generator))] = 0.5
    weights /= weights.sum()
    token = int(draw(weights, torch.tensor([u], dtype=torch.float64)))
    below = float(weights[0, :token].sum())
    assert weights[0, token] > 0
    assert below - 1e-9 <= u <= below + float(weights[0, token]) + 1e-9


def test_the_largest_number_below_one_draws_a_token_that_is_there() -> None:
    weights = torch.zeros(2, 5000)
    weights[:, 10] = 0.3
    weights[:, 4000] = 0.1
    almost = torch.full((2,), math.nextafter(1.0, 0.0), dtype=torch.float64)
    assert draw(weights, almost).tolist() == [4000, 4000]
    assert draw(weights[:, :100], almost).tolist() == [10, 10]


def crowd() -> list[Ask]:
    asks = [
        greedy(),
        Sampling(),
        greedy(logprobs=False, top_logprobs=3),
        Sampling(top_k=3, top_logprobs=2),
        Sampling(top_p=0.5, repetition_penalty=1.5),
        Sampling(top_p=0.5),
        Sampling(typical_p=0.4, logit_bias=((1, 3.0),)),
        greedy(presence_penalty=1.0, frequency_penalty=0.5),
        Sampling(min_p=0.1, banned=(3, (1, 2))),
        Sampling(logprobs=False),
    ]
    return [
        Ask(each, torch.Generator().manual_seed(place), (1, 2, 3), (place, 1, 1), frozenset({4}))
        for place, each in enumerate(asks)
    ]


def test_a_row_is_chosen_as_it_would_be_alone() -> None:
    logits = torch.randn(len(crowd()), 3000, generator=torch.Generator().manual_seed(1)) * 2
    together = choose(logits, crowd())
    for row, alone in enumerate(crowd()):
        single = choose(logits[row : row + 1], [alone])[0]
        assert single.token == together[row].token
        assert single.logprob == pytest.approx(together[row].logprob, abs=1e-5)
        assert [token for token, _ in single.top] == [token for token, _ in together[row].top]


def test_logprobs_and_the_best_ones_are_the_models_own() -> None:
    logits = torch.randn(len(crowd()), 300, generator=torch.Generator().manual_seed(2)) * 2
    own = logits.log_softmax(-1)
    for row, (ask, choice) in enumerate(zip(crowd(), choose(logits, crowd()), strict=True)):
        assert choice.token is not None
        assert choice.logprob == pytest.approx(float(own[row, choice.token]) if ask.sampling.logprobs else 0, abs=1e-5)
        values, tokens = own[row].topk(ask.sampling.top_logprobs)
        assert [token for token, _ in choice.top] == tokens.tolist()
        assert [value for _, value in choice.top] == pytest.approx(values.tolist(), abs=1e-5)
    assert len(choose(logits[:1, :4], [Ask(greedy(top_logprobs=20))])[0].top) == 4


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("logprobs", [True, False])
def test_broken_logits_are_an_error(temperature: float, value: float, logprobs: bool) -> None:
    logits = torch.tensor([[0.0, value, 1.0]])
    with pytest.raises(DougongError, match="not finite"):
        choose(logits, [Ask(Sampling(temperature=temperature, logprobs=logprobs))])


def test_rows_are_chosen_by_their_own_sampling_and_generator() -> None:
    logits = torch.randn(4, 20, generator=torch.Generator().manual_seed(1))
    samplings = [greedy(), Sampling(), Sampling(top_k=2), Sampling()]

    def asks() -> list[Ask]:
        return [Ask(each, torch.Generator().manual_seed(seed)) for seed, each in enumerate(samplings)]

    together = choose(logits, asks())
    for row, ask in enumerate(asks()):
        alone = choose(logits[row : row + 1], [ask])[0]
        assert alone.token == together[row].token
        assert alone.logprob == pytest.approx(together[row].logprob, abs=1e-6)


def test_logprobs_are_untempered() -> None:
    logits = torch.tensor([[0.0, 1.0, 3.0]])
    choice = choose(logits, [Ask(Sampling(temperature=0.3, top_k=1))])[0]
    assert choice.token == 2
    assert choice.logprob == pytest.approx(logits.log_softmax(-1)[0, 2].item())


def test_half_precision_logits_are_read_as_float() -> None:
    logits = torch.tensor([[0.0, 1.0, 3.0]])
    half = choose(logits.bfloat16(), [Ask(greedy(top_logprobs=1))])[0]
    assert half == choose(logits, [Ask(greedy(top_logprobs=1))])[0]
