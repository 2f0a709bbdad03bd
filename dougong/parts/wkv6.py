"""RWKV-5 (Eagle) and RWKV-6 (Finch): matrix-valued states whose decay is trained, or read from the token.

Peng et al. 2024, arXiv 2404.05892.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dougong.parts.carry import Counts, Pieces, carry, pad_to_chunks, without_padding
from dougong.parts.context import Context
from dougong.parts.linear import Linear
from dougong.parts.shapes import Float
from dougong.parts.state import LayerState, Slot, Slots
from dougong.parts.wkv import CHUNK, check_width, initial_mix, mixed, shift, shift_slot

Heads = Float[Tensor, "B T H d"]


class HeadNorm(nn.Module):
    """LayerNorm of every head alone, with a factor and an offset for every channel (a GroupNorm over the heads)."""

    def __init__(self, heads: int, size: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(heads * size))
        self.bias = nn.Parameter(torch.empty(heads * size))

    def forward(self, x: Heads) -> Float[Tensor, "B T D"]:
        normal = F.layer_norm(x, (x.shape[-1],), eps=self.eps).flatten(2)
        return torch.addcmul(self.bias.to(x.dtype), normal, self.weight.to(x.dtype))

    def initial(self, generator: torch.Generator) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)


@dataclass(frozen=True)
class WKV5:
    """RWKV-5's time mix: o(silu(gate) * norm(wkv)), with wkv_t = r_t (S_{t-1} + (u k_t)^T v_t) for each head.

    S_t = diag(w) S_{t-1} + k_t^T v_t, where w = exp(-exp(decay)) and u = first are trained, a number each for every
    key channel. r, k, v and the gate see mix x_t + (1 - mix) x_{t-1}. Without `gate`, o(norm(wkv)) (version 5.1).
    """

    tagged: ClassVar[bool] = True

    width: int
    heads: int
    head_size: int
    gate: bool = True
    eps: float = 64e-5

    def build(self, width: int) -> WKV5Layer:
        check_width("WKV5", width, self.width)
        return WKV5Layer(self)

    def slots(self) -> Slots:
        return matrix_slots(self.width, self.heads, self.head_size)

    def parameters(self, width: int) -> int:
        inner = self.heads * self.head_size
        return (4 + self.gate) * width * inner + (3 + self.gate) * width + 4 * inner

    def flops(self, width: int, context: float) -> float:
        inner = self.heads * self.head_size
        return 2 * (4 + self.gate) * width * inner + 7 * inner * self.head_size


class WKV5Layer(nn.Module):
    def __init__(self, spec: WKV5):
        super().__init__()
        self.spec = spec
        width, inner = spec.width, spec.heads * spec.head_size
        self.r = Linear(width, inner, axes=("embed", "heads"))
        self.k = Linear(width, inner, axes=("embed", "heads"))
        self.v = Linear(width, inner, axes=("embed", "heads"))
        self.gate = Linear(width, inner, axes=("embed", "heads")) if spec.gate else None
        self.o = Linear(inner, width, axes=("heads", "embed"))
        self.mix_r = nn.Parameter(torch.empty(width))
        self.mix_k = nn.Parameter(torch.empty(width))
        self.mix_v = nn.Parameter(torch.empty(width))
        self.mix_gate = nn.Parameter(torch.empty(width)) if spec.gate else None
        self.decay = nn.Parameter(torch.empty(spec.heads, spec.head_size))
        self.first = nn.Parameter(torch.empty(spec.heads, spec.head_size))
        self.norm = HeadNorm(spec.heads, spec.head_size, spec.eps)

    def forward(
        self, x: Float[Tensor, "B T D"], ctx: Context, state: LayerState | None = None
    ) -> Float[Tensor, "B T D"]:
        return carry(self._run, x, ctx, state, self.spec.slots())

    def _run(self, x: Tensor, past: Pieces, counts: Counts) -> tuple[Tensor, Pieces]:
        before, last = shift(x, past["shift"], counts)
        r, k, v = (
            project(mixed(before, x, mix)).float().unflatten(-1, (-1, self.spec.head_size))
            for project, mix in ((self.r, self.mix_r), (self.k, self.mix_k), (self.v, self.mix_v))
        )
        log_w = -self.decay.float().exp().expand_as(k)
        y, new = decaying(r, k, v, log_w, self.first.float(), past["wkv"], counts)
        y = self.norm(y).to(x.dtype)
        if self.gate is not None and self.mix_gate is not None:
            y = y * F.silu(self.gate(mixed(before, x, self.mix_gate)))
        return self.o(y), {"shift": last, "wkv": new}

    @torch.no_grad()
    def initial(self, generator: torch.Generator) -> None:
        for mix in (self.mix_r, self.mix_k, self.mix_v, self.mix_gate):
            if mix is not None:
                initial_mix(mix)
        initial_decay(self.decay, self.first)


@dataclass(frozen=True)
class WKV6:
    """RWKV-6's time mix: that of RWKV-5 with a decay, and a token shift, that depend on the token.

    With d_t = x_{t-1} - x_t, each of the five inputs i (decay, k, v, r, gate) sees
    x_t + d_t * (mix_i + up_i tanh(down_i(x_t + d_t * mix_x))), and w_t = exp(-exp(decay + up tanh(down(.)))).
    mix_rank and decay_rank are the sizes between down and up.
    """

    tagged: ClassVar[bool] = True

    width: int
    heads: int
    head_size: int
    mix_rank: int = 32
    decay_rank: int = 64
    eps: float = 64e-5

    def build(self, width: int) -> WKV6Layer:
        check_width("WKV6", width, self.width)
        return WKV6Layer(self)

    def slots(self) -> Slots:
        return matrix_slots(self.width, self.heads, self.head_size)

    def parameters(self, width: int) -> int:
        inner = self.heads * self.head_size
        return self._products(width) + 6 * width + 4 * inner

    def flops(self, width: int, context: float) -> float:
        return 2 * self._products(width) + 7 * self.heads * self.head_size**2

    def _products(self, width: int) -> int:
        inner = self.heads * self.head_size
        return 5 * width * inner + 10 * width * self.mix_rank + self.decay_rank * (width + inner)


class WKV6Layer(nn.Module):
    def __init__(self, spec: WKV6):
        super().__init__()
        self.spec = spec
        width, inner = spec.width, spec.heads * spec.head_size
        self.r = Linear(width, inner, axes=("embed", "heads"))
        self.k = Linear(width, inner, axes=("embed", "heads"))
        self.v = Linear(width, inner, axes=("embed", "heads"))
        self.gate = Linear(width, inner, axes=("embed", "heads"))
        self.o = Linear(inner, width, axes=("heads", "embed"))
        self.mix_x = nn.Parameter(torch.empty(width))
        self.mix = nn.Parameter(torch.empty(5, width))  # of the decay, k, v, r and the gate
        self.mix_down = Linear(width, 5 * spec.mix_rank)
        self.mix_up = nn.ModuleList(Linear(spec.mix_rank, width) for _ in range(5))
        self.decay = nn.Parameter(torch.empty(spec.heads, spec.head_size))
        self.decay_down = Linear(width, spec.decay_rank)
        self.decay_up = Linear(spec.decay_rank, inner, axes=("embed", "heads"))
        self.first = nn.Parameter(torch.empty(spec.heads, spec.head_size))
        self.norm = HeadNorm(spec.heads, spec.head_size, spec.eps)

    def forward(
        self, x: Float[Tensor, "B T D"], ctx: Context, state: LayerState | None = None
    ) -> Float[Tensor, "B T D"]:
        return carry(self._run, x, ctx, state, self.spec.slots())

    def _run(self, x: Tensor, past: Pieces, counts: Counts) -> tuple[Tensor, Pieces]:
        before, last = shift(x, past["shift"], counts)
        back = before - x
        low = self.mix_down(torch.addcmul(x, back, self.mix_x.to(x.dtype))).tanh().unflatten(-1, (5, -1))
        to_decay, *inputs, to_gate = (
            torch.addcmul(x, back, mix + up(low[:, :, i]))
            for i, (mix, up) in enumerate(zip(self.mix.to(x.dtype), self.mix_up, strict=True))
        )
        k, v, r = (
            project(row).float().unflatten(-1, (-1, self.spec.head_size))
            for project, row in zip((self.k, self.v, self.r), inputs, strict=True)
        )
        raised = self.decay_up(self.decay_down(to_decay).tanh()).float().view_as(k)
        log_w = -(self.decay.float() + raised).exp()
        y, new = decaying(r, k, v, log_w, self.first.float(), past["wkv"], counts)
        y = self.norm(y).to(x.dtype) * F.silu(self.gate(to_gate))
        return self.o(y), {"shift": last, "wkv": new}

    @torch.no_grad()
    def initial(self, generator: torch.Generator) -> None:
        initial_mix(self.mix)
        initial_mix(self.mix_x)
        self.mix.copy_(1 - self.mix)  # here they are shares of the token before
        self.mix_x.copy_(1 - self.mix_x)
        initial_decay(self.decay, self.first)


def matrix_slots(width: int, heads: int, size: int) -> Slots:
    """The last token, and a matrix (key channel, value channel) for each head."""
    return {
        "shift": shift_slot(width),
        "wkv": Slot((heads, size, size), per_token=False, dtype=torch.float32),
    }


def initial_decay(decay: Float[Tensor, "H d"], first: Float[Tensor, "H d"]) -> None:
    """Decays from e^-6 to e^-1 a token over the channels, as published for the middle of a model."""
    place = torch.linspace(0, 1, decay.numel())
    zigzag = 0.1 * ((torch.arange(decay.numel()) + 1) % 3 - 1)
    decay.copy_((-6 + 5 * place**1.35).view_as(decay))
    first.copy_((0.5 * (1 - place) + zigzag).view_as(first))


def decaying_steps(
    r: Heads, k: Heads, v: Heads, log_w: Heads, first: Float[Tensor, "H d"], state: Float[Tensor, "B H d d"]
) -> tuple[Heads, Float[Tensor, "B H d d"]]:
    """The recurrence of RWKV-5 and RWKV-6, token by token: y_t = r_t (S_{t-1} + (u k_t)^T v_t), S_t = w_t S_{t-1} +
    k_t^T v_t."""
    out = []
    for t in range(r.shape[1]):
        new = k[:, t, :, :, None] * v[:, t, :, None, :]  # (B, H, d, d)
        out.append((r[:, t, :, None, :] @ (state + first[..., None] * new)).squeeze(-2))
        state = log_w[:, t, :, :, None].exp() * state + new
    return torch.stack(out, 1), state


def decaying(
    r: Heads,
    k: Heads,
    v: Heads,
    log_w: Heads,
    first: Float[Tensor, "H d"],
    state: Float[Tensor, "B H d d"],
    counts: Counts = None,
) -> tuple[Heads, Float[Tensor, "B H d d"]]:
    """`decaying_steps`, a chunk at a time: inside a chunk as attention, from chunk to chunk by the state.

    With L_t = sum_{i<=t} log w_i in a chunk, token t takes from s < t the value v_s with weight
    sum_d r_t k_s exp(L_{t-1} - L_s). The exponent is never positive, so it is taken as it is for every pair; split
    into factors of t and of s, strong decays would overflow.
    """
    tokens, size = r.shape[1], min(CHUNK, r.shape[1])
    k, log_w = without_padding(k, counts), without_padding(log_w, counts)
    if tokens == 1:
        return decaying_steps(r, k, v, log_w, first, state)
    r, k, v, log_w = (pad_to_chunks(x, size).movedim(3, 1) for x in (r, k, v, log_w))  # (B, H, n, c, d)
    after = log_w.cumsum(3)
    before = after - log_w
    place = torch.arange(size, device=r.device)
    earlier = (place[:, None] > place)[..., None]
    pairs = (before[:, :, :, :, None] - after[:, :, :, None]).masked_fill(~earlier, -torch.inf).exp()  # (..., c, c, d)
    scores = (r[:, :, :, :, None] * pairs * k[:, :, :, None]).sum(-1)  # (B, H, n, c, c)
    own = (r * first[:, None, None] * k).sum(-1, keepdim=True)
    inside = scores @ v + own * v
    reads = r * before.exp()
    end = after[:, :, :, -1:]  # (B, H, n, 1, d)
    writes = (k * (end - after).exp()).transpose(-1, -2) @ v  # (B, H, n, d, d)
    keeps = end.exp().transpose(-1, -2)
    starts = []
    for keep, write in zip(keeps.unbind(2), writes.unbind(2), strict=True):
        starts.append(state)
        state = keep * state + write
    y = inside + reads @ torch.stack(starts, 2)  # (B, H, n, c, d)
    return y.flatten(2, 3).transpose(1, 2)[:, :tokens], state
