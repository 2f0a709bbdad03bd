"""Routers: which experts work on which tokens, and with what weight.

A router answers with pairs (token, expert, weight): `Routing`. A router that lets tokens choose gives each top_k pairs;
with expert choice a token may have any number. N = B x T tokens, E experts, k of them chosen a token, P pairs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from dougong.base import DougongError
from dougong.parts.balance import LOADS, add, balance_loss, counts, record, z_loss
from dougong.parts.context import Context
from dougong.parts.linear import Linear
from dougong.parts.routing import Routing, assign, real_tokens, within
from dougong.parts.shapes import Float, Int
from dougong.parts.state import LayerState, Slot, Slots


class Router(nn.Module, ABC):
    """Tokens in, pairs out. Routers see the context: padding takes no places and does not count."""

    @abstractmethod
    def forward(self, x: Float[Tensor, "B T D"], ctx: Context, state: LayerState | None = None) -> Routing: ...


@dataclass(frozen=True)
class TopK:
    """Each token takes the `top_k` experts with the highest scores s = softmax(W x) or sigmoid(W x).

    normalise    weights are s_i / sum over the chosen of s, else s_i. For softmax this equals the softmax over the
                 chosen logits alone (Mixtral, gpt-oss). All are then multiplied by `scale`
    correction   choose by s + c, but weigh by s; c follows the loads instead of a loss (`balance.rebalance`,
                 Wang et al. 2024; DeepSeek-V3)
    groups       experts stand in this many groups; only those of the `top_groups` best groups can be chosen. A group's
                 score is the sum of its `group_best` highest (1 in DeepSeek-V2, 2 in V3)
    capacity     places that each expert has for one text, first come first served; with none left a token's pair is
                 dropped and only the residual path carries it (Switch: top_k 1 without normalise, Fedus et al. 2021)
    factor       the same in training only, with factor x tokens x top_k / E places
    balance, z   weights of the two auxiliary losses in training (`balance.balance_loss`, `balance.z_loss`)
    """

    tagged: ClassVar[bool] = True

    score: Literal["softmax", "sigmoid"] = "softmax"
    normalise: bool = True
    scale: float = 1.0
    bias: bool = False
    correction: bool = False
    groups: int = 1
    top_groups: int = 1
    group_best: int = 1
    capacity: int | None = None
    factor: float | None = None
    balance: float = 0.0
    z: float = 0.0

    def build(self, width: int, experts: int, top_k: int) -> TopKRouter:
        return TopKRouter(self, width, experts, top_k)

    def slots(self, experts: int) -> Slots:
        """How many of each expert's places the text has taken so far."""
        if self.capacity is None:
            return {}
        return {"taken": Slot((experts,), per_token=False, dtype=torch.float32)}

    def parameters(self, width: int, experts: int) -> int:
        return experts * (width + self.bias + self.correction)

    def flops(self, width: int, experts: int) -> float:
        return 2 * width * experts


