"""The pieces of reinforcement learning: TRL's losses, and slow loops that read like the definitions."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dougong.align import advantages as adv
from dougong.align.kl import Kl, check_divergence, next_coefficient
from dougong.align.policy import (
    aggregate,
    clipped,
    clipped_share,
    divergence,
    policy_objective,
    value_loss,
)
from dougong.base import DougongError

ROWS, PLACES = 6, 8


def draws(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def answers(seed: int) -> torch.Tensor:
    """A mask of answers that begin and end somewhere in the row; the last one is empty."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(0, 4, (ROWS, 1), generator=generator)
    length = torch.randint(1, 5, (ROWS, 1), generator=generator)
    length[-1] = 0
    places = torch.arange(PLACES)
    return (places >= start) & (places < start + length)


HOWS = {"grpo": "sequence", "dapo": "token", "dr_grpo": "length", "bnpo": "token", "luspo": "sum"}


@pytest.mark.parametrize("kind", HOWS)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_every_reduction_is_trls(kind, seed, beta):
    trainers = pytest.importorskip("trl.trainer.grpo_trainer")
    mask = answers(seed)
    policy = (-draws(seed + 1, ROWS, PLACES).abs()).requires_grad_()
    old = (policy + 0.3 * draws(seed + 2, ROWS, PLACES)).detach()
    reference = -draws(seed + 3, ROWS, PLACES).abs()
    advantages = draws(seed + 4, ROWS)
    same = SimpleNamespace(
        num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x, device="cpu", sync_gradients=True
    )
    trainer = SimpleNamespace(
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None,
        importance_sampling_level="token", beta=beta, loss_type=kind, epsilon_low=0.2, epsilon_high=0.28,
        use_vllm=False, model=SimpleNamespace(training=True), current_gradient_accumulation_steps=1,
        max_completion_length=10, accelerator=same, _entropy_bonus_enabled=False,
        args=SimpleNamespace(delta=None, steps_per_generation=1, use_bias_correction_kl=False),
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (policy, torch.zeros_like(policy), None),
    )  # fmt: skip
    ids = torch.ones(ROWS, PLACES, dtype=torch.int64)
    inputs = {
        "prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1], "completion_ids": ids, "completion_mask": mask.long(),
        "advantages": advantages, "old_per_token_logps": old, "ref_per_token_logps": reference,
        "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    theirs = trainers.GRPOTrainer._compute_loss(trainer, None, inputs)
    ours = policy_objective(
        policy, old, advantages[:, None].expand_as(policy), mask, HOWS[kind], 0.2, 0.28, reference, beta, length=10
    )
    mean = ours.sum / ours.weight
    assert torch.allclose(mean, theirs, rtol=1e-5, atol=1e-6)
    (a,), (b,) = torch.autograd.grad(mean, policy), torch.autograd.grad(theirs, policy)
    assert torch.allclose(a, b, rtol=1e-4, atol=1e-7)
    if beta and kind == "dapo":
        told = trainer._metrics["train"]
        assert float(ours.metrics["kl"] / ours.weight) == pytest.approx(told["kl"][0], rel=1e-4)
        assert float(ours.metrics["clipped"] / ours.weight) == pytest.approx(
            told["clip_ratio/region_mean"][0], abs=1e-6
        )


@pytest.mark.parametrize("how", ["token", "sequence", "sum", "length"])
@settings(max_examples=30)
@given(st.integers(0, 50), st.sampled_from([1, 2, 3, 6]))
def test_parts_of_a_batch_add_up(how, seed, parts):
    values, mask = draws(seed, ROWS, PLACES), answers(seed)
    total, weight = aggregate(values, mask, how, 9)
    cut = [aggregate(v, m, how, 9) for v, m in zip(values.chunk(parts), mask.chunk(parts), strict=True)]
    assert torch.allclose(sum(each[0] for each in cut), total, atol=1e-5)
    assert float(sum(each[1] for each in cut)) == float(weight)


def test_aggregates_by_their_definitions():
    values = torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]])
    mask = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    found = {how: (float(a), float(b)) for how in HOWS.values() for a, b in [aggregate(values, mask, how, 4)]}
    assert found == {"token": (7, 3), "sequence": (5.5, 3), "sum": (7, 3), "length": (1.75, 3)}
    with pytest.raises(DougongError, match="length is None"):
        aggregate(values, mask, "length")
    infinite = torch.where(mask, values, torch.inf)  # what is outside the mask does not matter
    assert float(aggregate(infinite, mask, "sequence")[0]) == 5.5


