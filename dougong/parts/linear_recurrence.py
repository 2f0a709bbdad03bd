"""The linear recurrence over a matrix that linear attention and the delta rule share, token by token and in chunks.

Each head carries a matrix S (key size x value size). With the log decay g_t <= 0 (of the head, or of each key channel):

    S_t = diag(exp g_t) S_{t-1} + k_t u_t^T,    o_t = S_t^T q_t
    u_t = v_t                                                     linear attention
    u_t = beta_t (v_t - (diag(exp g_t) S_{t-1})^T k_t)            the delta rule: write what S gets wrong

`recurrent` is these lines. `chunked` computes the same with matrix products: inside a chunk all tokens at once, and a
loop only from chunk to chunk (Hua et al. 2022; for the delta rule the WY form of Yang et al. 2024).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dougong.parts.shapes import Bool, Float

CHUNK = 64


def scan(
    q: Float[Tensor, "B H T d"],
    k: Float[Tensor, "B H T d"],
    v: Float[Tensor, "B H T e"],
    decay: Float[Tensor, "#B H #T c"],
    beta: Float[Tensor, "B H T"] | None = None,
    state: Float[Tensor, "B H d e"] | None = None,
    real: Bool[Tensor, "B T"] | None = None,
    size: int = CHUNK,
) -> tuple[Float[Tensor, "B H T e"], Float[Tensor, "B H d e"]]:
    """Outputs in v's type, and S after the last token in at least float32, in which everything is computed.

    decay  log decays, c = 1 for the whole head or c = d for each key channel
    beta   None: linear attention; else the delta rule
    state  S before the first token; None: zero
    real   False at tokens that leave S as it is (padding)
    size   tokens of a chunk
    """
    kind = torch.promote_types(k.dtype, torch.float32)
    decay = decay.to(kind).expand(k.shape[0], -1, k.shape[2], -1)
    device = "cpu" if q.is_meta else q.device.type  # tensors without memory, as plan sends, know no autocast
    with torch.autocast(device, enabled=False):
        q, k, wide = q.to(kind), k.to(kind), v.to(kind)
        if real is not None:
            k = k.masked_fill(~real[:, None, :, None], 0)
            decay = decay.masked_fill(~real[:, None, :, None], 0)
        beta = None if beta is None else beta.to(kind)
        state = k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1]) if state is None else state.to(kind)
        if k.shape[2] == 1:
            y, state = recurrent(q, k, wide, decay, beta, state)
        else:
            y, state = chunked(q, k, wide, decay, beta, state, size)
    return y.to(v.dtype), state


def recurrent(
    q: Float[Tensor, "B H T d"],
    k: Float[Tensor, "B H T d"],
    v: Float[Tensor, "B H T e"],
    decay: Float[Tensor, "B H T c"],
    beta: Float[Tensor, "B H T"] | None,
    state: Float[Tensor, "B H d e"],
) -> tuple[Float[Tensor, "B H T e"], Float[Tensor, "B H d e"]]:
    """One token after the other, as the formula says."""
    out = []
    for t in range(k.shape[2]):
        key, value = k[:, :, t, None], v[:, :, t, None]  # (B, H, 1, d), (B, H, 1, e)
        state = decay[:, :, t, :, None].exp() * state
        if beta is not None:
            value = beta[:, :, t, None, None] * (value - key @ state)
        state = state + key.mT * value
        out.append(q[:, :, t, None] @ state)
    return torch.cat(out, 2), state


def chunked(
    q: Float[Tensor, "B H T d"],
    k: Float[Tensor, "B H T d"],
    v: Float[Tensor, "B H T e"],
    decay: Float[Tensor, "B H T c"],
    beta: Float[Tensor, "B H T"] | None,
    state: Float[Tensor, "B H d e"],
    size: int = CHUNK,
) -> tuple[Float[Tensor, "B H T e"], Float[Tensor, "B H d e"]]:
    """Chunks of `size` tokens (of the next lower power of two where each channel has a decay, or few tokens come). With
    A_ij = sum_c x_ic k_jc exp(g_j+1 + ... + g_i)_c for j <= i:

        O = A(q) U + (q exp(g_1 + ... + g_i)) S,    S' = exp(g_1 + ... + g_C) S + (k exp(g_i+1 + ... + g_C))^T U

    where U is V, and for the delta rule the solution of (I + strictly lower A(beta k)) U = beta (V - k exp(...) S).
    """
    tokens, values = v.shape[2:]
    if decay.shape[-1] > 1:
        size = 1 << (size.bit_length() - 1)
    size = min(size, 1 << (tokens - 1).bit_length())

    def cut(x: Tensor) -> Tensor:
        """(B, H, T, *) to (B, H, N, C, *); tokens that fill up the last chunk write nothing and fade nothing."""
        return F.pad(x, (0, 0, 0, -tokens % size)).unflatten(2, (-1, size))

    q, k, v, decay = cut(q), cut(k), cut(v), cut(decay)
    past = decay.cumsum(-2).exp()  # how much of the chunk's first state each token still sees
    writes = k * _after(decay).exp()
    fade = past[..., -1, :, None]  # (B, H, N, c, 1)
    reads = _pairs(q, k, decay)
    known = None
    if beta is not None:
        rate = cut(beta[..., None])
        system = _pairs(rate * k, k, decay)
        right = torch.cat((rate * v, rate * k * past), -1)
        v, known = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True).split(
            (values, k.shape[-1]), -1
        )
    states, updates = [], []
    steps = known.unbind(2) if known is not None else (None,) * k.shape[2]
    for key, update, kept, step in zip(writes.unbind(2), v.unbind(2), fade.unbind(2), steps, strict=True):
        states.append(state)
        if step is not None:
            update = update - step @ state
        updates.append(update)
        state = kept * state + key.mT @ update
    y = reads @ torch.stack(updates, 2) + (q * past) @ torch.stack(states, 2)
    return y.flatten(2, 3)[:, :, :tokens], state


def _after(decay: Float[Tensor, "*N C c"]) -> Float[Tensor, "*N C c"]:
    """Sum of the decays that follow each token. Summed, not subtracted from the total: a large decay elsewhere in the
    chunk then costs small ones no digits."""
    following = F.pad(decay[..., 1:, :], (0, 0, 0, 1))
    return following.flip(-2).cumsum(-2).flip(-2)


def _pairs(
    q: Float[Tensor, "*N C d"], k: Float[Tensor, "*N C d"], decay: Float[Tensor, "*N C c"]
) -> Float[Tensor, "*N C C"]:
    """sum_c q_ic k_jc exp(g_j+1 + ... + g_i)_c for j <= i, and 0 above the diagonal.

    A decay of each channel stands inside the sum, and exp of its two halves alone could overflow. So the chunk is
    halved: seen from the middle, late queries and early keys have only faded (both exponents are <= 0), and what is
    left are the two halves.
    """
    size = k.shape[-2]
    if decay.shape[-1] == 1:
        lower = torch.ones(size, size, dtype=torch.bool, device=k.device).tril()
        # Column j sums the decays of the rows below j.
        between = decay.expand(*decay.shape[:-1], size).masked_fill(~lower.tril(-1), 0).cumsum(-2)
        return (q @ k.mT) * between.masked_fill(~lower, -math.inf).exp()
    out = (q * k).sum(-1)[..., None, None]  # blocks of one token: (*N, C, 1, 1)
    half = 1
    while half < size:
        late, early, fade = (x.unflatten(-2, (-1, 2, half)) for x in (q, k, decay))  # (*N, blocks, 2, half, d)
        queries = late[..., 1, :, :] * fade[..., 1, :, :].cumsum(-2).exp()
        keys = early[..., 0, :, :] * _after(fade[..., 0, :, :]).exp()
        cross = queries @ keys.mT
        upper, lower = out.unflatten(-3, (-1, 2)).unbind(-3)
        out = torch.cat((torch.cat((upper, torch.zeros_like(cross)), -1), torch.cat((cross, lower), -1)), -2)
        half *= 2
    return out.squeeze(-3)