class TopKRouter(Router):
    def __init__(self, spec: TopK, width: int, experts: int, top_k: int):
        super().__init__()
        in_group, uneven = divmod(experts, spec.groups)
        if uneven or not 1 <= spec.top_groups <= spec.groups or spec.group_best > in_group:
            raise DougongError(f"a router cannot split {experts} experts as {spec} says")
        if top_k > in_group * spec.top_groups:
            raise DougongError(f"top_k is {top_k}; {spec.top_groups} groups of {in_group} experts leave fewer")
        self.spec, self.experts, self.top_k = spec, experts, top_k
        self.logits = Linear(width, experts, spec.bias, axes=("embed", "expert"))
        # Not trained by gradients, but part of the model: a parameter, so that checkpoints carry it.
        self.correction = nn.Parameter(torch.empty(experts), requires_grad=False) if spec.correction else None

    def initial(self, generator: torch.Generator) -> None:
        with torch.no_grad():
            if self.correction is not None:
                self.correction.zero_()

    def forward(self, x: Float[Tensor, "B T D"], ctx: Context, state: LayerState | None = None) -> Routing:
        spec = self.spec
        logits = self.logits(x).float()  # (B, T, E)
        scores = logits.softmax(-1) if spec.score == "softmax" else logits.sigmoid()
        experts = self.choose(scores)  # (B, T, k)
        weights = scores.gather(-1, experts)
        if spec.normalise:
            weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-20)
        if spec.scale != 1:
            weights = weights * spec.scale
        real = real_tokens(ctx)
        if self.training and torch.is_grad_enabled() and (spec.balance or spec.z):
            _auxiliary(ctx, spec, logits, scores, experts, real)
        record(ctx, self, experts, self.experts, real)
        if (places := self.places(experts, ctx)) is not None:
            taken = None if state is None or spec.capacity is None else state.read("taken")
            kept, taken = within(experts, self.experts, places, ctx, real, taken)
            if state is not None and spec.capacity is not None:
                state.write("taken", taken)
            experts, weights = experts.masked_fill(~kept, self.experts), weights.masked_fill(~kept, 0)
        return Routing.of(experts.flatten(0, 1), weights.flatten(0, 1))

    def choose(self, scores: Float[Tensor, "B T E"]) -> Int[Tensor, "B T k"]:
        """The experts of each token."""
        spec = self.spec
        with torch.no_grad():
            if self.correction is not None:
                scores = scores + self.correction.float()
            if spec.top_groups < spec.groups:
                apart = scores.unflatten(-1, (spec.groups, -1))  # (B, T, groups, E / groups)
                best = apart.topk(spec.group_best, -1).values.sum(-1).topk(spec.top_groups, -1).indices
                out = torch.ones(apart.shape[:-1], dtype=torch.bool, device=scores.device).scatter(-1, best, False)
                scores = apart.masked_fill(out[..., None], -torch.inf).flatten(-2)
            return scores.topk(self.top_k, -1).indices

    def places(self, experts: Tensor, ctx: Context) -> int | None:
        """Tokens of one text that an expert can take; None: any number."""
        if self.spec.factor is not None and self.training:
            return max(1, int(self.spec.factor * experts.shape[1] * self.top_k / self.experts))
        return self.spec.capacity


def _auxiliary(ctx: Context, spec: TopK, logits: Tensor, scores: Tensor, experts: Tensor, real: Tensor | None) -> None:
    flat = None if real is None else real.expand(logits.shape[:2]).flatten()
    if spec.balance:
        shares = scores if spec.score == "softmax" else scores / scores.sum(-1, keepdim=True)
        add(ctx, spec.balance, *balance_loss(shares.flatten(0, 1), experts.flatten(0, 1), flat))
    if spec.z:
        add(ctx, spec.z, *z_loss(logits.flatten(0, 1), flat))


@dataclass(frozen=True)
class ExpertChoice:
    """Each expert takes its N x top_k / E favourite tokens: balanced by construction (Zhou et al. 2022).

    Weights are softmax(W x) over the experts. Whether a token is taken depends on all other tokens of the batch, later
    ones too, so a causal model can choose so only in training; in evaluation its tokens take their own `top_k` experts.
    """

    tagged: ClassVar[bool] = True

    def build(self, width: int, experts: int, top_k: int) -> ExpertChoiceRouter:
        return ExpertChoiceRouter(width, experts, top_k)

    def slots(self, experts: int) -> Slots:
        return {}

    def parameters(self, width: int, experts: int) -> int:
        return width * experts

    def flops(self, width: int, experts: int) -> float:
        return 2 * width * experts


