"""From rewards to advantages: how much better an answer, or a token, was than what was expected.

Pure functions. G groups of n answers to one prompt each; (B, T) values stand at the places of a row's tokens, and the
mask is true at those of the answer, which stand together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.parts.shapes import Bool, Float

# Beside a deviation of rewards it keeps groups of nearly equal rewards from being blown up (TRL's value).
_EPSILON = 1e-4


def group_relative(rewards: Float[Tensor, "G n"], scale: bool = True) -> Float[Tensor, "G n"]:
    """(r - mean) / (std + 1e-4) in each group, std unbiased (GRPO: Shao et al. 2024); unscaled r - mean (Dr. GRPO: Liu
    et al. 2025). A group of equal rewards gets exactly 0, and so does a group of one."""
    centred = torch.where(equal_groups(rewards)[:, None], 0.0, rewards - rewards.mean(-1, keepdim=True))
    if not scale or rewards.shape[-1] < 2:
        return centred
    return centred / (rewards.std(-1, keepdim=True) + _EPSILON)


def leave_one_out(rewards: Float[Tensor, "G n"]) -> Float[Tensor, "G n"]:
    """r_i - mean of the others' rewards = (r_i - mean) n / (n - 1) (RLOO: Ahmadian et al. 2024).

    Raises DougongError for groups of one: nobody is left to compare with.
    """
    n = rewards.shape[-1]
    if n < 2:
        raise DougongError(f"a group has {n} answer; leave-one-out compares with the others, so sample at least 2")
    return torch.where(equal_groups(rewards)[:, None], 0.0, (rewards - rewards.mean(-1, keepdim=True)) * n / (n - 1))


def equal_groups(rewards: Float[Tensor, "G n"]) -> Bool[Tensor, " G"]:
    """Groups whose rewards are all the same: they teach nothing (DAPO samples others instead: Yu et al. 2025)."""
    return (rewards == rewards[:, :1]).all(-1)


def token_rewards(
    scores: Float[Tensor, " B"], penalties: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """-penalty at every token of the answer, and the score besides at its last one (Ziegler et al. 2019, equation 2).
    An empty answer has no place for its score."""
    rewards = torch.where(mask, -penalties, 0.0)
    places = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, places, -1).amax(-1)  # (B,), -1 for an empty answer
    found = last >= 0
    rewards[found, last[found]] += scores[found]
    return rewards


def generalised_advantages(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """(advantages, returns): A_t = sum_k (gamma lam)^k d_(t+k), d_t = r_t + gamma V_(t+1) - V_t, and A_t + V_t (GAE:
    Schulman et al. 2016). The value after the last token is 0: the text has ended. 0 outside the mask."""
    rewards, values = torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0)
    advantages = torch.zeros_like(rewards)
    carried = following = torch.zeros_like(rewards[:, 0])
    for place in reversed(range(rewards.shape[1])):
        delta = rewards[:, place] + gamma * following - values[:, place]
        carried = torch.where(mask[:, place], delta + gamma * lam * carried, 0.0)
        advantages[:, place], following = carried, values[:, place]
    return advantages, advantages + values


def returns_to_go(rewards: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], gamma: float = 1.0) -> Float[Tensor, "B T"]:
    """sum_k gamma^k r_(t+k): what REINFORCE weighs a token by. It is GAE with lam = 1 and no values."""
    return generalised_advantages(rewards, torch.zeros_like(rewards), mask, gamma, 1.0)[0]


def whiten(values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], centre: bool = True) -> Float[Tensor, "B T"]:
    """(x - mean) / sqrt(var + 1e-8) over the masked places, var unbiased; 0 elsewhere. Values that are all alike become
    0, for they rank nothing; without `centre` the mean is added again."""
    count = mask.sum()
    if int(count) == 0:
        return torch.zeros_like(values)
    mean = values[mask].mean()
    centred = torch.where(mask, values - mean, 0.0)
    variance = centred.square().sum() / (count - 1).clamp(min=1)
    # Rounding makes alike values differ by some 1e-7 of their size: that is no variance.
    alike = variance <= (1e-6 * mean).square()
    done = torch.where(alike, 0.0, centred * torch.rsqrt(variance + 1e-8))
    return done if centre else torch.where(mask, done + mean, 0.0)
