"""Objectives: pure functions of tensors that return a sum, its weight and metrics. The trainer alone divides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dougong.parts.cross_entropy import cross_entropy
from dougong.parts.linear import Linear
from dougong.parts.shapes import Float, Int


@dataclass(frozen=True)
class Loss:
    """sum: the summed loss, a scalar with a gradient. weight: what to divide it by, e.g. the number of target tokens.

    metrics: further sums over the same weight, to be reported divided by it. Sums and weights add over micro-batches
    and ranks, so the update does not depend on how a batch was cut.
    """

    sum: Float[Tensor, ""]
    weight: Float[Tensor, ""]
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


def causal_lm(
    hidden: Float[Tensor, "B T D"],
    head: Linear,
    targets: Int[Tensor, "B T"],
    weights: Float[Tensor, "B T"] | None = None,
) -> Loss:
    """-sum log p(target_t | tokens up to t) in nats over the places whose target is not -100, and their number."""
    total, weight = cross_entropy(hidden, head, targets, weights)
    return Loss(total, weight)


def token_logprobs(logits: Float[Tensor, "B T V"], targets: Int[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """log softmax(logits)[target] in float32; 0 where the target is -100."""
    chosen = logits.float().log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)
    return torch.where(targets >= 0, chosen, torch.zeros_like(chosen))
