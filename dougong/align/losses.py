"""Losses on preferences: pure functions of log-probabilities or scores, one number a pair (or an answer) each.

Every function returns `Loss(sum, weight, metrics)`; the mean over a batch is sum / weight, as everywhere, and the
values and gradients are those of TRL. Written for a pair (chosen c, rejected r), with pi the policy, ref the reference
and log-probabilities summed over the answer's tokens, or their mean a token where a docstring says so:

    d = (log pi(c) - log ref(c)) - (log pi(r) - log ref(r))

`chosen_tokens` and the like are the numbers of tokens of the answers, by which sums become means a token; without them
(None) the log-probabilities given are taken for such means already. A pair with equal sides has d = 0: its loss is the
one of indifference (log 2 for DPO) and its two gradients cancel.

Different from TRL on purpose:

- beta is above 0 and label smoothing below 0.5; TRL takes others too (beta 0: log 2, or the likelihood alone)
- tokens are those with a log-probability: TRL's IPO counts the first of a text without a prompt too, which has none
- the mean of an answer without tokens is 0, and so is one over no tokens at all; TRL's CPO, SimPO, ORPO are NaN there
- ORPO's answers are at most exp(-1e-7) likely a token; TRL's loss is infinite or NaN at 1
- a batch is one, however it is cut: TRL's means over tokens (CPO, ORPO) and KTO's reference point are of each part
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from dougong.base import DougongError
from dougong.parts.cross_entropy import IGNORED
from dougong.parts.shapes import Bool, Float, Int
from dougong.train.objectives import Loss

# log p of a token whose probability rounds to 1: log(1 - p) would be -infinity.
_SURE = -1e-7


def dpo(
    policy_chosen: Float[Tensor, " N"],
    policy_rejected: Float[Tensor, " N"],
    reference_chosen: Float[Tensor, " N"],
    reference_rejected: Float[Tensor, " N"],
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Loss:
    """-log sigmoid(beta d) (Rafailov et al. 2023, equation 7); with label smoothing it is `cdpo`."""
    chosen, rejected = policy_chosen - reference_chosen, policy_rejected - reference_rejected
    return _paired(_logistic(_positive("beta", beta) * (chosen - rejected), label_smoothing), chosen, rejected, beta)


def cdpo(
    policy_chosen: Float[Tensor, " N"],
    policy_rejected: Float[Tensor, " N"],
    reference_chosen: Float[Tensor, " N"],
    reference_rejected: Float[Tensor, " N"],
    beta: float = 0.1,
    label_smoothing: float = 0.1,
) -> Loss:
    """Conservative DPO: a share e of the labels is thought to be wrong (Mitchell 2023).

    -(1 - e) log sigmoid(beta d) - e log sigmoid(-beta d)
    """
    return dpo(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta, label_smoothing)


def ipo(
    policy_chosen: Float[Tensor, " N"],
    policy_rejected: Float[Tensor, " N"],
    reference_chosen: Float[Tensor, " N"],
    reference_rejected: Float[Tensor, " N"],
    beta: float = 0.1,
    chosen_tokens: Float[Tensor, " N"] | None = None,
    rejected_tokens: Float[Tensor, " N"] | None = None,
) -> Loss:
    """(d' - 1 / (2 beta))^2, d' being d on means a token (Azar et al. 2024, equation 17; its tau is beta).

    The means are those of the authors' experiments: on sums the loss would grow with the answers' lengths.
    """
    chosen = _mean(policy_chosen - reference_chosen, chosen_tokens)
    rejected = _mean(policy_rejected - reference_rejected, rejected_tokens)
    return _paired((chosen - rejected - 1 / (2 * _positive("beta", beta))).square(), chosen, rejected, beta)


def simpo(
    policy_chosen: Float[Tensor, " N"],
    policy_rejected: Float[Tensor, " N"],
    beta: float = 0.1,
    gamma: float = 0.5,
    chosen_tokens: Float[Tensor, " N"] | None = None,
    rejected_tokens: Float[Tensor, " N"] | None = None,
    alpha: float = 0.0,
    mean_tokens: Float[Tensor, ""] | None = None,
    label_smoothing: float = 0.0,
) -> Loss:
    """-log sigmoid(beta (m_c - m_r) - gamma), m the mean log-probability a token; no reference (Meng et al. 2024).

    alpha adds as much of the chosen answers' negative log-likelihood a token, as `cpo` does (TRL's default is 1, the
    paper has none): CPO-SimPO. For `mean_tokens` see `cpo`, for label smoothing `cdpo`, its flipped side being that of
    the whole margin, gamma included.
    """
    chosen, rejected = _mean(policy_chosen, chosen_tokens), _mean(policy_rejected, rejected_tokens)
    each = _logistic(_positive("beta", beta) * (chosen - rejected) - gamma, label_smoothing)
    return _with_likelihood(_paired(each, chosen, rejected, beta), policy_chosen, chosen_tokens, alpha, mean_tokens)


def cpo(
    policy_chosen: Float[Tensor, " N"],
    policy_rejected: Float[Tensor, " N"],
    beta: float = 0.1,
    alpha: float = 1.0,
    chosen_tokens: Float[Tensor, " N"] | None = None,
    label_smoothing: float = 0.0,
    mean_tokens: Float[Tensor, ""] | None = None,
) -> Loss:
    """-log sigmoid(beta (log pi(c) - log pi(r))) + alpha NLL (Xu et al. 2024, equation 6).

    NLL is the chosen answers' negative log-likelihood: a token, over the whole batch (TRL), or an answer where
    `chosen_tokens` is None (the paper). As a mean over tokens it stands beside one over pairs: `mean_tokens`, the
    tokens of a chosen answer on average, makes both those of a batch that is seen in parts. None: these pairs are the
    batch.
    """
    each = _logistic(_positive("beta", beta) * (policy_chosen - policy_rejected), label_smoothing)
    loss = _paired(each, policy_chosen, policy_rejected, beta)
    return _with_likelihood(loss, policy_chosen, chosen_tokens, alpha, mean_tokens)


def orpo(
    policy_chosen: Float[Tensor, " N"],
    policy_rejected: Float[Tensor, " N"],
    beta: float = 0.1,
    chosen_tokens: Float[Tensor, " N"] | None = None,
    rejected_tokens: Float[Tensor, " N"] | None = None,
    likelihood: Float[Tensor, " N"] | None = None,
    likelihood_tokens: Float[Tensor, " N"] | None = None,
    mean_tokens: Float[Tensor, ""] | None = None,
) -> Loss:
    """NLL - beta log sigmoid(log odds(c) - log odds(r)), odds = p / (1 - p) (Hong et al. 2024, equations 4, 6 and 7).

    p is exp of the mean log-probability a token. NLL is the mean a token over the chosen sides of the batch, of the
    answers alone; or of what `likelihood` sums over `likelihood_tokens` tokens (TRL: prompt and answer). `mean_tokens`
    (see `cpo`) counts those tokens.
    """
    chosen = _mean(policy_chosen, chosen_tokens).float().clamp(max=_SURE)
    rejected = _mean(policy_rejected, rejected_tokens).float().clamp(max=_SURE)
    odds = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
    loss = _paired(_positive("beta", beta) * _logistic(odds), chosen, rejected, beta, {"log_odds": odds})
    seen = policy_chosen if likelihood is None else likelihood
    tokens = chosen_tokens if likelihood_tokens is None else likelihood_tokens
    return _with_likelihood(loss, seen, tokens, 1.0, mean_tokens)


def kto(
    policy: Float[Tensor, " N"],
    reference: Float[Tensor, " N"],
    desirable: Bool[Tensor, " N"],
    kl: Float[Tensor, ""],
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Loss:
    """Answers that are each good or bad, not paired (Ethayarajh et al. 2024, equations 7 and 8), with
    l = log pi - log ref:

        w_d (1 - sigmoid(beta (l - kl)))  of a good answer,  w_u (1 - sigmoid(beta (kl - l)))  of a bad one

    kl is the reference point, `kto_kl` of the whole batch.
    """
    ratio = policy - reference
    each = torch.where(
        desirable,
        desirable_weight * (1 - torch.sigmoid(_positive("beta", beta) * (ratio - kl))),
        undesirable_weight * (1 - torch.sigmoid(beta * (kl - ratio))),
    )
    reward = beta * ratio.detach()
    right = torch.where(desirable, ratio > kl, ratio < kl)
    metrics = {
        "accuracy": right.to(each.dtype),
        "reward_desirable": torch.where(desirable, reward, 0.0),  # a share of the mean: those of the others count as 0
        "reward_undesirable": torch.where(desirable, 0.0, reward),
        "kl": kl.detach().expand_as(each),
    }
    return _sum(each, metrics)


def kto_kl(policy: Float[Tensor, " N"], reference: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """max(0, mean(log pi - log ref)) over answers to other prompts than they follow: no gradient goes through it."""
    ratio = (policy - reference).detach()
    return (ratio.sum() / max(1, ratio.numel())).clamp(min=0)


def reward(
    chosen: Float[Tensor, " N"],
    rejected: Float[Tensor, " N"],
    margin: Float[Tensor, " N"] | None = None,
    center: float = 0.0,
) -> Loss:
    """-log sigmoid(s_c - s_r - margin) on scores (Bradley and Terry 1952; margin: Llama 2, Touvron et al. 2023), plus
    center (s_c + s_r)^2, which keeps scores around 0 (Eisenstein et al. 2023)."""
    difference = chosen - rejected
    each = -F.logsigmoid(difference if margin is None else difference - margin)
    if center:
        each = each + center * (chosen + rejected).square()
    return _paired(each, chosen, rejected, 1.0)


def process_reward(logits: Float[Tensor, "*N 2"], labels: Int[Tensor, "*N"]) -> Loss:
    """-log softmax(logits)[label] over the ends of steps, label 1 for a right step, 0 for a wrong one, -100 elsewhere
    (Lightman et al. 2023; Uesato et al. 2022)."""
    kept = labels != IGNORED
    logits, labels = logits[kept].float(), labels[kept]
    each = F.cross_entropy(logits, labels, reduction="none")
    return _sum(each, {"accuracy": (logits.argmax(-1) == labels).to(each.dtype)})


def _positive(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise DougongError(f"{name} is {value}; expected a positive number")
    return value


def _logistic(margin: Tensor, smoothing: float = 0.0) -> Tensor:
    """-(1 - e) log sigmoid(m) - e log sigmoid(-m)."""
    if not 0 <= smoothing < 0.5:
        raise DougongError(f"label_smoothing is {smoothing}; expected the share of wrong labels, 0 to below 0.5")
    if not smoothing:
        return -F.logsigmoid(margin)
    return -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, exact near 0 and far from it (Maechler 2012)."""
    near = x > -math.log(2)
    # Each branch sees only what it is exact for, so that neither sends a NaN back.
    return torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, x, -1.0))),
        torch.log1p(-torch.exp(torch.where(near, -1.0, x))),
    )


