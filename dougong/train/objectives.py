"""Objectives: pure functions of tensors that return a sum, its weight and metrics. The trainer alone divides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dougong.parts.cross_entropy import IGNORED, cross_entropy
from dougong.parts.linear import Linear
from dougong.parts.shapes import Bool, Float, Int


@dataclass(frozen=True)
class Loss:
    """sum: the summed loss, a scalar with a gradient. weight: what to divide it by, e.g. the number of target tokens.

    metrics: further sums over the same weight, to be reported divided by it. Sums and weights add over micro-batches
    and ranks, so the update does not depend on how a batch was cut. loads: of each router of a mixture of experts, the
    pairs (token, expert) that fell to each expert; the trainer balances by them if it is told to.
    """

    sum: Float[Tensor, ""]
    weight: Float[Tensor, ""]
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    loads: Sequence[tuple[nn.Module, Int[Tensor, " E"]]] = ()


def causal_lm(
    hidden: Float[Tensor, "B T D"],
    head: Linear,
    targets: Int[Tensor, "B T"],
    weights: Float[Tensor, "B T"] | None = None,
    softcap: float | None = None,
) -> Loss:
    """-sum log p(target_t | tokens up to t) in nats over the places whose target is not -100, and their number."""
    total, weight = cross_entropy(hidden, head, targets, weights, softcap)
    return Loss(total, weight)


def token_logprobs(logits: Float[Tensor, "B T V"], targets: Int[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """log softmax(logits)[target] in float32; 0 where the target is -100."""
    chosen = logits.float().log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)
    return torch.where(targets >= 0, chosen, torch.zeros_like(chosen))


def masked_lm(
    hidden: Float[Tensor, "B T D"], head: Linear, targets: Int[Tensor, "B T"], softcap: float | None = None
) -> Loss:
    """-sum log p(target_t | the text, some tokens hidden) over the hidden places (train/masking.py), and their number.
    The same sum as `causal_lm`'s: what differs is what the hidden states have seen."""
    return causal_lm(hidden, head, targets, softcap=softcap)


def classification(logits: Float[Tensor, "*N labels"], targets: Int[Tensor, "*N"]) -> Loss:
    """-sum log softmax(logits)[target] over texts (B) or tokens (B, T) whose target is not -100, their number, and how
    many are right."""
    kept = targets != IGNORED
    logits, targets = logits[kept].float(), targets[kept]
    total = -logits.log_softmax(-1).gather(-1, targets[:, None]).sum()
    right = (logits.argmax(-1) == targets).sum().to(total.dtype)
    return Loss(total, kept.sum().to(total.dtype), {"accuracy": right})


def span(logits: Float[Tensor, "B T 2"], targets: Int[Tensor, "B 2"], real: Bool[Tensor, "B T"] | None = None) -> Loss:
    """(-log p(start) - log p(end)) / 2, summed over texts whose targets are not -100, and their number; each p is a
    softmax over the text's real tokens (Devlin et al. 2018)."""
    scores = logits.float() if real is None else logits.float().masked_fill(~real[..., None], -torch.inf)
    kept = (targets != IGNORED).all(-1)
    chosen = scores[kept].log_softmax(1).gather(1, targets[kept][:, None]).squeeze(1)  # (texts, 2)
    return Loss(-chosen.mean(-1).sum(), kept.sum().to(scores.dtype))


def regression(values: Float[Tensor, "*N"], targets: Float[Tensor, "*N"]) -> Loss:
    """sum (value - target)^2 over the places whose target is not NaN, and their number."""
    kept = ~targets.isnan()
    error = values[kept].float() - targets[kept].float()
    return Loss(error.square().sum(), kept.sum().to(error.dtype))
