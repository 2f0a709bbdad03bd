"""Cross-entropy straight from hidden states, which never holds all logits.

The rows of logits are computed, used and dropped a chunk at a time. Their gradient is known as soon as they are
(softmax minus one-hot), so the gradients of the hidden states and of the weight are made in the same pass, while the
chunk is still in the cache: memory falls from N x V to chunk x V, and the logits cross the memory bus once.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dougong.parts.linear import Dense, Linear
from dougong.parts.matmul import product
from dougong.parts.shapes import Float, Int

IGNORED = -100


def cross_entropy(
    hidden: Float[Tensor, "*N D"],
    head: Linear,
    targets: Int[Tensor, "*N"],
    weights: Float[Tensor, "*N"] | None = None,
    softcap: float | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """(sum of w * -log softmax(head(hidden))[target], sum of w) over the places whose target is not -100.

    hidden: (..., D); targets: (...) int64; weights: a factor for each place, 1 where None; softcap: logits
    become cap * tanh(logits / cap). Equal to `F.cross_entropy(head(hidden), targets, reduction="sum")` and its
    gradients, in nats.
    """
    hidden, targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    weights = torch.ones_like(targets, dtype=torch.float32) if weights is None else weights.reshape(-1).float()
    if torch.compiler.is_compiling():  # a graph has fixed shapes: places without loss stay, with weight 0
        weights, targets = weights * (targets != IGNORED), targets.clamp(min=0)
    else:
        kept = (targets != IGNORED).nonzero().squeeze(-1)
        if len(kept) < len(targets):  # places without loss never reach the head
            hidden, targets, weights = hidden[kept], targets[kept], weights[kept]
    plain = isinstance(head.storage, Dense) and not head.adapters and head.placement is None and softcap is None
    if plain and isinstance(head.storage, Dense):
        total = _Fused.apply(hidden, head.storage.weight, head.bias, targets, weights)
        assert isinstance(total, Tensor)
        return total, weights.sum()
    total = hidden.new_zeros((), dtype=torch.float32)
    for rows in _chunks(len(targets), head.out_features):
        part = checkpoint(_plain, head, hidden[rows], targets[rows], weights[rows], softcap, use_reentrant=False)
        assert isinstance(part, Tensor)
        total = total + part
    return total, weights.sum()


def _plain(head: Linear, hidden: Tensor, targets: Tensor, weights: Tensor, softcap: float | None) -> Tensor:
    return (F.cross_entropy(capped(head(hidden).float(), softcap), targets, reduction="none") * weights).sum()


def capped(logits: Float[Tensor, "*N V"], softcap: float | None) -> Float[Tensor, "*N V"]:
    """cap * tanh(logits / cap), which keeps logits within +- cap (Gemma 2)."""
    return logits if softcap is None else softcap * (logits / softcap).tanh()


def chunk_rows(vocab: int) -> int:
    """Rows whose logits are held at a time: about 16 MB, large enough for full speed, small beside the model."""
    return min(1024, max(128, (1 << 22) // vocab))


def _chunks(count: int, vocab: int) -> list[slice]:
    rows = chunk_rows(vocab)
    return [slice(start, min(start + rows, count)) for start in range(0, count, rows)]


def _losses(scores: Float[Tensor, "N V"], target: Int[Tensor, "N 1"]) -> tuple[Float[Tensor, "N 1"], Tensor]:
    """Each row's loss and the gradient of its scores, softmax minus one-hot; on a CPU it is written over the scores."""
    if torch.compiler.is_compiling():  # as a comparison it fuses with what stands around it
        scores = scores.log_softmax(1)
        columns = torch.arange(scores.shape[1], device=scores.device)
        return -scores.gather(1, target), scores.exp() - (columns == target).float()
    chosen, largest = scores.gather(1, target), scores.amax(1, keepdim=True)
    if scores.device.type == "cpu":  # one pass in place, where a log-softmax and its exponential take two and more room
        grad = torch.ops.aten._softmax.out(scores, 1, False, out=scores)
    else:
        grad = scores.softmax(1)
    # log sum exp(s) = s - log softmax(s) for any s; at the largest the softmax is never too small for its logarithm
    losses = largest - grad.amax(1, keepdim=True).log() - chosen
    return losses, grad.scatter_add_(1, target, grad.new_full(target.shape, -1.0))


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor
    ) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        hidden_low, weight_low = hidden.to(dtype), weight.to(dtype)
        bias_low = None if bias is None else bias.to(dtype)
        d_hidden = torch.empty_like(hidden) if need_hidden else None
        d_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if need_weight else None
        d_bias = torch.zeros(weight.shape[0], dtype=torch.float32, device=weight.device) if need_bias else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        weighted = torch.compiler.is_compiling() or not bool((weights == 1).all())
        with torch.autocast(device, enabled=False):
            for rows in _chunks(len(targets), weight.shape[0]):
                scores = product(hidden_low[rows], weight_low, bias_low).float()
                target, factor = targets[rows, None], weights[rows, None]
                losses, grad = _losses(scores, target)
                total += (losses * factor).sum()
                if not (need_hidden or need_weight or need_bias):
                    continue
                if weighted:
                    grad.mul_(factor)
                if d_bias is not None:
                    d_bias += grad.sum(0)
                grad = grad.to(dtype)
                if d_hidden is not None:
                    d_hidden[rows] = product(grad, weight_low.t())
                if d_weight is not None:
                    if dtype == torch.float32:
                        d_weight.addmm_(grad.t(), hidden_low[rows])
                    else:
                        d_weight += grad.t() @ hidden_low[rows]
        ctx.grads = (d_hidden, d_weight, d_bias)
        ctx.types = (weight.dtype, None if bias is None else bias.dtype)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0]
        if ctx.grads is None:
            raise RuntimeError("the gradients of this cross-entropy were already used; run its forward pass again")
        d_hidden, d_weight, d_bias = ctx.grads
        ctx.grads = None
        if (
            torch.compiler.is_compiling() or grad.device.type != "cpu" or float(grad) != 1
        ):  # on a CPU asking is free, and the answer is mostly 1
            for each in (d_hidden, d_weight, d_bias):
                if each is not None:
                    each.mul_(grad)  # ours alone and used once
        if d_weight is not None:
            d_weight = d_weight.to(ctx.types[0])
        if d_bias is not None:
            d_bias = d_bias.to(ctx.types[1])
        return d_hidden, d_weight, d_bias, None, None
