"""The preference losses are TRL's: values, and gradients with respect to every log-probability."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dougong.align import losses
from dougong.base import DougongError

PAIRS, PLACES = 5, 9


def draws(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Tokens:
    """Log-probabilities of every token of (chosen, rejected) answers of different lengths, and the masks of both."""

    def __init__(self, seed: int):
        lengths = torch.randint(1, PLACES, (2 * PAIRS, 1), generator=torch.Generator().manual_seed(seed))
        self.mask = (torch.arange(PLACES) < lengths).float()
        self.policy = (-draws(seed + 1, 2 * PAIRS, PLACES).abs() * self.mask).requires_grad_()
        self.reference = -draws(seed + 2, 2 * PAIRS, PLACES).abs() * self.mask

    def sides(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        chosen, rejected = (values * self.mask).sum(1).chunk(2)
        return chosen, rejected

    @property
    def lengths(self) -> tuple[torch.Tensor, torch.Tensor]:
        chosen, rejected = self.mask.sum(1).chunk(2)
        return chosen, rejected


def trl_dpo(tokens: Tokens, kind: str, beta: float) -> torch.Tensor:
    """DPOTrainer's own loss, on a model that gives the log-probabilities as they are."""
    trainers = pytest.importorskip("trl.trainer.dpo_trainer")
    same = SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x, gather=lambda x: x)
    metrics = {"train": defaultdict(list)}
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=same, aux_loss_enabled=False, ld_alpha=None, beta=beta,
        precompute_ref_logps=True, f_divergence_type="reverse_kl", loss_types=[kind], loss_weights=[1.0],
        label_smoothing=0.2, use_weighting=False, _metrics=metrics, _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    # A first token of the prompt in front, which no mask counts.
    completion = F.pad(tokens.mask, (1, 0))
    chosen, rejected = tokens.sides(tokens.reference)
    inputs = {
        "input_ids": torch.ones_like(completion, dtype=torch.int64),
        "attention_mask": torch.ones_like(completion),
        "completion_mask": completion,
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    nothing = torch.zeros_like(tokens.mask)
    output = SimpleNamespace(
        log_probs=tokens.policy * tokens.mask, entropy=nothing, mean_logits=nothing, is_top1=nothing > 1
    )
    return trainers.DPOTrainer._compute_loss(trainer, lambda **_: output, inputs, False)


def trl_cpo(chosen: torch.Tensor, rejected: torch.Tensor, kind: str, beta: float, smoothing: float = 0.0):
    trainers = pytest.importorskip("trl.experimental.cpo.cpo_trainer")
    trainer = SimpleNamespace(
        alpha=0.0, beta=beta, loss_type=kind, simpo_gamma=0.5, label_smoothing=smoothing,
        accelerator=SimpleNamespace(device="cpu"),
    )  # fmt: skip
    return trainers.CPOTrainer.cpo_loss(trainer, chosen, rejected)[0]


def same(ours: losses.Loss, theirs: torch.Tensor, leaf: torch.Tensor) -> None:
    mean = ours.sum / ours.weight
    assert torch.allclose(mean, theirs, rtol=1e-5, atol=1e-6)
    (mine,) = torch.autograd.grad(mean, leaf, retain_graph=True)
    (other,) = torch.autograd.grad(theirs, leaf, retain_graph=True)
    assert float(other.abs().max()) > 1e-4
    assert torch.allclose(mine, other, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_dpo_and_ipo_are_trls(seed, beta):
    tokens = Tokens(seed)
    sides = (*tokens.sides(tokens.policy), *tokens.sides(tokens.reference))
    same(losses.dpo(*sides, beta), trl_dpo(tokens, "sigmoid", beta), tokens.policy)
    same(losses.ipo(*sides, beta, *tokens.lengths), trl_dpo(tokens, "ipo", beta), tokens.policy)
    means = [side / length for side, length in zip(sides, tokens.lengths * 2, strict=True)]
    same(losses.ipo(*means, beta), trl_dpo(tokens, "ipo", beta), tokens.policy)


@pytest.mark.parametrize("seed", range(3))
def test_cdpo_is_trls_smoothing_of_the_same_margin(seed):
    tokens = Tokens(seed)
    chosen, rejected = tokens.sides(tokens.policy - tokens.reference)
    sides = (*tokens.sides(tokens.policy), *tokens.sides(tokens.reference))
    theirs = trl_cpo(chosen, rejected, "sigmoid", 0.3, 0.2).mean()
    same(losses.cdpo(*sides, 0.3, 0.2), theirs, tokens.policy)
    # TRL's "robust" is cDPO made unbiased: (1 - e) L - e L', over 1 - 2 e.
    plain = losses.dpo(*sides, 0.3).sum / PAIRS
    flipped = losses.dpo(sides[1], sides[0], sides[3], sides[2], 0.3).sum / PAIRS
    assert torch.allclose((0.8 * plain - 0.2 * flipped) / 0.6, trl_dpo(tokens, "robust", 0.3), rtol=1e-5)
    assert torch.allclose(losses.cdpo(*sides, 0.3, 0.2).sum / PAIRS, 0.8 * plain + 0.2 * flipped, rtol=1e-5)


def test_dpo_gives_the_published_numbers():
    policy = torch.tensor([-0.5, -10.0, -1.0]), torch.tensor([-0.1, -30.0, -21.0])
    reference = torch.tensor([-0.5, -10.1, -0.1]), torch.tensor([-0.1, -20.1, -0.1])
    found = [float(losses.dpo(*(side[i : i + 1] for side in policy + reference)).sum) for i in range(3)]
    assert found == pytest.approx([0.6931, 0.3133, 0.1269], abs=1e-4)
    metrics = losses.dpo(*policy, *reference).metrics
    assert float(metrics["margin"]) == pytest.approx(0.1 * (0 + 10 + 20), abs=1e-4)
    assert float(metrics["accuracy"]) == 2  # of equal sides neither wins


@pytest.mark.parametrize("seed", range(3))
def test_simpo_and_cpo_are_trls(seed):
    tokens = Tokens(seed)
    chosen, rejected = tokens.sides(tokens.policy)
    long, short = tokens.lengths
    nll = -chosen.sum() / long.sum()
    theirs = trl_cpo(chosen / long, rejected / short, "simpo", 0.1).mean()
    same(losses.simpo(chosen, rejected, chosen_tokens=long, rejected_tokens=short), theirs, tokens.policy)
    same(losses.simpo(chosen / long, rejected / short), theirs, tokens.policy)
    with_nll = losses.simpo(chosen, rejected, chosen_tokens=long, rejected_tokens=short, alpha=1.0)
    same(with_nll, theirs + nll, tokens.policy)
    theirs = trl_cpo(chosen, rejected, "sigmoid", 0.1, 0.1).mean()
    smoothed = losses.cpo(chosen, rejected, 0.1, 0.5, long, label_smoothing=0.1)
    same(smoothed, theirs + 0.5 * nll, tokens.policy)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sure", [1.0, 1e-4])
def test_orpo_is_trls(seed, sure):
    trainers = pytest.importorskip("trl.experimental.orpo.orpo_trainer")
    tokens = Tokens(seed)
    chosen, rejected = tokens.sides(sure * tokens.policy)
    long, short = tokens.lengths
    trainer = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device="cpu"))
    ratio = trainers.ORPOTrainer.odds_ratio_loss(trainer, chosen / long, rejected / short)[0]
    nll = -(chosen.sum() - 3 * PAIRS) / (long.sum() + 2 * PAIRS)  # two prompt tokens of log-probability -1.5 each
    ours = losses.orpo(chosen, rejected, 0.3, long, short, chosen - 3, long + 2)
    same(ours, nll - ratio.mean(), tokens.policy)


