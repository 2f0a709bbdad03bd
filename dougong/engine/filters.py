"""Changing and cutting the distribution of the next token: pure functions of logits, batched over rows. A token that is
filtered out gets -inf. In order and ties they follow the logits processors of transformers, unless said otherwise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dougong.engine.sampling import Sampling
from dougong.parts.shapes import Float, Int

# Tokens of one block of `draw`: about the square root of a large vocabulary.
_BLOCK = 512


def penalise_repetition(
    logits: Float[Tensor, "B V"], rows: Int[Tensor, " N"], ids: Int[Tensor, " N"], penalty: Float[Tensor, " N"]
) -> None:
    """In place, for each n: the logit of ids[n] in row rows[n] is divided by penalty[n] where it is positive and
    multiplied where it is not, once for however many times it is named (Keskar et al. 2019)."""
    found = logits[rows, ids]
    logits[rows, ids] = torch.where(found > 0, found / penalty, found * penalty)


def penalise_presence(
    logits: Float[Tensor, "B V"],
    rows: Int[Tensor, " N"],
    ids: Int[Tensor, " N"],
    presence: Float[Tensor, " N"],
    frequency: Float[Tensor, " N"],
) -> None:
    """In place: logit -= [count > 0] presence + count frequency, count being how often (row, id) is named (OpenAI's
    formula, over the answer alone)."""
    logits[rows, ids] = logits[rows, ids] - presence
    logits.index_put_((rows, ids), -frequency, accumulate=True)


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


def typical(logits: Float[Tensor, "B V"], p: float) -> Float[Tensor, "B V"]:
    """Locally typical sampling (Meister et al. 2023): in order of |-log p(token) - H|, H the entropy, keep tokens until
    their probabilities sum to p or more, and whatever ties with the last of them."""
    if p >= 1:
        return logits
    logp = logits.log_softmax(-1)
    probabilities = logp.exp()
    entropy = -(probabilities * logp).nansum(-1, keepdim=True)  # 0 log 0 = 0
    away = (logp + entropy).abs()
    ordered, order = away.sort(dim=-1)
    whole = probabilities.gather(-1, order).cumsum(-1, dtype=torch.float64)
    last = (whole < p).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    return logits.masked_fill(away > ordered.gather(-1, last), -math.inf)


def distribution(logits: Float[Tensor, "B V"], sampling: Sampling) -> Float[Tensor, "B V"]:
    """Probabilities from which a request with `sampling` draws (temperature above 0), its penalties left aside."""
    # Subtracting the best first: a tiny temperature would otherwise overflow to infinity.
    scaled = (logits - logits.amax(-1, keepdim=True)) / sampling.temperature
    if sampling.top_k is not None:
        scaled = top_k(scaled, sampling.top_k)
    return remaining(top_p(scaled, sampling.top_p), sampling)


def remaining(scaled: Float[Tensor, "B V"], sampling: Sampling) -> Float[Tensor, "B V"]:
    """The filters after the nucleus, and the probabilities that they leave."""
    return typical(min_p(scaled, sampling.min_p), sampling.typical_p).softmax(-1)


def draw(probabilities: Float[Tensor, "B V"], uniform: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """The token at which the cumulative probability first exceeds u, for u uniform in [0, 1) (inversion).

    One number a token makes a row's choice independent of the other rows. Cumulative sums are taken in float64: over a
    vocabulary of 150,000, float32 loses the tail. A large vocabulary is searched by blocks, then within the block.
    """
    if probabilities.shape[-1] <= 4 * _BLOCK:
        return _invert(probabilities, uniform.double())[0]
    whole = probabilities.shape[-1] // _BLOCK * _BLOCK
    sums = probabilities[:, :whole].unflatten(-1, (-1, _BLOCK)).sum(-1)  # (B, blocks); the tail is one more
    sums = torch.cat((sums, probabilities[:, whole:].sum(-1, keepdim=True)), -1)
    block, inside = _invert(sums, uniform.double())
    places = block[:, None] * _BLOCK + torch.arange(_BLOCK, device=block.device)
    last = probabilities.shape[-1] - 1
    chosen = probabilities.gather(-1, places.clamp(max=last)).masked_fill(places > last, 0)
    return block * _BLOCK + _invert(chosen, inside)[0]


def _invert(
    weights: Float[Tensor, "B N"], uniform: Float[Tensor, " B"]
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """The place where the cumulative weight first exceeds u times the whole, and how far into that place it lies, as a
    fraction of it. The place never has weight 0, whatever rounding does."""
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    target = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    place = torch.searchsorted(cumulative, target, right=True)
    place = place.clamp(max=weights.shape[-1] - 1)
    own = weights.gather(-1, place).double()
    inside = ((target - cumulative.gather(-1, place) + own) / own).clamp(0, 1)
    return place[:, 0], inside[:, 0]
