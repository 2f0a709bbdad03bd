"""Mamba-2: state space duality (Dao & Gu 2024, arXiv 2405.21060)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dougong.base import DougongError
from dougong.parts.carry import Counts, Pieces, carry, pad_to_chunks, without_padding
from dougong.parts.context import Context
from dougong.parts.convolution import CausalConv, past_slot
from dougong.parts.feedforward import ACTIVATIONS, Activation
from dougong.parts.linear import Linear
from dougong.parts.shapes import Float
from dougong.parts.ssm import initial_steps
from dougong.parts.state import LayerState, Slot, Slots

CHUNK = 64  # tokens that are worked on at once, as attention


@dataclass(frozen=True)
class Mamba2:
    """o(norm(ssd * silu(gate(x)))), where u, B, C = act(conv(up(x), b(x), c(x))) and every head has a matrix S:

    S_t = exp(dt_t A) S_{t-1} + dt_t u_t B_t^T,  ssd_t = S_t C_t + skip u_t,  dt = softplus(dt(x) + dt_bias) clamped to
    `steps`, A = -exp(a_log). The heads of one of the `groups` share B and C. The RMS norm works on each of the
    `norm_groups` parts of the channels; `norm_first` takes norm(ssd) * silu(gate) instead.
    """

    tagged: ClassVar[bool] = True

    heads: int
    head_size: int
    state: int
    groups: int = 1
    kernel: int = 4
    bias: bool = False  # of all projections from and to the residual path
    conv_bias: bool = True
    activation: Activation = "silu"
    steps: tuple[float, float | None] = (0.0, None)  # least and largest time step
    eps: float = 1e-5
    norm_groups: int = 1
    norm_first: bool = False

    def __post_init__(self) -> None:
        if self.heads % self.groups:
            raise DougongError(f"Mamba2 has {self.heads} heads in {self.groups} groups; heads must be a multiple")
        if self.inner % self.norm_groups:
            raise DougongError(f"Mamba2 has {self.inner} channels in {self.norm_groups} norm_groups, unevenly")

    @property
    def inner(self) -> int:
        return self.heads * self.head_size

    @property
    def channels(self) -> int:
        """What the convolution runs over: u, B and C."""
        return self.inner + 2 * self.groups * self.state

    def build(self, width: int) -> Mamba2Layer:
        return Mamba2Layer(self, width)

    def slots(self) -> Slots:
        ssm = Slot((self.heads, self.head_size, self.state), per_token=False, dtype=torch.float32)
        return {"conv": past_slot(self.channels, self.kernel), "ssm": ssm}

    def parameters(self, width: int) -> int:
        out = self.inner + self.channels + self.heads
        count = width * (out + self.inner) + (out + width) * self.bias
        return count + self.channels * (self.kernel + self.conv_bias) + 3 * self.heads + self.inner

    def flops(self, width: int, context: float) -> float:
        products = 2 * width * (2 * self.inner + self.channels + self.heads)
        return products + 2 * self.channels * self.kernel + 5 * self.inner * self.state


class Mamba2Layer(nn.Module):
    def __init__(self, spec: Mamba2, width: int):
        super().__init__()
        self.spec = spec
        self.gate = Linear(width, spec.inner, spec.bias, axes=("embed", "heads"))
        self.up = Linear(width, spec.inner, spec.bias, axes=("embed", "heads"))
        self.b = Linear(width, spec.groups * spec.state, spec.bias)
        self.c = Linear(width, spec.groups * spec.state, spec.bias)
        self.dt = Linear(width, spec.heads, spec.bias, axes=("embed", "heads"))
        self.conv = CausalConv(spec.channels, spec.kernel, spec.conv_bias)
        self.activation = ACTIVATIONS[spec.activation]
        self.dt_bias = nn.Parameter(torch.empty(spec.heads))
        self.a_log = nn.Parameter(torch.empty(spec.heads))
        self.skip = nn.Parameter(torch.empty(spec.heads))
        self.norm = nn.Parameter(torch.empty(spec.inner))
        self.o = Linear(spec.inner, width, spec.bias, axes=("heads", "embed"))

    def forward(
        self, x: Float[Tensor, "B T D"], ctx: Context, state: LayerState | None = None
    ) -> Float[Tensor, "B T D"]:
        return carry(self._run, x, ctx, state, self.spec.slots())

    def _run(self, x: Tensor, past: Pieces, counts: Counts) -> tuple[Tensor, Pieces]:
        spec = self.spec
        mixed, conv = self.conv(torch.cat((self.up(x), self.b(x), self.c(x)), -1), past["conv"], counts)
        side = spec.groups * spec.state
        u, b, c = self.activation(mixed).float().split((spec.inner, side, side), -1)
        u = u.unflatten(-1, (spec.heads, spec.head_size))
        b, c = (each.unflatten(-1, (spec.groups, spec.state)) for each in (b, c))
        dt = F.softplus(self.dt(x).float() + self.dt_bias.float()).clamp(*spec.steps)
        y, ssm = state_space_dual(u, dt, -self.a_log.float().exp(), b, c, past["ssm"], counts)
        y = (y + self.skip.float()[:, None] * u).flatten(2)
        return self.o(self._gated_norm(y, self.gate(x).float()).to(x.dtype)), {"conv": conv, "ssm": ssm}

    def _gated_norm(self, y: Tensor, gate: Tensor) -> Tensor:
        spec, gate = self.spec, F.silu(gate)
        y = y if spec.norm_first else y * gate
        groups = y.unflatten(-1, (spec.norm_groups, -1))
        y = F.rms_norm(groups, (groups.shape[-1],), eps=spec.eps).flatten(2) * self.norm.float()
        return y * gate if spec.norm_first else y

    @torch.no_grad()
    def initial(self, generator: torch.Generator) -> None:
        """A spread evenly from -1 to -16, time steps from 0.001 to 0.1, as published."""
        self.a_log.copy_(torch.empty(self.a_log.shape).uniform_(1, 16, generator=generator).log())
        self.skip.fill_(1.0)
        self.norm.fill_(1.0)
        initial_steps(self.dt_bias, generator)


def dual_steps(
    u: Float[Tensor, "B T H P"],
    dt: Float[Tensor, "B T H"],
    a: Float[Tensor, " H"],
    b: Float[Tensor, "B T G N"],
    c: Float[Tensor, "B T G N"],
    state: Float[Tensor, "B H P N"],
) -> tuple[Float[Tensor, "B T H P"], Float[Tensor, "B H P N"]]:
    """S_t = exp(dt_t A) S_{t-1} + dt_t u_t B_t^T and y_t = S_t C_t, token by token."""
    share = u.shape[2] // b.shape[2]
    b, c = b.repeat_interleave(share, 2), c.repeat_interleave(share, 2)
    out = []
    for t in range(u.shape[1]):
        step = dt[:, t, :, None, None]
        state = (step * a[:, None, None]).exp() * state + step * u[:, t, :, :, None] * b[:, t, :, None]
        out.append((state @ c[:, t, :, :, None]).squeeze(-1))
    return torch.stack(out, 1), state


def state_space_dual(
    u: Float[Tensor, "B T H P"],
    dt: Float[Tensor, "B T H"],
    a: Float[Tensor, " H"],
    b: Float[Tensor, "B T G N"],
    c: Float[Tensor, "B T G N"],
    state: Float[Tensor, "B H P N"],
    counts: Counts = None,
) -> tuple[Float[Tensor, "B T H P"], Float[Tensor, "B H P N"]]:
    """`dual_steps`, a chunk at a time: inside a chunk as attention, from chunk to chunk by the state.

    With L_t = A sum_{i<=t} dt_i in a chunk, token t takes dt_s u_s from each s <= t with weight
    (C_t . B_s) exp(L_t - L_s), and from the chunk's first state exp(L_t) S C_t (the paper's section 6).
    """
    tokens, size = u.shape[1], min(CHUNK, u.shape[1])
    dt = without_padding(dt, counts)  # no time passes at padding, and nothing is written
    if tokens == 1:
        return dual_steps(u, dt, a, b, c, state)
    groups, shape = b.shape[2], state.shape
    state = state.unflatten(1, (groups, -1))  # (B, G, R, P, N), R heads to a group
    u = (
        pad_to_chunks(u * dt[..., None], size).unflatten(3, (groups, -1)).permute(0, 3, 4, 1, 2, 5)
    )  # (B, G, R, n, c, P)
    log = pad_to_chunks(dt * a, size).unflatten(3, (groups, -1)).permute(0, 3, 4, 1, 2).cumsum(-1)  # (B, G, R, n, c)
    b, c = (pad_to_chunks(x, size).movedim(3, 1) for x in (b, c))  # (B, G, n, c, N)
    late = torch.ones(size, size, dtype=torch.bool, device=u.device).triu(1)
    pairs = (log[..., :, None] - log[..., None, :]).masked_fill(late, -torch.inf).exp()  # (B, G, R, n, c, c)
    inside = ((c @ b.transpose(-1, -2))[:, :, None] * pairs) @ u  # (B, G, R, n, c, P)
    left = (u * (log[..., -1:] - log).exp()[..., None]).transpose(-1, -2) @ b[:, :, None]  # (B, G, R, n, P, N)
    keeps = log[..., -1, None, None].exp()
    starts = []
    for keep, write in zip(keeps.unbind(3), left.unbind(3), strict=True):
        starts.append(state)
        state = keep * state + write
    first = torch.stack(starts, 3).transpose(-1, -2)  # (B, G, R, n, N, P)
    y = inside + log.exp()[..., None] * (c[:, :, None] @ first)
    return y.permute(0, 3, 4, 1, 2, 5).flatten(3, 4).flatten(1, 2)[:, :tokens], state.reshape(shape)
