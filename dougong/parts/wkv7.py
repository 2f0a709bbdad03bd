"""RWKV-7 (Goose): a state that is corrected by a generalised delta rule (Peng et al. 2025, arXiv 2503.14456)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dougong.base import DougongError
from dougong.parts.carry import Counts, Pieces, carry, pad_to_chunks, without_padding
from dougong.parts.context import Context
from dougong.parts.linear import Linear
from dougong.parts.shapes import Float
from dougong.parts.state import LayerState, Slots
from dougong.parts.wkv import CHUNK, check_width, initial_mix, shift
from dougong.parts.wkv6 import HeadNorm, Heads, matrix_slots

FASTEST = math.exp(-0.5)  # the strongest decay is exp(-FASTEST) a token
FIRST_VALUES = "wkv7 values of the first layer"  # where a pass keeps what later layers mix their values with


@dataclass(frozen=True)
class WKV7:
    """RWKV-7's time mix: o(gate * (norm(wkv) + (r . bonus k) v)), where wkv_t = r_t S_t for each head and

    S_t = diag(w_t) S_{t-1} - (a_t kappa_t)^T kappa_t S_{t-1} + k_t^T v_t: what stands under the key kappa_t is taken
    out with the learning rate a_t, channel by channel, before the new value is written.
    w_t = exp(-e^-0.5 sigmoid(decay + up tanh(down(.)))), a_t = sigmoid(rate + up down(.)), the gate is
    up sigmoid(down(.)), kappa = normalised(key_scale k), and k is then multiplied with 1 + (a - 1) key_rate.
    Each of the six inputs sees mix x_{t-1} + (1 - mix) x_t. Values move towards those of the first layer by
    sigmoid(value + up down(.)); `first` marks the layer that gives them.
    """

    tagged: ClassVar[bool] = True

    width: int
    heads: int
    head_size: int
    first: bool
    decay_rank: int
    rate_rank: int
    value_rank: int
    gate_rank: int
    eps: float = 64e-5

    def build(self, width: int) -> WKV7Layer:
        check_width("WKV7", width, self.width)
        return WKV7Layer(self)

    def slots(self) -> Slots:
        return matrix_slots(self.width, self.heads, self.head_size)

    def parameters(self, width: int) -> int:
        inner = self.heads * self.head_size
        # decay, rate, key_scale, key_rate, bonus, two of the norm; value in all layers but the first
        return self._products(width) + 6 * width + (7 + (not self.first)) * inner

    def flops(self, width: int, context: float) -> float:
        return 2 * self._products(width) + 12 * self.heads * self.head_size**2

    def _products(self, width: int) -> int:
        inner = self.heads * self.head_size
        ranks = self.decay_rank + self.rate_rank + self.gate_rank + (0 if self.first else self.value_rank)
        return 4 * width * inner + ranks * (width + inner)


class WKV7Layer(nn.Module):
    def __init__(self, spec: WKV7):
        super().__init__()
        self.spec = spec
        width, inner = spec.width, spec.heads * spec.head_size
        self.r = Linear(width, inner, axes=("embed", "heads"))
        self.k = Linear(width, inner, axes=("embed", "heads"))
        self.v = Linear(width, inner, axes=("embed", "heads"))
        self.o = Linear(inner, width, axes=("heads", "embed"))
        self.decay_down = Linear(width, spec.decay_rank)
        self.decay_up = Linear(spec.decay_rank, inner, axes=("embed", "heads"))
        self.rate_down = Linear(width, spec.rate_rank)
        self.rate_up = Linear(spec.rate_rank, inner, axes=("embed", "heads"))
        self.gate_down = Linear(width, spec.gate_rank)
        self.gate_up = Linear(spec.gate_rank, inner, axes=("embed", "heads"))
        self.value_down = None if spec.first else Linear(width, spec.value_rank)
        self.value_up = None if spec.first else Linear(spec.value_rank, inner, axes=("embed", "heads"))
        self.mix = nn.Parameter(torch.empty(6, width))  # of r, the decay, k, v, the rate and the gate
        self.decay = nn.Parameter(torch.empty(inner))
        self.rate = nn.Parameter(torch.empty(inner))
        self.value = None if spec.first else nn.Parameter(torch.empty(inner))
        self.key_scale = nn.Parameter(torch.empty(inner))
        self.key_rate = nn.Parameter(torch.empty(inner))
        self.bonus = nn.Parameter(torch.empty(spec.heads, spec.head_size))
        self.norm = HeadNorm(spec.heads, spec.head_size, spec.eps)

    def forward(
        self, x: Float[Tensor, "B T D"], ctx: Context, state: LayerState | None = None
    ) -> Float[Tensor, "B T D"]:
        def run(rows: Tensor, past: Pieces, counts: Counts) -> tuple[Tensor, Pieces]:
            return self._run(rows, past, counts, ctx)

        return carry(run, x, ctx, state, self.spec.slots())

    def _run(self, x: Tensor, past: Pieces, counts: Counts, ctx: Context) -> tuple[Tensor, Pieces]:
        before, last = shift(x, past["shift"], counts)
        to_r, to_decay, to_k, to_v, to_rate, to_gate = (torch.lerp(x, before, mix) for mix in self.mix.to(x.dtype))
        log_w = -FASTEST * (self.decay.float() + self.decay_up(self.decay_down(to_decay).tanh()).float()).sigmoid()
        rate = (self.rate.float() + self.rate_up(self.rate_down(to_rate)).float()).sigmoid()
        r, k = self.r(to_r).float(), self.k(to_k).float()
        v = self._values(self.v(to_v), to_v, ctx).float()
        key = F.normalize(self._heads(k * self.key_scale.float()), dim=-1)
        k = k * (1 + (rate - 1) * self.key_rate.float())
        r, k, v, log_w, rate = (self._heads(each) for each in (r, k, v, log_w, rate))
        y, new = delta(r, k, v, log_w, -key, key * rate, past["wkv"], counts)
        direct = (r * k * self.bonus.float()).sum(-1, keepdim=True) * v
        y = (self.norm(y) + direct.flatten(2)).to(x.dtype)
        return self.o(y * self.gate_up(self.gate_down(to_gate).sigmoid())), {"shift": last, "wkv": new}

    def _values(self, v: Tensor, x: Tensor, ctx: Context) -> Tensor:
        """Values mixed with those of the first layer, which are kept with the pass (in rows of documents, as here)."""
        if self.value is None or self.value_down is None or self.value_up is None:
            ctx.memo[FIRST_VALUES] = v
            return v
        if FIRST_VALUES not in ctx.memo:
            raise DougongError(
                "a WKV7 layer mixes its values with the first layer's, but no layer before it is `first`"
            )
        share = (self.value.to(v.dtype) + self.value_up(self.value_down(x))).sigmoid()
        return torch.lerp(v, ctx.memo[FIRST_VALUES], share)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.spec.head_size))

    @torch.no_grad()
    def initial(self, generator: torch.Generator) -> None:
        """Decays spread over the channels, learning rates of a half, keys a little below length 1, no bonus."""
        initial_mix(self.mix)
        self.mix.copy_(1 - self.mix)  # here they are shares of the token before
        self.decay.copy_(-6.5 + 6 * torch.linspace(0, 1, self.decay.numel()) ** 1.35)
        self.rate.zero_()
        if self.value is not None:
            self.value.fill_(1.0)
        self.key_scale.fill_(0.85)
        self.key_rate.fill_(1.0)
        self.bonus.zero_()


def delta_steps(
    r: Heads, k: Heads, v: Heads, log_w: Heads, a: Heads, b: Heads, state: Float[Tensor, "B H d d"]
) -> tuple[Heads, Float[Tensor, "B H d d"]]:
    """y_t = r_t S_t, S_t = diag(w_t) S_{t-1} + b_t^T (a_t S_{t-1}) + k_t^T v_t, token by token."""
    out = []
    for t in range(r.shape[1]):
        found = a[:, t, :, None, :] @ state  # (B, H, 1, d)
        state = log_w[:, t, :, :, None].exp() * state + b[:, t, :, :, None] * found
        state = state + k[:, t, :, :, None] * v[:, t, :, None, :]
        out.append((r[:, t, :, None, :] @ state).squeeze(-2))
    return torch.stack(out, 1), state


def delta(
    r: Heads,
    k: Heads,
    v: Heads,
    log_w: Heads,
    a: Heads,
    b: Heads,
    state: Float[Tensor, "B H d d"],
    counts: Counts = None,
) -> tuple[Heads, Float[Tensor, "B H d d"]]:
    """`delta_steps`, a chunk at a time.

    With u_t = a_t S_{t-1} and L_t = sum_{i<=t} log w_i in a chunk, S_t is linear in the chunk's first state and in the
    u and v up to t, so u solves a unit lower triangular system: (1 - A) u = a e^{L_{t-1}} S + B v, where
    A_ts = a_t e^{L_{t-1}} . b_s e^{-L_s} and B_ts the same with k, for s < t. The factors stay in range because no
    log w is below -0.61 and a chunk is short.
    """
    tokens, size = r.shape[1], min(CHUNK, r.shape[1])
    k, log_w, a = (without_padding(x, counts) for x in (k, log_w, a))
    if tokens == 1:
        return delta_steps(r, k, v, log_w, a, b, state)
    r, k, v, log_w, a, b = (pad_to_chunks(x, size).movedim(3, 1) for x in (r, k, v, log_w, a, b))  # (B, H, n, c, d)
    after = log_w.cumsum(3)
    out, back = after.exp(), (-after).exp()
    reads, finds = r * out, a * (after - log_w).exp()  # from the chunk's first state
    keys, bases = (k * back).transpose(-1, -2), (b * back).transpose(-1, -2)  # (B, H, n, d, c)
    solved = torch.linalg.solve_triangular(
        torch.eye(size, device=r.device) - (finds @ bases).tril(-1),
        torch.eye(size, device=r.device).expand(*finds.shape[:-2], -1, -1),
        upper=False,
        unitriangular=True,
    )
    finds, heard = solved @ finds, solved @ (finds @ keys).tril(-1) @ v  # u = finds S + heard
    own, again = (reads @ keys).tril(), (reads @ bases).tril()
    reads, said = reads + again @ finds, own @ v + again @ heard  # y = reads S + said
    last = out[:, :, :, -1:].transpose(-1, -2)  # (B, H, n, d, 1)
    keys, bases = keys * last, bases * last
    writes = keys @ v + bases @ heard  # S' = last S + bases finds S + writes
    starts = []
    for keep, base, find, write in zip(*(x.unbind(2) for x in (last, bases, finds, writes)), strict=True):
        starts.append(state)
        state = keep * state + base @ (find @ state) + write
    y = said + reads @ torch.stack(starts, 2)  # (B, H, n, c, d)
    return y.flatten(2, 3).transpose(1, 2)[:, :tokens], state
