"""The losses of reinforcement learning on texts: ratios, clipping, divergences, and one way to sum them up.

Every method is a choice of advantages (align/advantages.py), of what the ratio and its clipping are of, and of `how`
token losses are aggregated. Values are (B, T) at the places of tokens; the mask is true at those of the answers.

Values and gradients are TRL's, but for two things: differences of log-probabilities beyond 20 count as 20, where TRL's
go to infinity; and means are over what the updates themselves hold (see `aggregate`).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.parts.shapes import Bool, Float
from dougong.train.objectives import Loss

How = Literal["token", "sequence", "sum", "length"]
Level = Literal["token", "sequence", "answer"]
Estimator = Literal["k1", "k2", "k3"]

# exp of a larger difference of log-probabilities would end in infinity; clipping stops gradients long before it.
_LARGEST = 20.0


def aggregate(
    values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], how: How = "token", length: int | None = None
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """(sum, weight) whose quotient over all micro-batches and ranks is

    token      the mean over all tokens (DAPO, PPO). Where a rollout is cut into several updates each divides by its own
               tokens; TRL's "dapo" divides all by the rollout's tokens over the number of updates
    sequence   the mean over answers of each one's mean over its tokens (GRPO); an empty answer counts as 0
    sum        the mean over answers of the sum over its tokens (REINFORCE)
    length     that sum over a constant `length`, not the answer's own (Dr. GRPO: the longest answer allowed)

    Sums and weights add, so an update is the same however its batch is cut.
    """
    # where, not a product: what stands outside the mask may be anything, and 0 times infinity is not 0
    masked = torch.where(mask, values, 0.0)
    rows = torch.tensor(float(len(values)), device=values.device)
    if how == "token":
        return masked.sum(), mask.sum().to(torch.float32)
    if how == "sequence":
        return (masked.sum(-1) / mask.sum(-1).clamp(min=1)).sum(), rows
    if how == "sum":
        return masked.sum(), rows
    if length is None or length < 1:
        raise DougongError(f"length is {length}; sums over a constant length need it, at least 1")
    return masked.sum() / length, rows


def ratio(
    policy: Float[Tensor, "B T"],
    old: Float[Tensor, "B T"],
    level: Level = "token",
    mask: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B T"]:
    """pi / pi_old at every token; differences of log-probabilities beyond 20 count as 20.

    token      of the token (PPO, GRPO)
    sequence   of the answer, its geometric mean over the answer's tokens (GSPO: Zheng et al. 2025, equation 7)
    answer     of the answer, the product over its tokens: the answer is one action (RLOO: Ahmadian et al. 2024)

    One of an answer stands at all its places: the mean over them is the answer's own loss. An empty answer's is 1.
    """
    difference = policy - old
    if level != "token":
        inside = torch.ones_like(difference, dtype=torch.bool) if mask is None else mask
        total = torch.where(inside, difference, 0.0).sum(-1, keepdim=True)
        if level == "sequence":
            total = total / inside.sum(-1, keepdim=True).clamp(min=1)
        difference = total.expand_as(difference)
    return difference.clamp(-_LARGEST, _LARGEST).exp()


def clipped(
    policy: Float[Tensor, "B T"],
    old: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    low: float = 0.2,
    high: float | None = None,
    level: Level = "token",
    mask: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B T"]:
    """-min(q A, clip(q, 1 - low, 1 + high) A), q the ratio (PPO: Schulman et al. 2017, equation 7). A `high` above
    `low` leaves rare tokens more room to grow (DAPO's clip-higher)."""
    if not (0 < low < 1 and (high is None or high > 0)):
        raise DougongError(f"clip is {low} to {high}; expected a share below 1, and a positive one above")
    q = ratio(policy, old, level, mask)
    return -torch.minimum(q * advantages, q.clamp(1 - low, 1 + (low if high is None else high)) * advantages)


def clipped_share(
    policy: Float[Tensor, "B T"],
    old: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    low: float = 0.2,
    high: float | None = None,
    level: Level = "token",
    mask: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B T"]:
    """1 where clipping has ended a token's gradient, else 0."""
    q = ratio(policy, old, level, mask).detach()
    above, below = q > 1 + (low if high is None else high), q < 1 - low
    return ((above & (advantages > 0)) | (below & (advantages < 0))).to(policy.dtype)


def divergence(
    policy: Float[Tensor, "B T"], reference: Float[Tensor, "B T"], estimator: Estimator = "k3"
) -> Float[Tensor, "B T"]:
    """Estimates of KL(policy || reference) from tokens that the policy drew, d = log reference - log policy (Schulman
    2020): k1 = -d (may be negative), k2 = d^2 / 2, k3 = exp(d) - d - 1 (never negative, no bias)."""
    d = reference - policy
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return d.square() / 2
    # Beyond the cut it goes on as a line: far from the reference the pull stays finite, and stays a pull.
    near = d.clamp(-_LARGEST, _LARGEST)
    return near.exp() - near - 1 + (near.detach().exp() - 1) * (d - near)


def value_loss(
    values: Float[Tensor, "B T"],
    old: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"],
    clip: float = 0.2,
) -> Float[Tensor, "B T"]:
    """max((v - R)^2, (clip(v, old - c, old + c) - R)^2) / 2: a value moves at most c (Schulman et al. 2017)."""
    near = torch.maximum(torch.minimum(values, old + clip), old - clip)
    return torch.maximum((values - returns).square(), (near - returns).square()) / 2


def policy_objective(
    policy: Float[Tensor, "B T"],
    old: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    how: How = "token",
    low: float = 0.2,
    high: float | None = None,
    reference: Float[Tensor, "B T"] | None = None,
    coefficient: float = 0.0,
    further: Float[Tensor, "B T"] | None = None,
    length: int | None = None,
    level: Level = "token",
) -> Loss:
    """Clipped policy loss (of ratios at `level`), plus coefficient times the divergence (k3) from the reference where
    there is one, plus any `further` loss of each token (PPO's value loss, weighted), aggregated as `how` says."""
    each = clipped(policy, old, advantages, low, high, level, mask)
    if reference is not None and coefficient:
        each = each + coefficient * divergence(policy, reference)
    if further is not None:
        each = each + further
    total, weight = aggregate(each, mask, how, length)

    def share(values: Tensor) -> Tensor:
        """A mean over tokens as a sum over the loss's own weight."""
        mean, tokens = aggregate(values.detach(), mask)
        return mean / tokens.clamp(min=1) * weight

    metrics = {"clipped": share(clipped_share(policy, old, advantages, low, high, level, mask))}
    if reference is not None:
        metrics["kl"] = share(divergence(policy, reference))
    return Loss(total, weight, metrics)
