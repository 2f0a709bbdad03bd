"""The preference losses against TRL's trainers over their options, drawn at random: values, gradients, reductions.

Logits go in and TRL's own forward passes and masks make losses of them; what is different on purpose (the docstring of
dougong/align/losses.py) is held to be just that different.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dougong.align import losses
from dougong.base import DougongError
from tests.align import trl
from tests.align.trl import Texts, same

PAIRS = 4
SEEDS = st.integers(0, 10_000)
BETAS = st.sampled_from([1e-3, 0.1, 1.0, 5.0, 50.0])
SMOOTHINGS = st.sampled_from([0.0, 0.01, 0.3, 0.499])
# Unequal, of one token only, and with empty ones among them.
LENGTHS = st.sampled_from([(1, 5), (1, 1), (0, 4)])
some = settings(max_examples=25, deadline=None)


def drawn(seed: int, lengths: tuple[int, int], prompt: tuple[int, int] = (1, 3), rows: int = 2 * PAIRS):
    """Texts, and sums (N,) under a reference."""
    texts = Texts.drawn(seed, rows, prompt, lengths)
    return texts, Texts.drawn(seed + 1, rows).logprobs(texts.answers).sum(-1).detach()


@some
@given(SEEDS, BETAS, LENGTHS, st.sampled_from([(1, 3), (0, 2)]))
def test_dpo(seed, beta, lengths, prompt):
    texts, reference = drawn(seed, lengths, prompt)
    ours = losses.dpo(*texts.sums.chunk(2), *reference.chunk(2), beta)
    same(ours, trl.dpo(texts, reference, "sigmoid", beta), texts.logits)


@some
@given(SEEDS, BETAS, LENGTHS, st.sampled_from([0.0, 0.01, 0.3, 0.45]))
def test_cdpo_makes_trls_robust_loss(seed, beta, lengths, smoothing):
    """TRL has no cDPO any more, but its unbiased form, ((1 - e) L - e L') / (1 - 2 e), with L' of swapped sides."""
    texts, reference = drawn(seed, lengths)
    (chosen, rejected), (one, other) = texts.sums.chunk(2), reference.chunk(2)
    right = losses.cdpo(chosen, rejected, one, other, beta, smoothing).sum / PAIRS
    wrong = losses.cdpo(rejected, chosen, other, one, beta, smoothing).sum / PAIRS
    # (1 - e) L + e L' twice, with the sides swapped, gives L and L' back.
    e = smoothing
    plain, flipped = ((1 - e) * right - e * wrong) / (1 - 2 * e), ((1 - e) * wrong - e * right) / (1 - 2 * e)
    same(((1 - e) * plain - e * flipped) / (1 - 2 * e), trl.dpo(texts, reference, "robust", beta, e), texts.logits)


@some
@given(SEEDS, BETAS, LENGTHS)
def test_ipo(seed, beta, lengths):
    texts, reference = drawn(seed, lengths)
    ours = losses.ipo(*texts.sums.chunk(2), *reference.chunk(2), beta, *texts.tokens.chunk(2))
    same(ours, trl.dpo(texts, reference, "ipo", beta), texts.logits)


@some
@given(SEEDS)
def test_ipo_of_texts_without_a_prompt_counts_only_what_has_a_probability(seed):
    texts, reference = drawn(seed, (2, 5), (0, 1))
    sides = (*texts.sums.chunk(2), *reference.chunk(2), 0.1)
    theirs = trl.dpo(texts, reference, "ipo", 0.1)
    same(losses.ipo(*sides, *texts.answers.sum(-1).float().chunk(2)), theirs, texts.logits)
    ours = losses.ipo(*sides, *texts.tokens.chunk(2)).sum / PAIRS
    assert not torch.allclose(ours, theirs)


@some
@given(SEEDS, BETAS, LENGTHS, SMOOTHINGS, st.sampled_from([0.0, 0.5, 1.0, 10.0]))
def test_cpo(seed, beta, lengths, smoothing, alpha):
    texts = Texts.drawn(seed, 2 * PAIRS, (0, 3), lengths)
    chosen, rejected = texts.sums.chunk(2)
    tokens = texts.tokens.chunk(2)[0]
    ours = losses.cpo(chosen, rejected, beta, alpha, tokens, smoothing)
    theirs = trl.cpo(texts, beta=beta, cpo_alpha=alpha, label_smoothing=smoothing)
    if float(tokens.sum()) or not alpha:
        same(ours, theirs, texts.logits)
    else:
        assert bool(theirs.isnan()) and bool(ours.sum.isfinite())
    # Without likelihood it is DPO without a reference.
    nothing = torch.zeros(PAIRS)
    free = losses.dpo(chosen, rejected, nothing, nothing, beta, smoothing)
    assert torch.equal(losses.cpo(chosen, rejected, beta, 0.0, None, smoothing).sum, free.sum)


@some
@given(SEEDS, BETAS, LENGTHS, SMOOTHINGS, st.sampled_from([0.0, 0.5, 10.0]), st.sampled_from([0.0, 1.0, -0.5, 30.0]))
def test_simpo_and_cpo_simpo(seed, beta, lengths, smoothing, alpha, gamma):
    texts = Texts.drawn(seed, 2 * PAIRS, (1, 3), lengths)
    tokens = texts.tokens
    ours = losses.simpo(*texts.sums.chunk(2), beta, gamma, *tokens.chunk(2), alpha, label_smoothing=smoothing)
    theirs = trl.cpo(texts, "simpo", beta=beta, cpo_alpha=alpha, label_smoothing=smoothing, simpo_gamma=gamma)
    if bool((tokens > 0).all()):
        same(ours, theirs, texts.logits)
    else:
        assert bool(theirs.isnan()) and bool(ours.sum.isfinite())


@some
@given(SEEDS, BETAS, LENGTHS)
def test_orpo(seed, beta, lengths):
    texts = Texts.drawn(seed, 2 * PAIRS, (1, 3), lengths)
    tokens, chosen = texts.tokens, slice(0, PAIRS)
    whole, seen = texts.logprobs(texts.attention).sum(-1)[chosen], texts.attention[chosen, 1:].sum(-1).float()
    ours = losses.orpo(*texts.sums.chunk(2), beta, *tokens.chunk(2), whole, seen)
    theirs = trl.orpo(texts, beta)
    if bool((tokens > 0).all()):
        same(ours, theirs, texts.logits)
    else:
        assert bool(theirs.isnan()) and bool(ours.sum.isfinite())


def test_orpo_of_a_sure_answer_is_finite():
    texts = Texts.drawn(0, 2 * PAIRS)
    with torch.no_grad():
        texts.logits.zero_().scatter_(-1, texts.ids.roll(-1, 1)[..., None], 200.0)
    assert not bool(trl.orpo(texts, 0.1).isfinite())
    ours = losses.orpo(*texts.sums.chunk(2), 0.1, *texts.tokens.chunk(2)).sum
    (gradient,) = torch.autograd.grad(ours, texts.logits)
    assert bool(ours.isfinite()) and bool(gradient.isfinite().all())


@some
@given(
    SEEDS, BETAS, LENGTHS, st.sampled_from([0.0, 0.3, 1.0, 4.0]), st.sampled_from([0.0, 0.7, 1.0]),
    st.sampled_from(["mixed", "good", "bad"]), st.integers(1, 6),
)  # fmt: skip
def test_kto(seed, beta, lengths, desirable, undesirable, kind, rows):
    texts, reference = drawn(seed, lengths, rows=rows)
    others, against = drawn(seed + 2, lengths, rows=rows)
    label = torch.arange(rows) % 2 == 0 if kind == "mixed" else torch.full((rows,), kind == "good")
    theirs = trl.kto(
        texts, reference, label, others, against, beta=beta, desirable_weight=desirable, undesirable_weight=undesirable
    )
    kl = losses.kto_kl(others.sums, against)
    ours = losses.kto(texts.sums, reference, label, kl, beta, desirable, undesirable)
    same(ours, theirs, texts.logits)


@some
@given(
    SEEDS, st.sampled_from(["none", "zero", "mixed"]), st.sampled_from([None, 0.0, 0.01, 3.0]),
    st.sampled_from([0.1, 1.0, 300.0]),
)  # fmt: skip
def test_reward(seed, margins, center, size):
    generator = torch.Generator().manual_seed(seed)
    scores = (size * torch.randn(2 * PAIRS, 1, generator=generator)).requires_grad_()
    margin = {"none": None, "zero": torch.zeros(PAIRS), "mixed": torch.tensor([0.0, 2.5, -1.0, 40.0])}[margins]
    same(losses.reward(*scores[:, 0].chunk(2), margin, center or 0.0), trl.reward(scores, margin, center), scores)


@some
@given(SEEDS, st.sampled_from([0.0, 0.5, 1.0]), st.booleans())
def test_process_reward(seed, share, counted):
    """A token classifier's loss (TRL's own trainer for it is no more), whose mean may be over more than one batch."""
    reference = pytest.importorskip("transformers.loss.loss_utils")
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 6, 2, generator=generator).requires_grad_()
    labels = torch.randint(0, 2, (3, 6), generator=generator)
    labels[torch.rand(3, 6, generator=generator) > share] = -100
    ours = losses.process_reward(logits, labels)
    kept = int((labels != -100).sum())
    assert float(ours.weight) == kept
    if counted:
        theirs = reference.ForTokenClassification(logits, labels, SimpleNamespace(num_labels=2), num_items_in_batch=20)
        same(ours.sum / 20, theirs, logits)
    else:
        theirs = reference.ForTokenClassification(logits, labels, SimpleNamespace(num_labels=2))
        if kept:
            same(ours, theirs, logits)
        else:
            assert bool(theirs.isnan()) and not ours.sum.detach().any()


@some
@given(SEEDS, st.sampled_from(["cpo", "orpo"]), st.sampled_from([2, 4]))
def test_parts_are_one_batch_where_trls_are_several(seed, kind, parts):
    """TRL's likelihood is a mean over the tokens of each part, and the mean of those over the parts."""
    texts = Texts.drawn(seed, 2 * PAIRS)
    (chosen, rejected), tokens = texts.sums.chunk(2), texts.tokens.chunk(2)
    mean = tokens[0].mean()

    def loss(rows: slice) -> losses.Loss:
        sides, counts = (chosen[rows], rejected[rows]), [each[rows] for each in tokens]
        if kind == "cpo":
            return losses.cpo(*sides, 0.1, 1.0, counts[0], mean_tokens=mean)
        return losses.orpo(*sides, 0.1, *counts, mean_tokens=mean)

    step = PAIRS // parts
    cut = [loss(slice(start, start + step)) for start in range(0, PAIRS, step)]
    whole = loss(slice(0, PAIRS))
    assert torch.allclose(sum(each.sum for each in cut), whole.sum, rtol=1e-5)
    if kind == "cpo":
        same(whole, trl.cpo(texts), texts.logits)


def test_what_trl_takes_and_we_refuse():
    texts = Texts.drawn(0, 2 * PAIRS)
    sides = texts.sums.chunk(2)
    assert bool(trl.cpo(texts, beta=0.0).isfinite()) and bool(trl.cpo(texts, label_smoothing=0.5).isfinite())
    with pytest.raises(DougongError, match=r"beta is 0\.0"):
        losses.cpo(*sides, 0.0)
    with pytest.raises(DougongError, match=r"label_smoothing is 0\.5"):
        losses.cpo(*sides, label_smoothing=0.5)
    with pytest.raises(DougongError, match=r"label_smoothing is 0\.5"):
        losses.simpo(*sides, label_smoothing=0.5)
