"""Keeping experts equally busy: auxiliary losses, the loss-free bias, and the loads themselves.

Nothing is kept in modules. During a forward pass routers write into the context's memo, and whoever made the context
reads it afterwards:

ctx.memo["auxiliary"]  list of (sum, weight): an auxiliary loss times its factor, summed over `weight` tokens; written
                       while training with gradients. `auxiliary(ctx)` adds up their means.
ctx.memo["loads"]      list of (router, counts (E)): pairs that each expert was asked for, without padding; written
                       only if the caller has put an empty list there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dougong.parts.context import Context
from dougong.parts.shapes import Bool, Float, Int

AUXILIARY = "auxiliary"
LOADS = "loads"


def balance_loss(
    shares: Float[Tensor, "N E"], experts: Int[Tensor, "N k"], real: Bool[Tensor, " N"] | None = None
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """N E sum_e f_e P_e, and N: f_e is the fraction of tokens sent to e, P_e the mean share of e in the router's
    scores (Fedus et al. 2021, eq. 4). Its mean is k when the load is even. N counts real tokens."""
    if real is not None:
        shares, experts = shares * real[:, None], experts.masked_fill(~real[:, None], shares.shape[1])
        count = real.sum().clamp(min=1).to(shares.dtype)
    else:
        count = shares.new_tensor(len(shares))
    sent = counts(experts, shares.shape[1]).to(shares.dtype)
    return shares.shape[1] * (sent * shares.sum(0)).sum() / count, count


def z_loss(
    logits: Float[Tensor, "N E"], real: Bool[Tensor, " N"] | None = None
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Sum over tokens of (log sum_e exp logit_e)^2, and N: keeps the logits small (Zoph et al. 2022, eq. 5)."""
    each = logits.logsumexp(-1).square()
    if real is None:
        return each.sum(), each.new_tensor(len(each))
    return (each * real).sum(), real.sum().clamp(min=1).to(each.dtype)


def counts(experts: Int[Tensor, "*N"], total: int) -> Int[Tensor, " E"]:
    """How often each of `total` experts occurs; numbers past them are not counted. Shapes do not depend on data."""
    flat = experts.flatten()
    return flat.new_zeros(total + 1).scatter_add_(0, flat, torch.ones_like(flat))[:total]


def add(ctx: Context, factor: float, total: Float[Tensor, ""], weight: Float[Tensor, ""]) -> None:
    """Write an auxiliary loss into the context."""
    ctx.memo.setdefault(AUXILIARY, []).append((factor * total, weight))


def auxiliary(ctx: Context) -> Float[Tensor, ""] | None:
    """The auxiliary losses of a forward pass, means over its tokens, added up; None where no router has any.

    An objective whose loss is `sum / weight` adds `auxiliary(ctx) * weight` to its sum. Call it before the backward
    pass: recomputed layers write again.
    """
    parts = ctx.memo.get(AUXILIARY)
    return torch.stack([total / weight for total, weight in parts]).sum() if parts else None


def record(
    ctx: Context, router: nn.Module, experts: Int[Tensor, "B T k"], total: int, real: Bool[Tensor, "B T"] | None
) -> None:
    """Write a router's loads into the context, if they are wanted."""
    if (loads := ctx.memo.get(LOADS)) is not None:
        kept = experts if real is None else experts.masked_fill(~real[..., None], total)
        loads.append((router, counts(kept, total)))


@torch.no_grad()
def rebalance(
    correction: Float[Tensor, " E"], loads: Float[Tensor, " E"] | Int[Tensor, " E"], rate: float = 1e-3
) -> None:
    """Loss-free balancing, after a step: correction_e += rate x sign(mean load - load_e) (Wang et al. 2024, alg. 1).

    `loads` are the pairs of the whole step, over micro-batches and ranks.
    """
    loads = loads.to(correction.dtype)
    correction += rate * (loads.mean() - loads).sign()
