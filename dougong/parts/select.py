"""Attention to a few keys of many: what sparse mixers have in common."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dougong.parts.attend import PLAIN, Scoring, attend
from dougong.parts.context import Context
from dougong.parts.shapes import Bool, Float, Int


def pick(x: Float[Tensor, "B K S d"], index: Int[Tensor, "B K T n"]) -> Float[Tensor, "N 1 n d"]:
    """The entries that each query and key head reads, as N = B T K rows of their own."""
    batch, heads, _, size = x.shape
    tokens, count = index.shape[2:]
    taken = x.gather(2, index.flatten(2)[..., None].expand(-1, -1, -1, size))
    return taken.view(batch, heads, tokens, count, size).transpose(1, 2).reshape(-1, 1, count, size)


def picked_context(exists: Bool[Tensor, "*B n"]) -> Context:
    """One query a row, which sees the picked keys that exist."""
    exists = exists.flatten(0, -2)
    places = torch.arange(exists.shape[-1], device=exists.device)[None]
    return Context(places[:, :1], key_positions=places, causal=False, keys_exist=exists)


def attend_at(
    q: Float[Tensor, "B H T d"],
    k: Float[Tensor, "B K S d"],
    v: Float[Tensor, "B K S e"],
    index: Int[Tensor, "B K T n"],
    exists: Bool[Tensor, "B K T n"],
    how: Scoring = PLAIN,
) -> Float[Tensor, "B H T e"]:
    """Attention of each query to the keys at `index` that exist: no other key is read."""
    batch, heads, tokens, size = q.shape
    shared = k.shape[1]
    rows = q.view(batch, shared, -1, tokens, size).permute(0, 3, 1, 2, 4).reshape(-1, heads // shared, 1, size)
    ctx = picked_context(exists.transpose(1, 2))
    y = attend(rows, pick(k, index), pick(v, index), ctx, how)
    return y.view(batch, tokens, heads, -1).transpose(1, 2)


def attend_where(
    q: Float[Tensor, "B H T d"],
    k: Float[Tensor, "B K S d"],
    v: Float[Tensor, "B K S e"],
    seen: Bool[Tensor, "#B #K T S"],
    how: Scoring = PLAIN,
    strip: int = 128,
) -> Float[Tensor, "B H T e"]:
    """Attention where `seen` allows it, which holds the causal mask too. A strip of queries at a time reads only the
    keys that one of them sees."""
    heads, tokens = q.shape[1:3]
    out = []
    for start in range(0, tokens, strip):
        rows = slice(start, start + strip)
        mask = seen[:, :, rows]
        keys = mask.flatten(0, 2).any(0).nonzero()[:, 0]
        part = mask[..., keys]
        bias = torch.zeros(part.shape, dtype=q.dtype, device=q.device).masked_fill_(~part, -math.inf)
        bias = (
            bias.repeat_interleave(heads // part.shape[1], 1) if part.shape[1] > 1 else bias.expand(-1, heads, -1, -1)
        )
        places = torch.arange(max(len(keys), part.shape[2]), device=q.device)[None]
        ctx = Context(places[:, : part.shape[2]], key_positions=places[:, : len(keys)], causal=False)
        out.append(attend(q[:, :, rows], k[:, :, keys], v[:, :, keys], ctx, how, bias))
    return out[0] if len(out) == 1 else torch.cat(out, 2)