@settings(max_examples=30)
@given(st.integers(0, 200), st.floats(0.5, 1), st.floats(0, 1))
def test_generalised_advantages_by_the_slow_loop(seed, gamma, lam):
    rewards, values, mask = draws(seed, ROWS, PLACES), draws(seed + 1, ROWS, PLACES), answers(seed)
    found, returns = adv.generalised_advantages(rewards, values, mask, gamma, lam)
    for row in range(ROWS):
        places = mask[row].nonzero()[:, 0].tolist()
        for at, place in enumerate(places):
            total = 0.0
            for k, later in enumerate(places[at:]):
                after = places[at + k + 1] if at + k + 1 < len(places) else None
                follows = float(values[row, after]) if after is not None else 0.0
                total += (gamma * lam) ** k * (float(rewards[row, later]) + gamma * follows - float(values[row, later]))
            assert float(found[row, place]) == pytest.approx(total, abs=1e-4)
            assert float(returns[row, place]) == pytest.approx(total + float(values[row, place]), abs=1e-4)
    assert not found[~mask].any() and not returns[~mask].any()


def test_with_lambda_one_returns_are_the_rewards_to_come():
    rewards, values, mask = draws(1, ROWS, PLACES), draws(2, ROWS, PLACES), answers(3)
    _, returns = adv.generalised_advantages(rewards, values, mask, 0.9, 1.0)
    assert torch.allclose(returns, adv.returns_to_go(rewards, mask, 0.9), atol=1e-5)


def test_token_rewards():
    mask = torch.tensor([[False, True, True], [True, False, False], [False, False, False]])
    found = adv.token_rewards(torch.tensor([1.0, 2.0, 3.0]), torch.full((3, 3), 0.5), mask)
    assert found.tolist() == [[0, -0.5, 0.5], [1.5, 0, 0], [0, 0, 0]]


@settings(max_examples=30)
@given(st.integers(0, 100))
def test_whitened_values_have_mean_0_and_deviation_1(seed):
    values, mask = 3 * draws(seed, ROWS, PLACES) + 5, answers(seed)
    done = adv.whiten(values, mask)
    assert abs(float(done[mask].mean())) < 1e-5
    assert float(done[mask].std()) == pytest.approx(1, abs=1e-4)
    shifted = adv.whiten(values, mask, centre=False)
    assert torch.allclose(shifted[mask] - done[mask], values[mask].mean(), atol=1e-5)
    for value in (0.0, 0.1, 1e6):
        assert not adv.whiten(torch.full_like(values, value), mask).any()
    assert not adv.whiten(values, torch.zeros_like(mask)).any()


def test_groups():
    rewards = torch.tensor([[1.0, 0, 0, 1], [0.1, 0.1, 0.1, 0.1]])
    found = adv.group_relative(rewards)
    assert torch.allclose(found[0], (rewards[0] - 0.5) / (rewards[0].std() + 1e-4))
    assert found[1].tolist() == [0, 0, 0, 0]
    assert adv.group_relative(rewards, scale=False)[0].tolist() == [0.5, -0.5, -0.5, 0.5]
    others = [(sum(rewards[0].tolist()) - float(r)) / 3 for r in rewards[0]]
    assert torch.allclose(adv.leave_one_out(rewards)[0], rewards[0] - torch.tensor(others))
    assert adv.leave_one_out(rewards)[1].tolist() == [0, 0, 0, 0]
    assert adv.equal_groups(rewards).tolist() == [False, True]
    assert adv.group_relative(torch.tensor([[3.0]])).tolist() == [[0]]
    with pytest.raises(DougongError, match="at least 2"):
        adv.leave_one_out(torch.tensor([[3.0]]))


def test_clipping_by_cases():
    q = torch.tensor([0.5, 0.9, 1.1, 1.25, 1.5, 0.5, 1.5])
    a = torch.tensor([1.0, 1, 1, 1, 1, -1, -1])
    policy = q.log()[None].requires_grad_()
    old = torch.zeros_like(policy)
    loss = clipped(policy, old, a[None], 0.2, 0.28)
    assert torch.allclose(-loss[0], torch.tensor([0.5, 0.9, 1.1, 1.25, 1.28, -0.8, -1.5]))
    loss.sum().backward()
    stopped = clipped_share(policy, old, a[None], 0.2, 0.28)[0]
    assert stopped.tolist() == [0, 0, 0, 0, 1, 1, 0]
    assert torch.equal(policy.grad[0] == 0, stopped == 1)


