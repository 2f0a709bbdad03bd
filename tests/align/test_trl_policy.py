"""The losses and advantages of reinforcement learning against TRL's trainers over their options, drawn at random."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dougong.align import advantages as adv
from dougong.align.policy import divergence, policy_objective
from dougong.align.rl_recipe import METHODS, PolicyLoss, Rl
from dougong.base import DougongError
from tests.align import trl
from tests.align.trl import Rollout, same

ROWS, PLACES = 6, 7
HOWS = {"grpo": "sequence", "dapo": "token", "dr_grpo": "length", "bnpo": "token", "luspo": "sum"}
SEEDS = st.integers(0, 10_000)
CLIPS = st.sampled_from([(0.2, 0.2), (0.2, 0.28), (3e-4, 4e-4), (0.9, 10.0)])
some = settings(max_examples=40, deadline=None)


def drawn(seed: int, masked: str = "some", apart: float = 0.3, advantage: str = "mixed") -> Rollout:
    """masked: of answers of 1 to all tokens "some": one is out (cut off, say), "none" or "all" are; "one": all have one
    token. apart: how far the three policies are."""
    generator = torch.Generator().manual_seed(seed)
    length = torch.randint(1, PLACES + 1, (ROWS, 1), generator=generator)
    if masked == "one":
        length = torch.ones_like(length)
    mask = torch.arange(PLACES) < length
    if masked in ("some", "all"):
        mask[int(torch.randint(0, ROWS, (), generator=generator)) if masked == "some" else slice(None)] = False
    policy = (-torch.randn(ROWS, PLACES, generator=generator).abs()).requires_grad_()
    old, reference = (policy.detach() + apart * torch.randn(ROWS, PLACES, generator=generator) for _ in range(2))
    advantages = torch.randn(ROWS, generator=generator)
    factor = {"mixed": 1.0, "none": 0.0, "one": (torch.arange(ROWS) == 0).float()}[advantage]
    return Rollout(policy, old, reference, mask, advantages * factor)


def ours(given: Rollout, how, beta: float, low: float, high: float, level="token"):
    advantages = given.advantages[:, None].expand_as(given.policy)
    return policy_objective(
        given.policy, given.old, advantages, given.mask, how, low, high, given.reference, beta, length=10, level=level
    )


@some
@given(
    SEEDS, st.sampled_from(list(HOWS)), st.sampled_from(["token", "sequence"]), st.sampled_from([0.0, 0.04, 5.0]),
    CLIPS, st.sampled_from(["some", "one", "all"]), st.sampled_from([0.0, 0.3, 3.0]),
    st.sampled_from(["mixed", "none", "one"]),
)  # fmt: skip
def test_every_reduction_level_and_clip(seed, kind, level, beta, clips, masked, apart, advantage):
    rollout = drawn(seed, masked, apart, advantage)
    theirs = trl.grpo(rollout, kind, beta, *clips, level)
    same(ours(rollout, HOWS[kind], beta, *clips, level), theirs, rollout.policy)


@some
@given(SEEDS, st.sampled_from(list(HOWS)), st.sampled_from(["token", "sequence"]), st.sampled_from([2, 3, 6]))
def test_accumulated_micro_batches(seed, kind, level, parts):
    """An update is one however it is cut; TRL's "bnpo" is a mean of micro-batches' means, another one for each cut."""
    rollout, step = drawn(seed), ROWS // parts
    cuts = [rollout.rows(slice(start, start + step)) for start in range(0, ROWS, step)]
    items = rollout.mask.sum()
    theirs = [trl.grpo(each, kind, 0.04, 0.2, 0.28, level, accumulation=parts, items=items) for each in cuts]
    made = [ours(each, HOWS[kind], 0.04, 0.2, 0.28, level) for each in cuts]
    mean = sum(each.sum for each in made) / sum(each.weight for each in made)
    if kind != "bnpo":
        same(mean, sum(theirs), rollout.policy)
    same(mean, trl.grpo(rollout, kind, 0.04, 0.2, 0.28, level), rollout.policy)


@some
@given(SEEDS, st.sampled_from([2, 3]))
def test_dapo_over_several_updates_differs_by_their_shares_of_the_tokens(seed, updates):
    rollout, step = drawn(seed), ROWS // updates
    items = rollout.mask.sum()
    for start in range(0, ROWS, step):
        part = rollout.rows(slice(start, start + step))
        made = ours(part, "token", 0.04, 0.2, 0.28)
        theirs = trl.grpo(part, "dapo", 0.04, 0.2, 0.28, "token", steps=updates, items=items)
        same(made.sum / (items / updates), theirs, rollout.policy)


@some
@given(SEEDS, CLIPS, st.sampled_from(["some", "one", "all"]), st.sampled_from([0.0, 0.1, 1.0]))
def test_rloo(seed, clips, masked, apart):
    """The ratio is of the whole answer. An answer without tokens costs its advantage in TRL, and has no gradient."""
    rollout, rules = drawn(seed, masked, apart), METHODS["rloo"]
    rollout.advantages *= rollout.mask.any(-1)
    theirs = trl.rloo(rollout, *clips)
    same(ours(rollout, rules.how, 0.0, *clips, rules.level), theirs, rollout.policy)


@some
@given(SEEDS)
def test_of_the_first_update_every_level_of_rloo_has_one_gradient(seed):
    rollout = drawn(seed, apart=0.0)
    made = [ours(rollout, how, 0.0, 0.2, 0.2, level) for how, level in (("sequence", "answer"), ("sum", "token"))]
    one, other = (torch.autograd.grad(each.sum / each.weight, rollout.policy)[0] for each in made)
    assert torch.allclose(one, other, atol=1e-6)


def rewards(seed: int, functions: int, kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(ROWS, functions, generator=generator)
    return {"drawn": found, "binary": (found > 0).float(), "equal": torch.full_like(found, 0.1)}[kind]


KINDS = st.sampled_from(["drawn", "binary", "equal"])
WEIGHTS = st.sampled_from([[1.0], [0.3, 2.0], [1.0, 0.0, -0.5]])


@some
@given(SEEDS, KINDS, WEIGHTS, st.sampled_from([2, 3, 6]), st.sampled_from(["group", "none"]))
def test_advantages_within_groups(seed, kind, weights, samples, scale):
    given, each = drawn(seed, "one"), rewards(seed, len(weights), kind)
    theirs = trl.advantages("grpo", each, weights, samples, given, scale_rewards=scale)
    total = (each * torch.tensor(weights)).sum(-1).view(-1, samples)
    found = adv.group_relative(total, scale == "group").flatten()
    # Rounding leaves TRL something of equal rewards, which the smallest deviation then makes larger.
    assert torch.allclose(found, theirs["advantages"], rtol=1e-4, atol=2e-3 if kind == "equal" else 1e-5)
    assert kind != "equal" or not found.any()


@some
@given(SEEDS, KINDS, WEIGHTS, st.sampled_from([2, 3, 6]), st.sampled_from([0.0, 0.05, 2.0]))
def test_advantages_of_one_left_out_with_the_divergence_in_the_reward(seed, kind, weights, samples, beta):
    given, each = drawn(seed, "none"), rewards(seed, len(weights), kind)
    theirs = trl.advantages("rloo", each, weights, samples, given, beta=beta)
    kl = torch.where(given.mask, divergence(given.old, given.reference, "k1"), 0.0).sum(-1)
    total = (each * torch.tensor(weights)).sum(-1) - beta * kl
    found = adv.leave_one_out(total.view(-1, samples)).flatten()
    assert torch.allclose(found, theirs["advantages"], rtol=1e-4, atol=1e-5)


def test_answers_cut_off_and_left_out_are_rows_without_a_mask():
    """TRL's mask_truncated_completions, of which there is no option here: advantages count them, losses do not."""
    given, each = drawn(3, "none"), rewards(3, 1, "drawn")
    theirs = trl.advantages("grpo", each, [1.0], 3, given, truncated=(1, 4))
    assert theirs["completion_mask"].any(-1).tolist() == [True, False, True, True, False, True]
    assert torch.allclose(adv.group_relative(each.view(-1, 3)).flatten(), theirs["advantages"], rtol=1e-4, atol=1e-5)


def test_far_from_the_old_policy_a_ratio_stays_finite_where_trls_does_not():
    rollout = drawn(0, "none")
    rollout.old -= 100.0
    rollout.advantages.fill_(-1.0)
    assert not bool(trl.grpo(rollout, "grpo", 0.0, 0.2, 0.2, "token").isfinite())
    assert bool(ours(rollout, "sequence", 0.0, 0.2, 0.2).sum.isfinite())


def test_a_clip_that_is_none_is_named_before_any_work():
    with pytest.raises(DougongError, match=r"clip_high is 0\.0"):
        Rl(loss=PolicyLoss(clip_high=0.0))