@pytest.mark.parametrize("labels", [[True, False, True, True, False], [True] * 5, [False] * 5])
def test_kto_is_trls(labels):
    trainers = pytest.importorskip("trl.trainer.kto_trainer")
    tokens, label = Tokens(4), torch.tensor(labels)
    policy, reference = tokens.sides(tokens.policy)[0], tokens.sides(tokens.reference)[0]
    others = draws(9, PAIRS), draws(10, PAIRS) - 0.5
    mask = F.pad(tokens.mask[:PAIRS], (1, 0))
    batch = {
        "label": label, "input_ids": torch.ones_like(mask, dtype=torch.int64), "completion_mask": mask,
        "attention_mask": mask, "ref_logps": reference, "ref_KL_logps": others[1],
    }  # fmt: skip
    nothing = torch.zeros_like(tokens.mask[:PAIRS])
    output = SimpleNamespace(log_probs=(tokens.policy * tokens.mask)[:PAIRS], entropy=nothing, mean_logits=nothing)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), _compute_kl_logps=lambda *_: others[0], aux_loss_enabled=False,
        accelerator=SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x), precompute_ref_logps=True,
        calculate_KL=True, beta=0.4, loss_type="kto", desirable_weight=1.5, undesirable_weight=0.7, _tp_size=1,
        _metrics={"train": defaultdict(list)}, _total_train_tokens=0,
    )  # fmt: skip
    theirs = trainers.KTOTrainer._compute_loss(trainer, lambda **_: output, batch, False)
    kl = losses.kto_kl(*others)
    same(losses.kto(policy, reference, label, kl, 0.4, 1.5, 0.7), theirs, tokens.policy)
    assert float(losses.kto_kl(others[1] - 9, others[1])) == 0  # never below