def _mean(total: Tensor, tokens: Tensor | None) -> Tensor:
    """Sums over an answer as means a token; an empty answer's is 0."""
    return total if tokens is None else total / tokens.clamp(min=1)


def _with_likelihood(
    loss: Loss, total: Tensor, tokens: Tensor | None, alpha: float, mean_tokens: Tensor | None
) -> Loss:
    """`loss` plus alpha times the mean of -log p a token, in the loss's own weight."""
    if not alpha:
        return loss
    if mean_tokens is None:
        mean_tokens = total.new_ones(()) if tokens is None else tokens.float().mean()
    # Below 1 where most answers are empty; 0 where all are, and then so is the sum.
    nll = -total.sum() / torch.where(mean_tokens > 0, mean_tokens, 1.0)
    return Loss(loss.sum + alpha * nll, loss.weight, {**loss.metrics, "nll": nll.detach()})


def _paired(
    each: Tensor, chosen: Tensor, rejected: Tensor, beta: float, further: Mapping[str, Tensor] | None = None
) -> Loss:
    """The sum over pairs. Metrics: implicit rewards (beta times what the loss compares), their margin, how many chosen
    sides beat the rejected ones."""
    metrics = {
        "accuracy": (chosen > rejected).to(each.dtype),
        "margin": beta * (chosen - rejected),
        "reward_chosen": beta * chosen,
        "reward_rejected": beta * rejected,
        **(further or {}),
    }
    return _sum(each, metrics)


def _sum(each: Tensor, metrics: Mapping[str, Tensor]) -> Loss:
    weight = torch.tensor(float(each.numel()), device=each.device)
    return Loss(each.sum(), weight, {name: value.detach().sum() for name, value in metrics.items()})
