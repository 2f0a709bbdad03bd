"""The kernels of `flash_triton`: one program makes one tile of the output and walks along the tiles of the other side.

The forward pass and dq have a tile of queries and walk over keys; dk and dv have a tile of keys and walk over the
queries of every head that shares them, so that no two programs add to the same place. Hardware raises 2 to a power, not
e: scores are multiplied by log2(e) before the softmax, and L, the row's logarithm of its sum, is in base 2 as well.

Names: m, n are places of queries and keys; b is the row of the batch, h and g a query head and its key head; M, N are
the tile's queries and keys, D, E the sizes of a head of keys and of values, padded to powers of two. What is padding is
loaded as 0, and adds nothing to a product. Capitals are compiled in. `no_type_check`: an annotation here is Triton's.
"""

from typing import no_type_check

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

INTERPRETED: bool = triton.knobs.runtime.interpret  # pyright: ignore[reportAttributeAccessIssue]
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
@no_type_check
def _dot(a, b, WIDE: tl.constexpr):
    """a b in float32. WIDE: Triton's interpreter multiplies the bits of bfloat16 as if they were whole numbers."""
    if WIDE:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
@no_type_check
def _tile(pointer, stride, places, length, size, WIDTH: tl.constexpr):
    """Rows `places` of one head, (places, WIDTH), with 0 past the head's size and past the end."""
    within = tl.arange(0, WIDTH)
    mask = (places < length)[:, None] & (within < size)[None, :]
    return tl.load(pointer + places.to(tl.int64)[:, None] * stride + within[None, :], mask, 0.0)


@triton.jit
@no_type_check
def _store(pointer, stride, places, length, size, tile, WIDTH: tl.constexpr):
    within = tl.arange(0, WIDTH)
    mask = (places < length)[:, None] & (within < size)[None, :]
    where = pointer + places.to(tl.int64)[:, None] * stride + within[None, :]
    tl.store(where, tile.to(pointer.dtype.element_ty), mask)


@triton.jit
@no_type_check
def _cap(scores, cap):
    """tanh(scores / cap), from e^(-2|x|), which cannot overflow."""
    small = tl.exp(-2 * tl.abs(scores / cap))
    bent = (1 - small) / (1 + small)
    return tl.where(scores < 0, -bent, bent)


@triton.jit
@no_type_check
def _seen(m, n, tokens, keys, window, own, other, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, DOCUMENTS: tl.constexpr):
    """Which queries m see which keys n, of the documents `own` and `other`: one is a column, the other a row."""
    distance = m + (keys - tokens) - n
    seen = (m < tokens) & (n < keys)
    if CAUSAL:
        seen = seen & (distance >= 0)
    if WINDOW:
        seen = seen & (distance < window) & (distance > -window)
    if DOCUMENTS:
        seen = seen & (own == other)
    return seen


