"""Pairs of tokens and experts: their order, the places experts have, and balanced assignment.

N tokens, E experts, k experts a token, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dougong.parts.context import Context
from dougong.parts.shapes import Bool, Float, Int


@dataclass(frozen=True)
class Routing:
    """P pairs in order of their tokens. An expert number of E (one past the last) means that the pair was dropped.

    tokens   (P) int64: index of the token among the N
    experts  (P) int64
    weights  (P): factor of the expert's output
    offsets  (N + 1) int64: the pairs of token n are offsets[n] to offsets[n + 1]
    """

    tokens: Int[Tensor, " P"]
    experts: Int[Tensor, " P"]
    weights: Float[Tensor, " P"]
    offsets: Int[Tensor, " M"]

    @staticmethod
    def of(experts: Int[Tensor, "N k"], weights: Float[Tensor, "N k"]) -> Routing:
        """k pairs for each token."""
        count, chosen = experts.shape
        pairs = torch.arange(count * chosen, device=experts.device)
        offsets = torch.arange(0, (count + 1) * chosen, chosen, device=experts.device)
        return Routing(pairs // chosen, experts.flatten(), weights.flatten(), offsets)


class _Dispatch(torch.autograd.Function):
    """x[rows]; the gradient of a token is the sum over its pairs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, places: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(places, offsets)
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        places, offsets = ctx.saved_tensors
        return F.embedding_bag(places, grads[0], offsets, mode="sum", include_last_offset=True), None, None, None


def dispatch(
    x: Float[Tensor, "N D"], routing: Routing, order: Int[Tensor, " P"], places: Int[Tensor, " P"]
) -> Float[Tensor, "P D"]:
    """Each pair's token, in the given order of pairs; `places` is the order's inverse."""
    y = _Dispatch.apply(x, routing.tokens[order], places, routing.offsets)
    assert isinstance(y, Tensor)
    return y


class _Combine(torch.autograd.Function):
    """One pass over the outputs: an embedding bag with weights, whose table is what the experts gave."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, weights: Tensor, rows: Tensor, order: Tensor, places: Tensor, offsets: Tensor
    ) -> Tensor:
        ctx.save_for_backward(y, weights, rows, order, places)
        return F.embedding_bag(
            places, y, offsets, mode="sum", per_sample_weights=weights.to(y.dtype), include_last_offset=True
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        y, weights, rows, order, places = ctx.saved_tensors
        grad = grads[0].index_select(0, rows)
        inner = torch.linalg.vecdot(grad.float(), y.float())[places].to(weights.dtype)
        return grad * weights[order].to(grad.dtype)[:, None], inner, None, None, None, None


def combine(
    y: Float[Tensor, "P D"], routing: Routing, order: Int[Tensor, " P"], places: Int[Tensor, " P"]
) -> Float[Tensor, "N D"]:
    """Each token's weighted sum of its pairs' outputs, which come in the given order; 0 for a token without pairs."""
    out = _Combine.apply(y, routing.weights, routing.tokens[order], order, places, routing.offsets)
    assert isinstance(out, Tensor)
    return out


def real_tokens(ctx: Context) -> Bool[Tensor, "B T"] | None:
    """Which tokens are no padding; None: all of them."""
    return ctx.real() if ctx.documents is None else ctx.documents >= 0


def within(
    experts: Int[Tensor, "B T k"],
    count: int,
    places: int,
    ctx: Context,
    real: Bool[Tensor, "B T"] | None = None,
    taken: Float[Tensor, "B E"] | None = None,
) -> tuple[Bool[Tensor, "B T k"], Float[Tensor, "B E"]]:
    """Which pairs find a place when each of `count` experts has `places` for a text, first come first served.

    taken: the places that earlier tokens of the text have asked for; returned with these tokens' added.
    """
    batch, tokens, chosen = experts.shape
    asked = F.one_hot(experts, count)
    if real is not None:
        asked = asked * real[..., None, None]
    asked = asked.flatten(1, 2)  # (B, T k, E)
    before = asked.cumsum(1) - asked
    if ctx.documents is not None:  # packed texts count for themselves: take off what came before each
        fresh = torch.ones_like(ctx.documents, dtype=torch.bool)
        fresh[:, 1:] = ctx.documents[:, 1:] != ctx.documents[:, :-1]
        place = torch.arange(tokens, device=experts.device)
        start = torch.where(fresh, place, 0).cummax(1).values * chosen  # (B, T): the first pair of the token's text
        start = start.repeat_interleave(chosen, 1)[..., None].expand_as(before)
        before = before - before.gather(1, start)
    if taken is None:
        taken = torch.zeros(batch, count, device=experts.device)
    before = before + taken.long()[:, None]
    mine = before.gather(-1, experts.flatten(1, 2)[..., None]).view(experts.shape)
    return mine < places, taken + asked.sum(1)


def assign(affinity: Float[Tensor, "N E"], rounds: int = 1000) -> Int[Tensor, " N"]:
    """An expert for each token, at most ceil(N / E) tokens each, with nearly the highest sum of affinities.

    An auction (Bertsekas 1988): tokens without an expert bid for the one worth most to them at today's prices, by as
    much as it is worth more than the second best, plus a little; an expert keeps its highest bids, and once full its
    price is the lowest of them. The sum ends at most N x `little` below the best, within `rounds`; tokens left over
    then (none in practice) take the free places in order.
    """
    count, experts = affinity.shape
    chosen = torch.full((count,), -1, dtype=torch.int64, device=affinity.device)
    if experts == 1 or count == 0:
        return chosen.clamp(min=0)
    places = -(-count // experts)
    little = float(affinity.max() - affinity.min()) * 1e-3 + 1e-9
    prices = affinity.new_zeros(experts)
    bids = affinity.new_full((count,), -torch.inf)
    for _ in range(rounds):
        free = (chosen < 0).nonzero().squeeze(-1)
        if len(free) == 0:
            return chosen
        values, best = (affinity[free] - prices).topk(2, -1)
        chosen[free] = best[:, 0]
        bids[free] = prices[best[:, 0]] + values[:, 0] - values[:, 1] + little
        for expert in best[:, 0].unique().tolist():
            held = (chosen == expert).nonzero().squeeze(-1)
            if len(held) >= places:
                order = bids[held].argsort(descending=True, stable=True)
                chosen[held[order[places:]]] = -1
                prices[expert] = bids[held[order[places - 1]]]
    room = places - torch.bincount(chosen[chosen >= 0], minlength=experts)
    spare = torch.arange(experts, device=affinity.device).repeat_interleave(room)
    left = (chosen < 0).nonzero().squeeze(-1)
    chosen[left] = spare[: len(left)]
    return chosen
