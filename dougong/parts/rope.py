"""Rotary positions (RoPE, Su et al. 2021) and the scalings that reach beyond the length a model was trained on.

RoPE turns each pair of coordinates i of a head by the angle position * theta^(-2i/d). The pairs are (i, i + d/2), or
(2i, 2i + 1) when interleaved. A scaling changes the frequencies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.parts import native
from dougong.parts.context import Context
from dougong.parts.position import Position
from dougong.parts.shapes import Float, Int


@dataclass(frozen=True)
class LinearScaling:
    """Position interpolation (Chen et al. 2023): every position divided by `factor`."""

    factor: float


@dataclass(frozen=True)
class NTK:
    """A larger base instead of smaller positions: theta * factor^(d / (d - 2)) (bloc97, 2023)."""

    factor: float


@dataclass(frozen=True)
class DynamicNTK:
    """NTK whose factor grows with the text: none up to `original` tokens. A text of n > original tokens gets
    theta * (factor n / original - (factor - 1))^(d / (d - 2)), so tokens seen early turn differently once more follow.
    """

    factor: float
    original: int


@dataclass(frozen=True)
class Yarn:
    """YaRN (Peng et al. 2023): fast coordinates keep their frequency, slow ones are interpolated, with a linear ramp
    between those that turn `beta_fast` and `beta_slow` times within `original` tokens; scores are scaled by
    `attention_factor` squared (on q and on k). None: 0.1 ln(factor) + 1."""

    factor: float
    original: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True  # round the ramp's ends to whole coordinates


@dataclass(frozen=True)
class Llama3:
    """Llama 3.1: wavelengths above original / low are divided by `factor`, those below original / high kept, smooth
    between."""

    factor: float
    low: float
    high: float
    original: int


@dataclass(frozen=True)
class LongRope:
    """LongRoPE (Ding et al. 2024): a divisor for each frequency, one list up to `original` tokens, another beyond."""

    short: tuple[float, ...]
    long: tuple[float, ...]
    original: int
    attention_factor: float


Scaling = LinearScaling | NTK | DynamicNTK | Yarn | Llama3 | LongRope


@dataclass(frozen=True)
class Axes:
    """M-RoPE (Wang et al. 2024, Qwen2-VL): each pair turns by one of a token's coordinates (time, height, width).

    sections: pairs of each axis, one axis after the other; or, interleaved, in turn (Qwen3-VL): pair i belongs to axis
    i mod 3 as long as that axis has pairs left, and to time after that.
    """

    sections: tuple[int, int, int]
    interleaved: bool = False

    def of(self, pairs: int) -> Int[Tensor, " h"]:
        """The axis of each of `pairs` pairs. Raises DougongError when sections in order do not add up to them."""
        if self.interleaved:
            return torch.tensor([i % 3 if i < 3 * self.sections[i % 3] else 0 for i in range(pairs)])
        if sum(self.sections) != pairs:
            raise DougongError(f"sections of M-RoPE are {self.sections}; they must add up to the {pairs} turning pairs")
        return torch.arange(3).repeat_interleave(torch.tensor(self.sections))


@dataclass(frozen=True)
class Rope(Position):
    """Rotary positions on the first `size` coordinates of each head (an even number). With axes, tokens that have
    coordinates of their own (`ctx.coordinates`) turn by them; all others have one position on every axis.

    spread: the d in theta^(-2i/d) where it is not `size`: transformers turns one coordinate more than an odd d.
    """

    size: int
    theta: float = 10000.0
    interleaved: bool = False
    scaling: Scaling | None = None
    axes: Axes | None = None
    spread: int | None = None

    def rotate(
        self, q: Float[Tensor, "B T H d"], k: Float[Tensor, "B T K d"], ctx: Context
    ) -> tuple[Float[Tensor, "B H T d"], Float[Tensor, "B K T d"]]:
        """Turn queries and keys to their positions, heads moved before tokens. Angles are taken in float32."""
        cos, sin = ctx.once(("rope", self, q.dtype), lambda: self.angles(ctx, q.dtype))
        if not torch.is_grad_enabled() and (both := _beside(q, k)) is not None:
            turned = turn(both, cos, sin, self.interleaved)
            return turned[:, : q.shape[2]], turned[:, q.shape[2] :]
        return turn(q, cos, sin, self.interleaved), turn(k, cos, sin, self.interleaved)

    def angles(self, ctx: Context, dtype: torch.dtype) -> tuple[Float[Tensor, "#B T h"], Float[Tensor, "#B T h"]]:
        """cos and sin for each position and pair, h = size / 2, with the scaling's attention factor in them."""
        if self.by_length:
            rows = [[_frequencies(self, self.stage(length)) for length in row] for row in ctx.text_lengths().tolist()]
            frequency = torch.stack([torch.stack([each for each, _ in row]) for row in rows])  # (B or 1, T or 1, h)
            factor = rows[0][0][1]
        else:
            frequency, factor = _frequencies(self, 0)
        place = ctx.positions[..., None]  # (B or 1, T, 1), or with a coordinate for each pair (B or 1, T, h)
        if self.axes is not None and ctx.coordinates is not None:
            place = ctx.coordinates.movedim(0, -1)[..., self.axes.of(self.size // 2).to(place.device)]
        angle = place.float() * frequency.to(place.device)
        return (angle.cos() * factor).to(dtype), (angle.sin() * factor).to(dtype)

    @property
    def by_length(self) -> bool:
        """Whether angles depend on the length of a text, and not on places alone."""
        return isinstance(self.scaling, (DynamicNTK, LongRope))

    @property
    def starts_anew(self) -> bool:
        """Whether what was turned before is useless once the stage has changed. Keys of dynamic NTK stay as they are,
        for its stage changes with every token."""
        return isinstance(self.scaling, LongRope)

    def stage(self, tokens: int) -> int:
        """All that the frequencies depend on in a text of `tokens` tokens."""
        match self.scaling:
            case LongRope():
                return int(tokens > self.scaling.original)
            case DynamicNTK():
                return max(tokens, self.scaling.original)
            case _:
                return 0


@lru_cache(maxsize=256)
def _frequencies(rope: Rope, stage: int) -> tuple[Tensor, float]:
    """Radians a position for each pair, (size / 2) float32, and the factor on cos and sin."""
    size, scaling, theta = rope.spread or rope.size, rope.scaling, rope.theta
    if isinstance(scaling, NTK):
        theta *= scaling.factor ** (size / (size - 2))
    elif isinstance(scaling, DynamicNTK):
        grown = scaling.factor * stage / scaling.original - (scaling.factor - 1)
        theta *= grown ** (size / (size - 2))
    plain = 1.0 / theta ** (torch.arange(0, size, 2, dtype=torch.int64).float() / size)
    match scaling:
        case None | NTK() | DynamicNTK():
            return plain, 1.0
        case LinearScaling():
            return plain / scaling.factor, 1.0
        case Llama3():
            return _llama3(plain, scaling), 1.0
        case Yarn():
            factor = scaling.attention_factor
            return _yarn(plain, theta, size, scaling), 0.1 * math.log(scaling.factor) + 1 if factor is None else factor
        case LongRope():
            divisors = torch.tensor(scaling.long if stage else scaling.short, dtype=torch.float32)
            exponent = torch.arange(0, size, 2, dtype=torch.int64).float() / size
            return 1.0 / (divisors * theta**exponent), scaling.attention_factor


def _llama3(plain: Tensor, scaling: Llama3) -> Tensor:
    wavelength = 2 * math.pi / plain
    smooth = (scaling.original / wavelength - scaling.low) / (scaling.high - scaling.low)
    blended = (1 - smooth) * plain / scaling.factor + smooth * plain
    result = torch.where(wavelength > scaling.original / scaling.low, plain / scaling.factor, blended)
    return torch.where(wavelength < scaling.original / scaling.high, plain, result)


def _yarn(plain: Tensor, theta: float, size: int, scaling: Yarn) -> Tensor:
    def coordinate(turns: float) -> float:
        """The (fractional) pair that makes `turns` full turns within the original length."""
        return size * math.log(scaling.original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = coordinate(scaling.beta_fast), coordinate(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    if low == high:
        high += 0.001  # a ramp of no width would divide by zero
    ramp = ((torch.arange(size // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return plain / scaling.factor * ramp + plain * (1 - ramp)


def _beside(q: Tensor, k: Tensor) -> Tensor | None:
    """The heads of q and k as one tensor, where k follows q in memory: parts of one product (fused.py)."""
    if q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        return None
    # A dimension of one element has whatever stride: a single token's q and k have different ones.
    if any(a != b for a, b, size in zip(q.stride(), k.stride(), q.shape, strict=True) if size > 1):
        return None
    heads, size = q.shape[2:]
    if k.storage_offset() - q.storage_offset() != heads * size or q.stride(2) != size or q.stride(3) != 1:
        return None
    if q.untyped_storage().data_ptr() != k.untyped_storage().data_ptr():
        return None
    return q.as_strided((*q.shape[:2], heads + k.shape[2], size), q.stride())


def _pairs(x: Tensor, size: int, interleaved: bool) -> tuple[Tensor, Tensor]:
    """The two members of each rotated pair, as views (..., size / 2)."""
    part = x[..., :size]
    if interleaved:
        return part[..., 0::2], part[..., 1::2]
    return part[..., : size // 2], part[..., size // 2 :]


def _turn_into(out: Tensor, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, back: bool = False) -> Tensor:
    """Write the rotation of x, or the one back, into `out`, of the same shape in any layout, without a temporary."""
    plain = not interleaved and x.dtype == out.dtype == cos.dtype == torch.float32
    if plain and x.stride(3) == out.stride(3) == 1 and (ours := native.serving(x)) is not None:
        ours.turn_text(x, cos.contiguous(), sin.contiguous(), out, back)
        return out
    cos, sin = cos[:, :, None], -sin[:, :, None] if back else sin[:, :, None]
    size = 2 * cos.shape[-1]
    (a, b), (c, d) = _pairs(x, size, interleaved), _pairs(out, size, interleaved)
    torch.mul(a, cos, out=c).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=d).addcmul_(a, sin)
    if size < x.shape[-1]:
        out[..., size:].copy_(x[..., size:])
    return out


class _Turn(torch.autograd.Function):
    """A rotation's gradient is the rotation back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        batch, tokens, heads, size = x.shape
        out = x.new_empty(batch, heads, tokens, size)
        _turn_into(out.transpose(1, 2), x, cos, sin, interleaved)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        grad = grads[0].transpose(1, 2)
        out = torch.empty(grad.shape, dtype=grad.dtype, device=grad.device)
        return _turn_into(out, grad, cos, sin, ctx.interleaved, back=True), None, None, None


def turn(
    x: Float[Tensor, "B T H d"], cos: Float[Tensor, "#B T h"], sin: Float[Tensor, "#B T h"], interleaved: bool = False
) -> Float[Tensor, "B H T d"]:
    """Rotate the first 2h coordinates of each head and move heads before tokens."""
    if torch.compiler.is_compiling():
        cos, sin = cos[:, :, None], sin[:, :, None]
        a, b = _pairs(x, 2 * cos.shape[-1], interleaved)
        c, d = a * cos - b * sin, b * cos + a * sin
        pairs = torch.stack((c, d), -1).flatten(-2) if interleaved else torch.cat((c, d), -1)
        return torch.cat((pairs, x[..., pairs.shape[-1] :]), -1).transpose(1, 2).to(x.dtype)
    if not torch.is_grad_enabled():
        batch, tokens, heads, size = x.shape
        alone = tokens == 1 and not interleaved and x.dtype == cos.dtype == torch.float32
        if alone and x.stride()[2:] == (size, 1) and (ours := native.serving(x)) is not None:
            return ours.turn(x, cos.contiguous(), sin.contiguous())
        out = x.new_empty(batch, heads, tokens, size)
        _turn_into(out.transpose(1, 2), x, cos, sin, interleaved)
        return out
    out = _Turn.apply(x, cos, sin, interleaved)
    assert isinstance(out, Tensor)
    return out
