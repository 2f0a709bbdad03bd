"""The kernel of `paged`: one program reads the pages of one sequence for the query heads that share a key head.

It walks along the tokens a tile at a time, as `flash_kernels` does (a running maximum and sum, in base 2), but finds
each token by its page: place = page number * page size + place in the page. A tile may span many pages, or part of one.
Capitals are compiled in. `no_type_check`: an annotation here is Triton's.
"""

from typing import no_type_check

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

from dougong.parts.flash_kernels import INTERPRETED, LOG2_E, _cap, _dot

__all__ = ["INTERPRETED", "decode_kernel"]


@triton.jit
@no_type_check
def decode_kernel(
    q_at,
    k_at,
    v_at,
    out_at,
    pages_at,
    lengths_at,
    q_row,
    q_head,
    k_place,
    k_head,
    v_place,
    v_head,
    out_row,
    out_head,
    pages_row,
    group,
    size,
    values,
    scale,
    cap,
    window,
    WINDOW: tl.constexpr,
    CAPPED: tl.constexpr,
    PAGE: tl.constexpr,
    G: tl.constexpr,
    N: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    WIDE: tl.constexpr,
):
    """out[b, h] = sum_t softmax_t(scale q[b, h] . k[t]) v[t], over the last `window` of the sequence's tokens."""
    b, g = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    length = tl.load(lengths_at + b)
    member, inside, across = tl.arange(0, G), tl.arange(0, D), tl.arange(0, E)
    real = member < group
    heads = g * group + member
    q = tl.load(
        q_at + b * q_row + heads[:, None] * q_head + inside[None, :], real[:, None] & (inside < size)[None, :], 0.0
    )
    top = tl.full((G,), float("-inf"), tl.float32)
    total = tl.zeros((G,), tl.float32)
    mixed = tl.zeros((G, E), tl.float32)
    first = tl.maximum(length - window, 0) if WINDOW else length * 0
    for start in range(first // N * N, length, N):
        token = start + tl.arange(0, N)
        seen = (token >= first) & (token < length)
        page = tl.load(pages_at + b * pages_row + token // PAGE, seen, 0).to(tl.int64)
        place = page * PAGE + token % PAGE
        k = tl.load(
            k_at + place[:, None] * k_place + g * k_head + inside[None, :],
            seen[:, None] & (inside < size)[None, :],
            0.0,
        )
        v = tl.load(
            v_at + place[:, None] * v_place + g * v_head + across[None, :],
            seen[:, None] & (across < values)[None, :],
            0.0,
        )
        scores = _dot(q, tl.trans(k), WIDE) * scale
        if CAPPED:
            scores = cap * _cap(scores, cap)
        # Some token of every tile is seen, so no maximum stays at minus infinity.
        scores = tl.where(seen[None, :], scores * LOG2_E, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(weights, 1)
        mixed = mixed * shrink[:, None] + _dot(weights.to(v.dtype), v, WIDE)
        top = higher
    where = out_at + b * out_row + heads[:, None] * out_head + across[None, :]
    mixed = mixed / tl.where(total > 0, total, 1.0)[:, None]  # a sequence without tokens gives 0
    tl.store(where, mixed.to(out_at.dtype.element_ty), real[:, None] & (across < values)[None, :])