class ExpertChoiceRouter(Router):
    def __init__(self, width: int, experts: int, top_k: int):
        super().__init__()
        self.experts, self.top_k = experts, top_k
        self.logits = Linear(width, experts, axes=("embed", "expert"))

    def forward(self, x: Float[Tensor, "B T D"], ctx: Context, state: LayerState | None = None) -> Routing:
        scores = self.logits(x).float().softmax(-1).flatten(0, 1)  # (N, E)
        real = real_tokens(ctx)
        if ctx.causal and not self.training:
            weights, experts = scores.topk(self.top_k, -1)
            record(ctx, self, experts.view(*x.shape[:2], -1), self.experts, real)
            return Routing.of(experts, weights)
        favour, count = scores.detach(), len(scores)
        if real is not None:
            favour, count = favour.masked_fill(~real.flatten()[:, None], -1), int(real.sum())
        size = min(count, max(1, count * self.top_k // self.experts))
        taken = favour.topk(size, dim=0).indices.t().flatten()  # tokens, one expert's after the other's
        order = taken.argsort(stable=True)
        tokens, experts = taken[order], order // max(size, 1)
        offsets = torch.searchsorted(tokens, torch.arange(len(scores) + 1, device=x.device))
        if (loads := ctx.memo.get(LOADS)) is not None:
            loads.append((self, counts(experts, self.experts)))
        return Routing(tokens, experts, scores[tokens, experts], offsets)


@dataclass(frozen=True)
class Hash:
    """Experts by token id, nothing learned (Roller et al. 2021): e = mix(id, seed) mod E and the top_k - 1 after it,
    with weights 1 / top_k. `ctx.memo["tokens"]` must hold the ids (B, T)."""

    tagged: ClassVar[bool] = True

    seed: int = 0

    def build(self, width: int, experts: int, top_k: int) -> HashRouter:
        return HashRouter(self, experts, top_k)

    def slots(self, experts: int) -> Slots:
        return {}

    def parameters(self, width: int, experts: int) -> int:
        return 0

    def flops(self, width: int, experts: int) -> float:
        return 0


class HashRouter(Router):
    def __init__(self, spec: Hash, experts: int, top_k: int):
        super().__init__()
        self.spec, self.experts, self.top_k = spec, experts, top_k

    def forward(self, x: Float[Tensor, "B T D"], ctx: Context, state: LayerState | None = None) -> Routing:
        tokens = ctx.memo.get("tokens")
        if tokens is None:
            raise DougongError(
                'a hash router reads token ids; whoever runs the layer puts them into ctx.memo["tokens"]'
            )
        first = _mix(tokens + 0x9E3779B1 * self.spec.seed) % self.experts
        experts = (first[..., None] + torch.arange(self.top_k, device=x.device)) % self.experts
        record(ctx, self, experts, self.experts, real_tokens(ctx))
        weights = torch.full(experts.shape, 1 / self.top_k, device=x.device)
        return Routing.of(experts.flatten(0, 1), weights.flatten(0, 1))


def _mix(x: Tensor) -> Tensor:
    """Nearby numbers to numbers far apart, below 2^31 (a round of murmur3's finaliser, kept within int64)."""
    for factor in (0x45D9F3B, 0x119DE1F):
        x = ((x ^ (x >> 16)) * factor) & 0x7FFFFFFF
    return x ^ (x >> 15)


@dataclass(frozen=True)
class Base:
    """BASE layers (Lewis et al. 2021): in training every expert gets the same number of tokens, by the assignment with
    the highest sum of affinities W x; in evaluation each token takes its best expert. The weight is sigmoid(W x). Each
    token has one expert, so `top_k` is 1."""

    tagged: ClassVar[bool] = True

    def build(self, width: int, experts: int, top_k: int) -> BaseRouter:
        if top_k != 1:
            raise DougongError(f"top_k is {top_k}; BASE assigns each token to 1 expert")
        return BaseRouter(width, experts)

    def slots(self, experts: int) -> Slots:
        return {}

    def parameters(self, width: int, experts: int) -> int:
        return width * experts

    def flops(self, width: int, experts: int) -> float:
        return 2 * width * experts


class BaseRouter(Router):
    def __init__(self, width: int, experts: int):
        super().__init__()
        self.experts = experts
        self.logits = Linear(width, experts, axes=("embed", "expert"))

    def forward(self, x: Float[Tensor, "B T D"], ctx: Context, state: LayerState | None = None) -> Routing:
        affinity = self.logits(x).float()  # (B, T, E)
        real = real_tokens(ctx)
        experts = affinity.detach().argmax(-1)
        if self.training:
            chosen = torch.ones_like(experts, dtype=torch.bool) if real is None else real.expand_as(experts)
            experts = experts.masked_scatter(chosen, assign(affinity.detach()[chosen]))
        experts = experts[..., None]
        record(ctx, self, experts, self.experts, real)
        weights = affinity.gather(-1, experts).sigmoid()
        return Routing.of(experts.flatten(0, 1), weights.flatten(0, 1))