@pytest.mark.parametrize("margin", [None, True])
@pytest.mark.parametrize("center", [0.0, 0.3])
def test_reward_is_trls(margin, center):
    trainers = pytest.importorskip("trl.trainer.reward_trainer")
    scores = draws(1, 2 * PAIRS, 1).requires_grad_()
    margins = draws(2, PAIRS).abs() if margin else None
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), args=SimpleNamespace(center_rewards_coefficient=center or None),
        accelerator=SimpleNamespace(gather_for_metrics=lambda x: x, gather=lambda x: x), _total_train_tokens=0,
        _metrics={"train": defaultdict(list)}, _tp_size=1,
    )  # fmt: skip
    inputs = {"attention_mask": torch.ones(2 * PAIRS, 3)} | ({"margin": margins} if margin else {})

    def model(**_):
        return SimpleNamespace(logits=scores)

    theirs = trainers.RewardTrainer.compute_loss(trainer, model, inputs)
    same(losses.reward(*scores.squeeze(-1).chunk(2), margins, center), theirs, scores)


def test_process_reward_is_a_token_classifiers_loss():
    reference = pytest.importorskip("transformers.loss.loss_utils")
    logits = draws(1, 3, 6, 2).requires_grad_()
    labels = torch.tensor([[1, -100, 0, -100, 1, -100], [-100] * 6, [0, 1, -100, -100, -100, 1]])
    theirs = reference.ForTokenClassification(logits, labels, SimpleNamespace(num_labels=2))
    ours = losses.process_reward(logits, labels)
    assert float(ours.weight) == 6
    same(ours, theirs, logits)


