"""RWKV's token shift, its channel mix, and the time mix of version 4 (Peng et al. 2023, arXiv 2305.13048)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from dougong.base import DougongError
from dougong.parts.carry import Counts, Pieces, carry, pad_to_chunks, real_tokens
from dougong.parts.context import Context
from dougong.parts.linear import Linear
from dougong.parts.shapes import Float
from dougong.parts.state import LayerState, Slot, Slots

CHUNK = 16  # tokens that are worked on at once: what is kept for each pair of them grows with it


def shift(
    x: Float[Tensor, "B T D"], past: Float[Tensor, "B D"], counts: Counts
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B D"]]:
    """Each token's predecessor (`past` is the first one's), and the last real token: the next call's `past`."""
    rows = torch.cat((past[:, None].to(x.dtype), x), 1)  # (B, 1 + T, D)
    last = rows[:, -1] if counts is None else rows[torch.arange(len(x), device=x.device), counts]
    return rows[:, :-1], last


def shift_slot(width: int) -> Slot:
    """What `shift` keeps between calls."""
    return Slot((width,), per_token=False, dtype=torch.float32)


def mixed(
    before: Float[Tensor, "B T D"], x: Float[Tensor, "B T D"], share: Float[Tensor, " D"]
) -> Float[Tensor, "B T D"]:
    """share x_t + (1 - share) x_{t-1}."""
    return torch.lerp(before, x, share.to(x.dtype))


def check_width(name: str, width: int, expected: int) -> None:
    """Raises DougongError when a spec that names its width is built into a model of another."""
    if width != expected:
        raise DougongError(f"{name}.width is {expected}; it stands in a model of width {width}")


@torch.no_grad()
def initial_mix(mix: Float[Tensor, "*n D"]) -> None:
    """Shares that rise from one end of the channels to the other, between the published first and last layer's."""
    mix.copy_(torch.linspace(0, 1, mix.shape[-1]).sqrt().expand_as(mix))


@dataclass(frozen=True)
class ChannelMix:
    """RWKV's feed-forward: down(relu(up(x_k))^2), times sigmoid(gate(x_r)) where gated (versions 4 to 6, not 7).

    x_k and x_r are mix x_t + (1 - mix) x_{t-1}, with a mix of their own for every channel.
    """

    tagged: ClassVar[bool] = True

    width: int
    hidden: int
    gated: bool = True

    def build(self, width: int) -> ChannelMixLayer:
        check_width("ChannelMix", width, self.width)
        return ChannelMixLayer(self)

    def slots(self) -> Slots:
        return {"shift": shift_slot(self.width)}

    def parameters(self, width: int) -> int:
        return 2 * width * self.hidden + width + self.gated * (width * width + width)

    def flops(self, width: int, context: float) -> float:
        return 4 * width * self.hidden + 2 * self.gated * width * width


class ChannelMixLayer(nn.Module):
    def __init__(self, spec: ChannelMix):
        super().__init__()
        self.spec = spec
        width = spec.width
        self.up = Linear(width, spec.hidden, axes=("embed", "ffn"))
        self.down = Linear(spec.hidden, width, axes=("ffn", "embed"))
        self.gate = Linear(width, width) if spec.gated else None
        self.mix_k = nn.Parameter(torch.empty(width))
        self.mix_r = nn.Parameter(torch.empty(width)) if spec.gated else None

    def forward(
        self, x: Float[Tensor, "B T D"], ctx: Context, state: LayerState | None = None
    ) -> Float[Tensor, "B T D"]:
        return carry(self._run, x, ctx, state, self.spec.slots())

    def _run(self, x: Tensor, past: Pieces, counts: Counts) -> tuple[Tensor, Pieces]:
        before, last = shift(x, past["shift"], counts)
        y = self.down(self.up(mixed(before, x, self.mix_k)).relu().square())
        if self.gate is not None and self.mix_r is not None:
            y = y * self.gate(mixed(before, x, self.mix_r)).sigmoid()
        return y, {"shift": last}

    def initial(self, generator: torch.Generator) -> None:
        for mix in (self.mix_k, self.mix_r):
            if mix is not None:
                initial_mix(mix)


@dataclass(frozen=True)
class WKV4:
    """RWKV-4's time mix: o(sigmoid(r) * wkv), an attention without queries whose weights fall with distance.

    wkv_t = (sum_{s<t} e^{k_s - (t-1-s) w} v_s + e^{u + k_t} v_t) / (the same without v), for each of `inner` channels
    alone; w = e^decay and u = first are trained. k, v and r see mix x_t + (1 - mix) x_{t-1}.
    """

    tagged: ClassVar[bool] = True

    width: int
    inner: int

    def build(self, width: int) -> WKV4Layer:
        check_width("WKV4", width, self.width)
        return WKV4Layer(self)

    def slots(self) -> Slots:
        return {
            "shift": shift_slot(self.width),
            "wkv": Slot((3, self.inner), per_token=False, dtype=torch.float32),
        }

    def parameters(self, width: int) -> int:
        return 4 * width * self.inner + 3 * width + 2 * self.inner

    def flops(self, width: int, context: float) -> float:
        return 8 * width * self.inner + 20 * self.inner


