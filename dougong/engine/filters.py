"""Choosing the next token: pure functions of logits, batched over rows. A token that is filtered out gets -inf."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.engine.sampling import Sampling
from dougong.parts.shapes import Float, Int


def top_k(logits: Float[Tensor, "B V"], k: int) -> Float[Tensor, "B V"]:
    """Keep the k largest logits of each row, and whatever ties with the k-th (Fan et al. 2018)."""
    if k >= logits.shape[-1]:
        return logits
    least = logits.topk(k, dim=-1).values[:, -1:]
    return logits.masked_fill(logits < least, -math.inf)


def top_p(logits: Float[Tensor, "B V"], p: float) -> Float[Tensor, "B V"]:
    """Nucleus (Holtzman et al. 2020): the smallest set of most probable tokens with sum of softmax(logits) >= p.

    A token stays when those before it sum to less than p, so the most probable one always does. Ties: lower id first.
    """
    if p >= 1:
        return logits
    ordered, order = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1, dtype=torch.float64) - ordered
    out = torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, order, before >= p)
    return logits.masked_fill(out, -math.inf)


def min_p(logits: Float[Tensor, "B V"], p: float) -> Float[Tensor, "B V"]:
    """Keep tokens at least p times as probable as the best: logit >= max + ln p (Nguyen et al. 2024)."""
    if p <= 0:
        return logits
    least = logits.amax(-1, keepdim=True) + math.log(p)
    return logits.masked_fill(logits < least, -math.inf)


def distribution(logits: Float[Tensor, "B V"], sampling: Sampling) -> Float[Tensor, "B V"]:
    """Probabilities from which a request with `sampling` draws (temperature above 0)."""
    # Subtracting the best first: a tiny temperature would otherwise overflow to infinity.
    scaled = (logits - logits.amax(-1, keepdim=True)) / sampling.temperature
    if sampling.top_k is not None:
        scaled = top_k(scaled, sampling.top_k)
    return min_p(top_p(scaled, sampling.top_p), sampling.min_p).softmax(-1)


def draw(probabilities: Float[Tensor, "B V"], uniform: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """The token at which the cumulative probability first exceeds u, for u uniform in [0, 1) (inversion).

    One number a token makes a row's choice independent of the other rows. Sums are taken in float64: over a vocabulary
    of 150,000, float32 loses the tail.
    """
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    # The last sum may differ from 1 by rounding; scaling u by it keeps the draw inside the vocabulary.
    place = uniform.to(cumulative)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, place, right=True)[:, 0].clamp(max=probabilities.shape[-1] - 1)


def choose(
    logits: Float[Tensor, "B V"], samplings: Sequence[Sampling], generators: Sequence[torch.Generator]
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """The next token of each row, and its log-probability under the model itself: log softmax(logits), untempered.

    Row b is chosen as samplings[b] says with one number of generators[b]. Log-probabilities nobody asked for are 0.
    Raises DougongError when logits are not finite.
    """
    logits = logits.float()
    tokens = torch.empty(logits.shape[0], dtype=torch.int64, device=logits.device)
    alike: dict[tuple[float, int | None, float, float], list[int]] = {}
    for row, each in enumerate(samplings):
        alike.setdefault((each.temperature, each.top_k, each.top_p, each.min_p), []).append(row)
    for rows in alike.values():
        own = logits if len(rows) == len(samplings) else logits[rows]
        sampling = samplings[rows[0]]
        if sampling.greedy:
            tokens[rows] = own.argmax(-1)
        else:
            # On the CPU whatever the device: a seed then means the same everywhere.
            uniform = torch.cat([torch.rand(1, generator=generators[row], dtype=torch.float64) for row in rows])
            tokens[rows] = draw(distribution(own, sampling), uniform.to(logits.device))
    chosen = logits.gather(-1, tokens[:, None])[:, 0]
    if any(each.logprobs for each in samplings):
        chosen = chosen - logits.logsumexp(-1)
    if not bool(chosen.isfinite().all()):
        raise DougongError("the model's logits are not finite; its weights are damaged, or overflow in this dtype")
    return tokens, chosen
