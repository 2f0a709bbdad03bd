"""softmax(q k^T scale + mask) v: the only file that knows attention kernels.

`reference` reads like the formula and serves as the truth in tests; `attend` picks the fastest kernel that does the
same for the case at hand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dougong.parts import native
from dougong.parts.context import Context
from dougong.parts.native import Kernels
from dougong.parts.paged import PAGED
from dougong.parts.shapes import Float


@dataclass(frozen=True)
class Scoring:
    """How scores are made and whom they may reach.

    window   each query sees itself and the window - 1 tokens before it
    chunk    texts are cut into chunks of this many tokens that do not see each other (Llama 4)
    scale    factor on q k; None: head size ** -0.5
    softcap  scores become cap * tanh(scores / cap) (Gemma 2)
    dropout  share of the attention weights dropped in training
    """

    window: int | None = None
    chunk: int | None = None
    scale: float | None = None
    softcap: float | None = None
    dropout: float = 0.0


PLAIN = Scoring()


def reference(
    q: Float[Tensor, "B H T d"],
    k: Float[Tensor, "B K S d"],
    v: Float[Tensor, "B K S e"],
    ctx: Context,
    how: Scoring = PLAIN,
    bias: Float[Tensor, "#B H T S"] | None = None,
    sinks: Float[Tensor, " H"] | None = None,
) -> Float[Tensor, "B H T e"]:
    """Attention as the formula says, all scores held at once. Each group of H / K query heads shares a key head."""
    return weights(q, k, ctx, how, bias, sinks).to(v.dtype) @ v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)


def weights(
    q: Float[Tensor, "B H T d"],
    k: Float[Tensor, "B K S d"],
    ctx: Context,
    how: Scoring = PLAIN,
    bias: Float[Tensor, "#B H T S"] | None = None,
    sinks: Float[Tensor, " H"] | None = None,
) -> Float[Tensor, "B H T S"]:
    """The attention weights themselves, for looking at: each row sums to 1, or to less where a sink takes its share.

    softmax over keys of cap(q k scale) + bias, masked; a sink is one more score in the sum, which leads nowhere.
    """
    return _weights(q, k, ctx.mask(how.window, how.chunk)[:, None], how, bias, sinks)


def _weights(q: Tensor, k: Tensor, mask: Tensor, how: Scoring, bias: Tensor | None, sinks: Tensor | None) -> Tensor:
    factor: float = 1 / math.sqrt(q.shape[-1]) if how.scale is None else how.scale
    keys = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = (q @ keys.transpose(-1, -2) * factor).float()
    if how.softcap is not None:
        scores = how.softcap * (scores / how.softcap).tanh()
    if bias is not None:
        scores = scores + bias
    scores = scores.masked_fill(~mask, -math.inf)
    if sinks is None:
        return scores.softmax(-1)
    column = sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    return torch.cat((scores, column), -1).softmax(-1)[..., :-1]


def attend(
    q: Float[Tensor, "B H T d"],
    k: Float[Tensor, "B K S d"],
    v: Float[Tensor, "B K S e"],
    ctx: Context,
    how: Scoring = PLAIN,
    bias: Float[Tensor, "#B H T S"] | None = None,
    sinks: Float[Tensor, " H"] | None = None,
    training: bool = False,
) -> Float[Tensor, "B H T e"]:
    """Attention of T queries over S keys; what they may see is the context's (and the scoring's) to say.

    bias: added to the scores of each head, such as ALiBi's. sinks: a score a head that takes its share of the softmax
    and gives nothing (gpt-oss). training: whether dropout applies.
    """
    dropout = how.dropout if training else 0.0
    if (table := ctx.memo.get(PAGED)) is not None:
        return table.attend(q, k, v, how.scale, how.window, how.softcap)
    if _flex_serves(q, ctx, how, bias, sinks, dropout):
        return _by_flex(q, k, v, ctx, how, sinks)
    if how.softcap is not None or sinks is not None:
        return _in_strips(q, k, v, ctx, how, bias, sinks, dropout)
    mask = ctx.bias(how.window, q.dtype, how.chunk)
    if bias is not None:
        seen = ctx.mask(how.window, how.chunk)[:, None]
        # The bias is remembered beside its sum, so that its id stays its own.
        key = ("added", how.window, how.chunk, id(bias), q.dtype)
        mask = ctx.once(key, lambda: (bias.masked_fill(~seen, -math.inf).to(q.dtype), bias))[0]
    group = q.shape[1] // k.shape[1]
    if q.shape[2] == 1 and not dropout and (group > 1 or (not torch.is_grad_enabled() and not _on_gpu(q))):
        # One query a head: the group's heads become the queries of their shared key head, so keys are read once.
        batch, heads, _, size = q.shape
        shared = q.reshape(batch, k.shape[1], group, size)
        if bias is not None and mask is not None:
            mask = mask.reshape(mask.shape[0], k.shape[1], group, -1)
        elif (ours := _ours(shared, k, v, mask)) is not None:
            factor: float = 1 / math.sqrt(size) if how.scale is None else how.scale
            return ours.attend(shared, k, v, mask, factor).view(batch, heads, 1, size)
        out = F.scaled_dot_product_attention(shared, k, v, attn_mask=mask, scale=how.scale)
        return out.reshape(batch, heads, 1, v.shape[-1])
    causal = mask is None and ctx.causal and q.shape[2] > 1
    if bias is None and not dropout and (ours := _ours(q, k, v, mask)) is not None:
        factor = 1 / math.sqrt(q.shape[-1]) if how.scale is None else how.scale
        return ours.attend_rows(q, k, v, mask, causal, factor)
    if group > 1:
        k, v = _expand(k, group), _expand(v, group)
    if bias is None and not dropout and _blocks_pay(q, k, v, ctx):
        scale = q.shape[-1] ** -0.5 if how.scale is None else how.scale
        with torch.autocast("cpu", enabled=False):
            out = _Blocks.apply(q, k, v, None if mask is None else mask.float(), scale)
        assert isinstance(out, Tensor)
        return out
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=how.scale)


def _ours(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Kernels | None:
    """Our own kernels, where they do the case: float32, without a gradient, a mask that all heads share."""
    plain = q.dtype == k.dtype == v.dtype == torch.float32 and v.shape[-1] == q.shape[-1]
    if not plain or torch.is_grad_enabled() or any(each.stride(3) != 1 for each in (q, k, v)) or not q.numel():
        return None
    if mask is not None and (mask.shape[1] != 1 or mask.stride(3) != 1):
        return None
    return native.serving(q)


def _flex_serves(
    q: Tensor, ctx: Context, how: Scoring, bias: Tensor | None, sinks: Tensor | None, dropout: float
) -> bool:
    """Whether FlexAttention can do the case and SDPA's fast kernels cannot: whole texts on a GPU whose scores are
    changed or whose mask has holes that are worth skipping."""
    special = how.softcap is not None or sinks is not None or how.window is not None or ctx.documents is not None
    known = bias is None and how.chunk is None and not dropout
    whole = ctx.key_positions is None and ctx.both_ways is None and ctx.keys_exist is None
    return _on_gpu(q) and q.shape[2] > 1 and special and known and whole


def _on_gpu(q: Tensor) -> bool:
    return q.is_cuda


def _by_flex(q: Tensor, k: Tensor, v: Tensor, ctx: Context, how: Scoring, sinks: Tensor | None) -> Tensor:
    from dougong.parts.flex import block_mask, flex

    shape = (q.shape[2], k.shape[2], ctx.causal, how.window, ctx.documents, q.device)
    mask = ctx.once(("flex", how.window), lambda: block_mask(*shape))  # all layers share it
    return flex(q, k, v, ctx.causal, how.window, how.softcap, how.scale, ctx.documents, None, sinks, mask)


_STRIP = 512


def _in_strips(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ctx: Context,
    how: Scoring,
    bias: Tensor | None,
    sinks: Tensor | None,
    dropout: float,
) -> Tensor:
    """The formula, for what SDPA cannot do, a strip of queries at a time: memory grows with S and not with T S."""
    mask = ctx.mask(how.window, how.chunk)[:, None]
    values = _expand(v, q.shape[1] // v.shape[1])
    out = []
    for start in range(0, q.shape[2], _STRIP):
        rows = slice(start, start + _STRIP)
        part = None if bias is None else bias[:, :, rows]
        shares = F.dropout(_weights(q[:, :, rows], k, mask[:, :, rows], how, part, sinks), dropout)
        out.append(shares.to(v.dtype) @ values)
    return out[0] if len(out) == 1 else torch.cat(out, 2)


def _blocks_pay(q: Tensor, k: Tensor, v: Tensor, ctx: Context) -> bool:
    """Whether `_Blocks` can serve and is faster than SDPA: training on a CPU, heads not too small, weights that fit."""
    batch, heads, tokens, size = q.shape
    return (
        q.device.type == "cpu"
        and torch.is_grad_enabled()
        and ctx.causal
        and ctx.key_positions is None
        and ctx.both_ways is None
        and not (torch.compiler.is_compiling() and q.dtype == torch.float32)  # there the compiler gains as much
        and size == v.shape[-1] >= 48
        and 64 <= tokens == k.shape[2]
        and 4 * batch * heads * tokens * tokens <= _WEIGHT_BYTES
    )


_WEIGHT_BYTES = 64 << 20  # attention weights that a layer may keep for its backward pass
_BLOCK = 128


class _Blocks(torch.autograd.Function):
    """Causal attention in blocks of queries, each against the keys up to its end; the weights are kept for the backward
    pass. Nearly half of the products fall away, and those left are large: on a CPU faster than SDPA's kernel, which
    recomputes the weights in small tiles (docs/log.md has the times). Scores and softmax are float32 in lower precision
    too; the weights, and the gradient of the scores, are then rounded for the products that follow, as SDPA does."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        batch, heads, tokens, size = q.shape
        q, k, v = (x.reshape(batch * heads, tokens, size) for x in (q, k, v))
        queries, keys = q.float(), k.float()
        out = q.new_empty(batch, tokens, heads, size)  # the layout that the output projection reads
        kept = []
        future = torch.ones(_BLOCK, _BLOCK, dtype=torch.bool).triu_(1)
        for start in range(0, tokens, _BLOCK):
            end = min(start + _BLOCK, tokens)
            scores = torch.baddbmm(queries.new_empty(()), queries[:, start:end], keys[:, :end].mT, beta=0, alpha=scale)
            if bias is None:
                scores[:, :, start:].masked_fill_(future[: end - start, : end - start], -math.inf)
            else:
                scores.view(batch, heads, end - start, end).add_(bias[:, :, start:end, :end])
            weights = scores.softmax(-1).to(q.dtype)
            kept.append(weights)
            out[:, start:end] = (weights @ v[:, :end]).view(batch, heads, end - start, size).transpose(1, 2)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.shape, ctx.scale = (batch, heads, tokens, size), scale
        return out.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, *kept = ctx.saved_tensors
        batch, heads, tokens, size = ctx.shape
        # Keys and values gather from several blocks: in float32, whatever the products are in.
        dq = torch.empty_like(q)
        dk, dv = torch.zeros(k.shape, dtype=torch.float32), torch.zeros(v.shape, dtype=torch.float32)
        for block, weights in enumerate(kept):
            start = block * _BLOCK
            end = start + weights.shape[1]
            grad = grads[0][:, :, start:end].reshape(batch * heads, end - start, size)
            _add_product(dv[:, :end], weights.mT, grad, 1.0)
            # dS = P (dP - sum_j P dP), the softmax's own gradient, in one kernel.
            inner = torch.ops.aten._softmax_backward_data.default(grad @ v[:, :end].mT, weights, -1, q.dtype)
            dq[:, start:end] = torch.baddbmm(dq.new_empty(()), inner, k[:, :end], beta=0, alpha=ctx.scale)
            _add_product(dk[:, :end], inner.mT, q[:, start:end], ctx.scale)
        shape = (batch, heads, tokens, size)
        return dq.view(shape), dk.to(k.dtype).view(shape), dv.to(v.dtype).view(shape), None, None


def _add_product(total: Tensor, a: Tensor, b: Tensor, factor: float) -> None:
    """total += factor a b, the products in the type of a and b, the sum in the total's."""
    if total.dtype == a.dtype:
        total.baddbmm_(a, b, alpha=factor)
    else:
        total.add_(a @ b, alpha=factor)


def _expand(x: Float[Tensor, "B K S d"], group: int) -> Float[Tensor, "B H S d"]:
    batch, heads, length, size = x.shape
    return x[:, :, None].expand(batch, heads, group, length, size).reshape(batch, heads * group, length, size)