class WKV4Layer(nn.Module):
    def __init__(self, spec: WKV4):
        super().__init__()
        self.spec = spec
        self.r = Linear(spec.width, spec.inner, axes=("embed", "heads"))
        self.k = Linear(spec.width, spec.inner, axes=("embed", "heads"))
        self.v = Linear(spec.width, spec.inner, axes=("embed", "heads"))
        self.o = Linear(spec.inner, spec.width, axes=("heads", "embed"))
        self.mix_r = nn.Parameter(torch.empty(spec.width))
        self.mix_k = nn.Parameter(torch.empty(spec.width))
        self.mix_v = nn.Parameter(torch.empty(spec.width))
        self.decay = nn.Parameter(torch.empty(spec.inner))
        self.first = nn.Parameter(torch.empty(spec.inner))

    def forward(
        self, x: Float[Tensor, "B T D"], ctx: Context, state: LayerState | None = None
    ) -> Float[Tensor, "B T D"]:
        return carry(self._run, x, ctx, state, self.spec.slots())

    def _run(self, x: Tensor, past: Pieces, counts: Counts) -> tuple[Tensor, Pieces]:
        before, last = shift(x, past["shift"], counts)
        r = self.r(mixed(before, x, self.mix_r))
        k, v = self.k(mixed(before, x, self.mix_k)).float(), self.v(mixed(before, x, self.mix_v)).float()
        wkv, new = wkv4(k, v, self.decay.float(), self.first.float(), past["wkv"], counts)
        return self.o(r.sigmoid() * wkv.to(x.dtype)), {"shift": last, "wkv": new}

    @torch.no_grad()
    def initial(self, generator: torch.Generator) -> None:
        """Decays from e^-5 to e^3 a token over the channels, as published for the middle of a model."""
        for mix in (self.mix_r, self.mix_k, self.mix_v):
            initial_mix(mix)
        self.decay.copy_(-5 + 8 * torch.linspace(0, 1, self.spec.inner) ** 1.35)
        self.first.copy_(torch.tensor(0.3).log() + 0.5 * ((torch.arange(self.spec.inner) + 1) % 3 - 1))


def wkv4(
    k: Float[Tensor, "B T C"],
    v: Float[Tensor, "B T C"],
    decay: Float[Tensor, " C"],
    first: Float[Tensor, " C"],
    past: Float[Tensor, "B 3 C"],
    counts: Counts = None,
) -> tuple[Float[Tensor, "B T C"], Float[Tensor, "B 3 C"]]:
    """The weighted mean of WKV4 and the state after it, in chunks; every exponent is taken relative to its maximum.

    The state is (numerator, denominator, maximum): the sums are numerator e^maximum and denominator e^maximum. All
    zeros are a fresh one.
    """
    tokens, size = k.shape[1], min(CHUNK, k.shape[1])
    real = real_tokens(k, counts)
    log_w = -decay.exp()
    # Padding has a weight of nothing, and lets no time pass.
    seen = torch.ones_like(k[..., :1]) if real is None else real[..., None].to(k.dtype)  # (B, T, 1)
    k = k if real is None else k.masked_fill(~real[..., None], -1e30)
    filled = -tokens % size
    k = torch.cat((k, k.new_full((len(k), filled, k.shape[2]), -1e30)), 1).unflatten(1, (-1, size))  # (B, n, c, C)
    v = pad_to_chunks(v, size)
    age = pad_to_chunks(seen, size).cumsum(2)  # (B, n, c, 1) tokens of the chunk so far
    # Exponents at t of the chunk's s: k_s + (t - 1 - s) log_w before t, u + k_t at t itself.
    steps = (age - 1)[:, :, :, None] - age[:, :, None, :]  # (B, n, c, c, 1)
    exponent = k[:, :, None] + steps.clamp(min=0) * log_w
    place = torch.arange(size, device=k.device)
    exponent = torch.where((place[:, None] > place)[..., None], exponent, -torch.inf)
    own = torch.eye(size, dtype=torch.bool, device=k.device)[..., None]
    exponent = torch.where(own, (k + first)[:, :, None], exponent)
    # The maxima only scale: what they divide by, they multiply again, so no gradient goes through them.
    top = exponent.detach().amax(3)  # (B, n, c, C)
    weight = (exponent - top[:, :, :, None]).exp()
    above, below = (weight * v[:, :, None]).sum(3), weight.sum(3)
    # What the chunk leaves behind: k_s + (end - s) log_w.
    ending = k + (age[:, :, -1:] - age) * log_w
    end_top = ending.detach().amax(2)  # (B, n, C)
    end_weight = (ending - end_top[:, :, None]).exp()
    end_above, end_below = (end_weight * v).sum(2), end_weight.sum(2)

    numerator, denominator, maximum = past.unbind(1)
    maximum = torch.where(denominator == 0, -1e38, maximum)
    starts = []
    ends = (x.unbind(1) for x in (age[:, :, -1], end_top, end_above, end_below))
    for elapsed, end, more_above, more_below in zip(*ends, strict=True):
        starts.append(torch.stack((numerator, denominator, maximum), 1))
        carried = maximum + elapsed * log_w
        maximum = torch.maximum(carried.detach(), end)
        old, new = (carried - maximum).exp(), (end - maximum).exp()
        numerator, denominator = old * numerator + new * more_above, old * denominator + new * more_below
    state = torch.stack((numerator, denominator, maximum), 1)
    numerator, denominator, maximum = torch.stack(starts, 1)[:, :, :, None].unbind(2)  # (B, n, 1, C) each
    carried = maximum + (age - 1).clamp(min=0) * log_w  # (B, n, c, C)
    both = torch.maximum(carried.detach(), top)
    old, new = (carried - both).exp(), (top - both).exp()
    y = (old * numerator + new * above) / (old * denominator + new * below)
    return y.flatten(1, 2)[:, :tokens], state