@triton.jit
@no_type_check
def _key_range(first, last, keys, window, N: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """From which key to which (not included) queries at the places `first` to `last` may see."""
    low, high = 0, keys
    if CAUSAL:
        high = tl.minimum(high, last + 1)
    if WINDOW:
        low = tl.maximum(low, (first - window + 1) // N * N)
        high = tl.minimum(high, last + window)
    return low, high


@triton.jit
@no_type_check
def forward_kernel(
    q, k, v, out, logsum, sinks, documents,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, o_b, o_h, o_t,
    heads, group, tokens, keys, size, values, scale, cap, window,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, CAPPED: tl.constexpr, DOCUMENTS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, D: tl.constexpr, E: tl.constexpr, WIDE: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    block, row = tl.program_id(0), tl.program_id(1)
    b, h = (row // heads).to(tl.int64), row % heads
    g = (h // group).to(tl.int64)
    h = h.to(tl.int64)
    offset = keys - tokens
    m = block * M + tl.arange(0, M)
    queries = _tile(q + b * q_b + h * q_h, q_t, m, tokens, size, D)
    own = m
    if DOCUMENTS:
        own = tl.load(documents + b * keys + offset + m, m < tokens, -2)
    top = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    if SINKS:
        top = tl.zeros((M,), tl.float32) + tl.load(sinks + h) * LOG2_E
        total += 1.0
    mixed = tl.zeros((M, E), tl.float32)
    low, high = _key_range(block * M + offset, block * M + M - 1 + offset, keys, window, N, CAUSAL, WINDOW)
    for start in range(low, high, N):
        n = start + tl.arange(0, N)
        scores = _dot(queries, tl.trans(_tile(k + b * k_b + g * k_h, k_t, n, keys, size, D)), WIDE) * scale
        if CAPPED:
            scores = cap * _cap(scores, cap)
        other = n
        if DOCUMENTS:
            other = tl.load(documents + b * keys + n, n < keys, -3)
        seen = _seen(
            m[:, None], n[None, :], tokens, keys, window, own[:, None], other[None, :], CAUSAL, WINDOW, DOCUMENTS
        )
        scores = tl.where(seen, scores * LOG2_E, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        safe = tl.where(higher == float("-inf"), 0.0, higher)  # a row that has seen no key yet
        weights = tl.exp2(scores - safe[:, None])
        shrink = tl.exp2(top - safe)
        total = total * shrink + tl.sum(weights, 1)
        part = _tile(v + b * v_b + g * v_h, v_t, n, keys, values, E)
        mixed = mixed * shrink[:, None] + _dot(weights.to(part.dtype), part, WIDE)
        top = higher
    lit = total > 0
    total = tl.where(lit, total, 1.0)
    _store(out + b * o_b + h * o_h, o_t, m, tokens, values, mixed / total[:, None], E)
    # Infinity where nothing is seen: the weights are then 0 when they are computed again.
    tl.store(logsum + (b * heads + h) * tokens + m, tl.where(lit, top + tl.log2(total), float("inf")), m < tokens)


@triton.jit
@no_type_check
def _again(
    left, right, left_value, right_value, seen, level, delta, scale, cap, CAPPED: tl.constexpr, WIDE: tl.constexpr
):
    """A tile's weights, computed again, and the gradient of its scores before scale.

    Both are (m, n) where `left` is queries, beside their gradient of the output, and `right` keys, beside their values;
    (n, m) with left and right exchanged.
    """
    scores = _dot(left, tl.trans(right), WIDE) * scale
    slope = 1.0
    if CAPPED:
        bent = _cap(scores, cap)
        scores, slope = cap * bent, 1 - bent * bent
    weights = tl.exp2(tl.where(seen, scores * LOG2_E, float("-inf")) - level)
    dweights = _dot(left_value, tl.trans(right_value), WIDE)
    return weights, weights * (dweights - delta) * slope


@triton.jit
@no_type_check
def queries_kernel(
    q, k, v, grad, logsum, delta, documents, dq,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, g_b, g_h, g_t, dq_b, dq_h, dq_t,
    heads, group, tokens, keys, size, values, scale, cap, window,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, CAPPED: tl.constexpr, DOCUMENTS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, D: tl.constexpr, E: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """dq of a tile of queries: sum over keys of dS k scale."""
    block, row = tl.program_id(0), tl.program_id(1)
    b, h = (row // heads).to(tl.int64), row % heads
    g = (h // group).to(tl.int64)
    h = h.to(tl.int64)
    offset = keys - tokens
    m = block * M + tl.arange(0, M)
    queries = _tile(q + b * q_b + h * q_h, q_t, m, tokens, size, D)
    above = _tile(grad + b * g_b + h * g_h, g_t, m, tokens, values, E)
    level = tl.load(logsum + (b * heads + h) * tokens + m, m < tokens, float("inf"))
    inner = tl.load(delta + (b * heads + h) * tokens + m, m < tokens, 0.0)
    own = m
    if DOCUMENTS:
        own = tl.load(documents + b * keys + offset + m, m < tokens, -2)
    total = tl.zeros((M, D), tl.float32)
    low, high = _key_range(block * M + offset, block * M + M - 1 + offset, keys, window, N, CAUSAL, WINDOW)
    for start in range(low, high, N):
        n = start + tl.arange(0, N)
        keyed = _tile(k + b * k_b + g * k_h, k_t, n, keys, size, D)
        part = _tile(v + b * v_b + g * v_h, v_t, n, keys, values, E)
        other = n
        if DOCUMENTS:
            other = tl.load(documents + b * keys + n, n < keys, -3)
        seen = _seen(
            m[:, None], n[None, :], tokens, keys, window, own[:, None], other[None, :], CAUSAL, WINDOW, DOCUMENTS
        )
        _, dscores = _again(queries, keyed, above, part, seen, level[:, None], inner[:, None], scale, cap, CAPPED, WIDE)
        total += _dot(dscores.to(keyed.dtype), keyed, WIDE)
    _store(dq + b * dq_b + h * dq_h, dq_t, m, tokens, size, total * scale, D)


@triton.jit
@no_type_check
def keys_kernel(
    q, k, v, grad, logsum, delta, documents, dk, dv,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, g_b, g_h, g_t, dk_b, dk_h, dk_t, dv_b, dv_h, dv_t,
    heads, group, tokens, keys, size, values, scale, cap, window,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, CAPPED: tl.constexpr, DOCUMENTS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, D: tl.constexpr, E: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """dk and dv of a tile of keys: sums over the queries, of every head of the group, that see them."""
    block, row = tl.program_id(0), tl.program_id(1)
    shared = heads // group
    b, g = (row // shared).to(tl.int64), (row % shared).to(tl.int64)
    offset = keys - tokens
    n = block * N + tl.arange(0, N)
    keyed = _tile(k + b * k_b + g * k_h, k_t, n, keys, size, D)
    part = _tile(v + b * v_b + g * v_h, v_t, n, keys, values, E)
    other = n
    if DOCUMENTS:
        other = tl.load(documents + b * keys + n, n < keys, -3)
    low, high = 0, tokens
    if CAUSAL:
        low = tl.maximum(low, (block * N - offset) // M * M)
    if WINDOW:
        low = tl.maximum(low, (block * N - offset - window + 1) // M * M)
        high = tl.minimum(high, block * N + N - 1 - offset + window)
    dkeys = tl.zeros((N, D), tl.float32)
    dvalues = tl.zeros((N, E), tl.float32)
    for each in range(group):
        h = g * group + each
        for start in range(low, high, M):
            m = start + tl.arange(0, M)
            queries = _tile(q + b * q_b + h * q_h, q_t, m, tokens, size, D)
            above = _tile(grad + b * g_b + h * g_h, g_t, m, tokens, values, E)
            line = (b * heads + h) * tokens + m
            level = tl.load(logsum + line, m < tokens, float("inf"))
            inner = tl.load(delta + line, m < tokens, 0.0)
            own = m
            if DOCUMENTS:
                own = tl.load(documents + b * keys + offset + m, m < tokens, -2)
            seen = _seen(
                m[None, :], n[:, None], tokens, keys, window, own[None, :], other[:, None], CAUSAL, WINDOW, DOCUMENTS
            )
            # The tile lies on its side, (n, m), so that neither it nor its gradient must be turned for the sums.
            weights, dscores = _again(
                keyed, queries, part, above, seen, level[None, :], inner[None, :], scale, cap, CAPPED, WIDE
            )
            dvalues += _dot(weights.to(above.dtype), above, WIDE)
            dkeys += _dot(dscores.to(queries.dtype), queries, WIDE)
    _store(dk + b * dk_b + g * dk_h, dk_t, n, keys, size, dkeys * scale, D)
    _store(dv + b * dv_b + g * dv_h, dv_t, n, keys, values, dvalues, E)