def test_value_loss_by_cases():
    values, old, returns = torch.tensor([[1.0, 1.5, 0.0]]), torch.tensor([[1.0, 1, 1]]), torch.tensor([[2.0, 2, 2]])
    expected = [1.0, max(0.25, 0.64), max(4.0, 1.44)]
    assert torch.allclose(2 * value_loss(values, old, returns)[0], torch.tensor(expected))


@settings(max_examples=30)
@given(st.floats(-300, 0), st.floats(-300, 0))
def test_far_from_the_reference_nothing_becomes_nan(left, right):
    policy = torch.tensor([[left, right]], requires_grad=True)
    old = reference = torch.tensor([[right, left]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss = policy_objective(policy, old, torch.tensor([[1.0, -1.0]]), mask, reference=reference, coefficient=0.1)
    loss.sum.backward()
    assert bool(loss.sum.isfinite()) and bool(policy.grad.isfinite().all())
    assert bool((divergence(policy, reference) >= -1e-5).all())


def test_divergence_estimators():
    p = torch.tensor([0.5, 0.3, 0.2])
    r = torch.tensor([0.2, 0.2, 0.6])
    true = float((p * (p / r).log()).sum())
    for kind in ("k1", "k3"):
        assert float((p * divergence(p.log()[None], r.log()[None], kind)[0]).sum()) == pytest.approx(true, abs=1e-6)
    assert float((p * divergence(p.log()[None], r.log()[None], "k2")[0]).sum()) > 0


def test_the_adaptive_coefficient_aims_at_its_target():
    kl = Kl(kind="adaptive", target=6.0, horizon=100)
    assert next_coefficient(kl, 0.1, 12.0, 100) == pytest.approx(0.12)
    assert next_coefficient(kl, 0.1, 6.6, 50) == pytest.approx(0.105)
    assert next_coefficient(kl, 0.1, 0.0, 50) == pytest.approx(0.09)
    assert next_coefficient(kl, 0.1, float("nan"), 100) == pytest.approx(0.12)
    assert next_coefficient(Kl(), 0.1, 50.0, 100) == 0.1
    check_divergence(Kl(), 100.0, 3)
    for measured in (0.6, float("nan")):
        with pytest.raises(DougongError, match="rollout 3"):
            check_divergence(Kl(limit=0.5), measured, 3)
    with pytest.raises(DougongError, match=r"kl\.coefficient is -1"):
        Kl(coefficient=-1.0)


@pytest.mark.usefixtures("unchecked")
def test_a_two_armed_bandit_finds_its_known_optimum():
    """One token, two arms that pay 0.8 and 0.3. Without a reference the policy goes to the better arm; held to an even
    reference with coefficient b it ends where theory says, pi(a) proportional to exp(r(a) / b). Unscaled advantages:
    dividing by a group's deviation would change the rewards."""
    pay, generator = torch.tensor([0.8, 0.3]), torch.Generator().manual_seed(0)
    even = torch.full((2,), 0.5).log()

    def trained(how_kl: float) -> float:
        logits = torch.zeros(2, requires_grad=True)
        optimizer = torch.optim.SGD([logits], lr=0.3)
        tail = []
        for step in range(240):
            arms = torch.multinomial(logits.detach().softmax(-1), 256, True, generator=generator)
            rewards = pay[arms].view(8, 32)
            policy = logits.log_softmax(-1)[arms][:, None]
            advantages = adv.group_relative(rewards, scale=False).flatten()[:, None]
            if how_kl:  # in the reward its gradient is exact; as a loss, k3's is another one away from the reference
                shaped = rewards - how_kl * divergence(policy, even[arms][:, None], "k1").detach().view(8, 32)
                advantages = adv.leave_one_out(shaped).flatten()[:, None]
            loss = policy_objective(policy, policy.detach(), advantages, torch.ones(256, 1, dtype=torch.bool))
            optimizer.zero_grad()
            (loss.sum / loss.weight).backward()
            optimizer.step()
            if step >= 120:
                tail.append(float(logits.detach().softmax(-1)[0]))
        return sum(tail) / len(tail)

    assert trained(0.0) > 0.97
    best = float(torch.tensor([0.8 / 0.5, 0.3 / 0.5]).softmax(-1)[0])
    assert trained(0.5) == pytest.approx(best, abs=0.03)
