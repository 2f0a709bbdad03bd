"""Fewer rows, the same update: what a rollout is condensed to has its gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dougong.align.condense import condensed
from dougong.align.logprobs import logprobs
from dougong.align.policy import policy_objective
from dougong.data.batch import IGNORED, Batch
from tests.align.models import talker

pytestmark = pytest.mark.usefixtures("unchecked")


def rollout(seed: int, groups: int, samples: int) -> tuple[Batch, torch.Tensor]:
    """Answers of one to three tokens out of few, so that many are alike; a third of the groups without advantages."""
    random = torch.Generator().manual_seed(seed)
    rows, width = groups * samples, 8
    tokens = torch.zeros(rows, width, dtype=torch.int64)
    targets = torch.full((rows, width), IGNORED)
    filled = torch.zeros(rows, dtype=torch.int64)
    advantages = torch.zeros(rows, width)
    for group in range(groups):
        prompt = torch.randint(5, 30, (int(torch.randint(2, 5, (), generator=random)),), generator=random)
        dull = bool(torch.rand((), generator=random) < 0.33)
        for row in range(group * samples, (group + 1) * samples):
            answer = torch.randint(5, 7, (int(torch.randint(1, 4, (), generator=random)),), generator=random)
            whole = torch.cat([prompt, answer])
            end = len(whole) - 1
            tokens[row, :end], targets[row, len(prompt) - 1 : end], filled[row] = whole[:-1], answer, end
            if not dull:
                advantages[row, len(prompt) - 1 : end] = float(answer[0] - 5) - 0.4
    positions = torch.arange(width).expand(rows, width).contiguous()
    return Batch(tokens, targets, positions, None, filled), advantages


def gradients(batch: Batch, advantages: torch.Tensor, how) -> list[torch.Tensor]:
    model = talker(context=64).model
    mask = batch.targets != IGNORED
    policy = logprobs(model, batch)[0]
    loss = policy_objective(policy, policy.detach(), advantages, mask, how, length=6)
    (loss.sum / loss.weight).backward()
    return [each.grad for each in model.parameters() if each.grad is not None]


@pytest.mark.parametrize("how", ["token", "sequence", "sum", "length"])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), least=st.sampled_from([1, 2, 100]))
def test_the_gradient_is_that_of_all_rows(how, seed, least):
    batch, advantages = rollout(seed, 5, 6)
    fewer, scaled = condensed(batch, advantages, how, least)
    assert len(fewer.tokens) >= min(least, len(batch.tokens)) and scaled.shape == fewer.tokens.shape
    for one, other in zip(gradients(batch, advantages, how), gradients(fewer, scaled, how), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-6)


def test_what_stays_is_what_teaches_once():
    batch, advantages = rollout(3, 5, 6)
    fewer, scaled = condensed(batch, advantages, "sequence")
    taught = {tuple(row.tolist()) for row, adv in zip(batch.targets, advantages, strict=True) if (adv != 0).any()}
    assert len(fewer.tokens) < len(batch.tokens)
    assert len({(*a.tolist(), *b.tolist()) for a, b in zip(fewer.tokens, fewer.targets, strict=True)}) == len(scaled)
    assert {tuple(row.tolist()) + (IGNORED,) * (8 - len(row)) for row in fewer.targets} == taught
    assert fewer.tokens.shape[1] == int(fewer.filled.max())


def test_without_any_advantage_as_few_rows_stay_as_allowed():
    batch, advantages = rollout(3, 5, 6)
    for least in (1, 4):
        fewer, scaled = condensed(batch, torch.zeros_like(advantages), "token", least)
        assert len(fewer.tokens) == least and not scaled.any()
        assert all(not float(each.abs().max()) for each in gradients(fewer, scaled, "token"))


def test_answers_alike_with_other_advantages_are_two():
    """Rewards may depend on more than the text."""
    batch, _ = rollout(3, 1, 2)
    batch = replace(batch, tokens=batch.tokens[:1].repeat(2, 1), targets=batch.targets[:1].repeat(2, 1))
    advantages = torch.where(batch.targets != IGNORED, torch.tensor([[1.0], [-1.0]]), 0.0)
    assert len(condensed(batch, advantages, "sum")[0].tokens) == 2