ALL = {
    "dpo": lambda a, b, r, n: losses.dpo(a, b, r, r),
    "cdpo": lambda a, b, r, n: losses.cdpo(a, b, r, r),
    "ipo": lambda a, b, r, n: losses.ipo(a, b, r, r, chosen_tokens=n, rejected_tokens=n),
    "simpo": lambda a, b, r, n: losses.simpo(a, b, chosen_tokens=n, rejected_tokens=n, alpha=0.5, mean_tokens=n.mean()),
    "cpo": lambda a, b, r, n: losses.cpo(a, b, chosen_tokens=n, mean_tokens=torch.tensor(2.5)),
    "orpo": lambda a, b, r, n: losses.orpo(a, b, 0.1, n, n, mean_tokens=torch.tensor(2.5)),
    "kto": lambda a, b, r, n: losses.kto(a, r, r < -1, losses.kto_kl(b[:1], b[:1])),
    "reward": lambda a, b, r, n: losses.reward(a, b),
}


@pytest.mark.parametrize("name", ALL)
def test_parts_of_a_batch_add_up(name):
    """Sums and weights over micro-batches are those of the whole, so accumulation cannot change an update."""
    a, b, r = -draws(1, 6).abs() - 0.1, -draws(2, 6).abs() - 0.1, -draws(3, 6).abs()
    n = torch.tensor([1.0, 2, 3, 4, 2, 3])
    whole = ALL[name](a, b, r, n)
    if name == "simpo":  # its mean is over the tokens of the whole batch
        parts = [losses.simpo(a[i : i + 2], b[i : i + 2], chosen_tokens=n[i : i + 2], rejected_tokens=n[i : i + 2],
                              alpha=0.5, mean_tokens=n.mean()) for i in (0, 2, 4)]  # fmt: skip
    else:
        parts = [ALL[name](a[i : i + 2], b[i : i + 2], r[i : i + 2], n[i : i + 2]) for i in (0, 2, 4)]
    assert torch.allclose(sum(part.sum for part in parts), whole.sum, rtol=1e-5)
    assert float(sum(part.weight for part in parts)) == float(whole.weight)
    for key, value in whole.metrics.items():
        assert torch.allclose(sum(part.metrics[key] for part in parts), value, atol=1e-5), key


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=30)
@given(st.floats(-500, 0), st.floats(-500, 0), st.integers(0, 50))
def test_nothing_becomes_nan(name, left, right, tokens):
    """Whatever the log-probabilities: equal sides, certainty (0), an empty answer (no tokens)."""
    for other in (left, right):
        a = torch.tensor([left, 0.0]).requires_grad_()
        b = torch.tensor([other, 0.0]).requires_grad_()
        n = torch.tensor([float(tokens), 0.0])
        loss = ALL[name](a, b, torch.tensor([right, 0.0]), n)
        loss.sum.backward()
        assert bool(loss.sum.isfinite()) and bool(a.grad.isfinite().all())
        assert all(bool(value.isfinite()) for value in loss.metrics.values())


@pytest.mark.parametrize("name", ["dpo", "cdpo", "reward"])
def test_equal_sides_cost_indifference_and_pull_both_ways_alike(name):
    side = torch.tensor([-3.0])
    a, b = side.clone().requires_grad_(), side.clone().requires_grad_()
    loss = ALL[name](a, b, side, side)
    loss.sum.backward()
    assert float(loss.sum.detach()) == pytest.approx(0.6931, abs=1e-4)
    assert torch.equal(a.grad, -b.grad)
    assert float(loss.metrics["accuracy"]) == 0


def test_wrong_settings_are_named():
    x = torch.zeros(2)
    with pytest.raises(DougongError, match=r"beta is 0\.0"):
        losses.dpo(x, x, x, x, 0.0)
    with pytest.raises(DougongError, match=r"label_smoothing is 0\.5"):
        losses.cdpo(x, x, x, x, 0.1, 0.5)
    with pytest.raises(DougongError, match=r"label_smoothing is 2"):
        losses.cpo(x, x, label_smoothing=2)
    with pytest.raises(DougongError, match=r"label_smoothing is -0\.1"):
        losses.dpo(x, x, x, x, label_smoothing=-0.1)


def test_without_answers_the_reference_point_is_nothing():
    assert float(losses.kto_kl(torch.zeros(0), torch.zeros(0))) == 0
