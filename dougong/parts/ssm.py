"""Mamba: a selective state space model (Gu & Dao 2023, arXiv 2312.00752)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dougong.parts.carry import Counts, Pieces, carry, pad_to_chunks, without_padding
from dougong.parts.context import Context
from dougong.parts.convolution import CausalConv, past_slot
from dougong.parts.feedforward import ACTIVATIONS, Activation
from dougong.parts.linear import Linear
from dougong.parts.norm import Norm
from dougong.parts.shapes import Float
from dougong.parts.state import LayerState, Slot, Slots


@dataclass(frozen=True)
class Mamba:
    """o(silu(gate(x)) * ssm(u)) with u = act(conv(up(x))), every one of the `inner` channels with `state` numbers h:

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t,  ssm_t = C_t . h_t + skip u_t,  A = -exp(a_log), B = b(u), C = c(u),
    dt = softplus(dt_up(dt_down(u)) + dt_bias). `inner_norm` normalises what comes out of dt_down, b and c (Jamba).
    """

    tagged: ClassVar[bool] = True

    inner: int
    state: int
    rank: int  # between dt_down and dt_up
    kernel: int = 4
    bias: bool = False  # of up, gate and o
    conv_bias: bool = True
    activation: Activation = "silu"
    inner_norm: Norm | None = None

    def build(self, width: int) -> MambaLayer:
        return MambaLayer(self, width)

    def slots(self) -> Slots:
        ssm = Slot((self.inner, self.state), per_token=False, dtype=torch.float32)
        return {"conv": past_slot(self.inner, self.kernel), "ssm": ssm}

    def parameters(self, width: int) -> int:
        count = self._products(width) + (2 * self.inner + width) * self.bias
        count += self.inner * (self.kernel + self.conv_bias) + self.inner * (self.state + 2)
        if self.inner_norm is not None:
            count += self.inner_norm.parameters(self.rank) + 2 * self.inner_norm.parameters(self.state)
        return count

    def flops(self, width: int, context: float) -> float:
        return 2 * self._products(width) + 2 * self.inner * self.kernel + 6 * self.inner * self.state

    def _products(self, width: int) -> int:
        return 3 * width * self.inner + 2 * self.inner * (self.rank + self.state)


class MambaLayer(nn.Module):
    def __init__(self, spec: Mamba, width: int):
        super().__init__()
        self.spec = spec
        inner, norm = spec.inner, spec.inner_norm
        self.up = Linear(width, inner, spec.bias, axes=("embed", "ffn"))
        self.gate = Linear(width, inner, spec.bias, axes=("embed", "ffn"))
        self.conv = CausalConv(inner, spec.kernel, spec.conv_bias)
        self.activation = ACTIVATIONS[spec.activation]
        self.dt_down = Linear(inner, spec.rank, axes=("ffn", "embed"))
        self.b = Linear(inner, spec.state, axes=("ffn", "embed"))
        self.c = Linear(inner, spec.state, axes=("ffn", "embed"))
        self.dt_norm = norm.build(spec.rank) if norm else None
        self.b_norm = norm.build(spec.state) if norm else None
        self.c_norm = norm.build(spec.state) if norm else None
        self.dt_up = Linear(spec.rank, inner, axes=("embed", "ffn"))
        self.dt_bias = nn.Parameter(torch.empty(inner))
        self.a_log = nn.Parameter(torch.empty(inner, spec.state))
        self.skip = nn.Parameter(torch.empty(inner))
        self.o = Linear(inner, width, spec.bias, axes=("ffn", "embed"))

    def forward(
        self, x: Float[Tensor, "B T D"], ctx: Context, state: LayerState | None = None
    ) -> Float[Tensor, "B T D"]:
        return carry(self._run, x, ctx, state, self.spec.slots())

    def _run(self, x: Tensor, past: Pieces, counts: Counts) -> tuple[Tensor, Pieces]:
        u, conv = self.conv(self.up(x), past["conv"], counts)
        u = self.activation(u)
        step, b, c = self.dt_down(u), self.b(u), self.c(u)
        if self.dt_norm is not None and self.b_norm is not None and self.c_norm is not None:
            step, b, c = self.dt_norm(step), self.b_norm(b), self.c_norm(c)
        dt = F.softplus(self.dt_up(step).float() + self.dt_bias.float())
        a = -self.a_log.float().exp()
        y, ssm = selective_scan(u.float(), dt, a, b.float(), c.float(), past["ssm"], counts)
        y = (y + self.skip.float() * u.float()) * F.silu(self.gate(x).float())
        return self.o(y.to(x.dtype)), {"conv": conv, "ssm": ssm}

    @torch.no_grad()
    def initial(self, generator: torch.Generator) -> None:
        """A from -1 to -state, time steps from 0.001 to 0.1 (the paper's section 3.6)."""
        self.a_log.copy_(torch.arange(1, self.spec.state + 1).log().expand_as(self.a_log))
        self.skip.fill_(1.0)
        initial_steps(self.dt_bias, generator)


@torch.no_grad()
def initial_steps(bias: Float[Tensor, " H"], generator: torch.Generator) -> None:
    """Time steps spread evenly by their logarithm from 0.001 to 0.1, behind a softplus."""
    step = torch.exp(torch.empty(bias.shape).uniform_(math.log(0.001), math.log(0.1), generator=generator))
    bias.copy_(step + torch.log(-torch.expm1(-step)))


def selective_steps(
    u: Float[Tensor, "B T C"],
    dt: Float[Tensor, "B T C"],
    a: Float[Tensor, "C N"],
    b: Float[Tensor, "B T N"],
    c: Float[Tensor, "B T N"],
    state: Float[Tensor, "B C N"],
) -> tuple[Float[Tensor, "B T C"], Float[Tensor, "B C N"]]:
    """h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t and y_t = C_t . h_t, token by token."""
    out = []
    for t in range(u.shape[1]):
        step = dt[:, t, :, None]
        state = (step * a).exp() * state + step * u[:, t, :, None] * b[:, t, None]
        out.append((state @ c[:, t, :, None]).squeeze(-1))
    return torch.stack(out, 1), state


def selective_scan(
    u: Float[Tensor, "B T C"],
    dt: Float[Tensor, "B T C"],
    a: Float[Tensor, "C N"],
    b: Float[Tensor, "B T N"],
    c: Float[Tensor, "B T N"],
    state: Float[Tensor, "B C N"],
    counts: Counts = None,
) -> tuple[Float[Tensor, "B T C"], Float[Tensor, "B C N"]]:
    """`selective_steps` in about 2 sqrt(T) steps instead of T.

    The tokens are cut into sqrt(T) chunks. All chunks run side by side, each from a state of zeros; then the states
    between them are filled in, one after the other; what a chunk's first state adds at its token t is
    C_t . exp(A sum_{i<=t} dt_i) h, for every exponent is linear in the time that has passed.
    """
    tokens = u.shape[1]
    dt = without_padding(dt, counts)  # no time passes at padding, and nothing is written
    if tokens == 1:
        return selective_steps(u, dt, a, b, c, state)
    size = math.isqrt(tokens - 1) + 1
    u, dt, b, c = (pad_to_chunks(x, size) for x in (u, dt, b, c))  # (B, n, s, C or N)
    writes = (dt * u)[..., None] * b[..., None, :]  # (B, n, s, C, N)
    keeps = (dt[..., None] * a).exp()
    h = torch.zeros_like(writes[:, :, 0])  # (B, n, C, N)
    inside = []
    for keep, write, read in zip(keeps.unbind(2), writes.unbind(2), c.unbind(2), strict=True):
        h = keep * h + write
        inside.append((h @ read[..., None]).squeeze(-1))
    elapsed = dt.cumsum(2)
    total = (elapsed[:, :, -1, :, None] * a).exp()
    starts = []
    for keep, write in zip(total.unbind(1), h.unbind(1), strict=True):
        starts.append(state)
        state = keep * state + write
    faded = (elapsed[..., None] * a).exp() * torch.stack(starts, 1)[:, :, None]  # (B, n, s, C, N)
    carried = (faded @ c[..., None]).squeeze(-1)
    return (torch.stack(inside, 2) + carried).flatten(1, 2)[:, :tokens], state
