"""Weights in 4 bits, in groups along the input: a quarter of bfloat16's bytes, for decoding that waits for memory.

    W_oi ~ s_o (m_og q_oi + a_og)     q from 0 to 15; m and a integers for each group g of inputs; s a float

with m q + a in 8 bits, so that one form serves several kernels:

    ours        (native) reads q, m and a as they are for few rows, and multiplies m q + a out, a tile at a time, for
                many
    PyTorch's   where ours is not: its 4-bit kernel for few rows, which wants m and z = a + 8 m in bfloat16 (exact),
                sums in float32, and rounds to bfloat16; for many m q + a is multiplied out for the integer product

All see the activations as integers with a scale a token (int8.py). Which of them are at work depends on the machine
alone, and the two for few and for many rows agree to the bit (PyTorch's short of sums above 2^24): what shares a batch
does not show. Free scales for
the groups, as 4-bit formats usually have, would leave the last kernel without whole numbers; integer ones lose next to
nothing (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.parts import native
from dougong.parts.frozen import FrozenStorage
from dougong.parts.int8 import LEVELS, by_token, integer_product, rescaled, whole
from dougong.parts.linear import Storage
from dougong.parts.shapes import Float, Int

GROUPS = (32, 64, 128)
MOST = 15  # the largest m: 15 times 15 steps of a group fit 8 bits, and leave z room
_FEW = 12  # rows up to which PyTorch's 4-bit kernel is faster than multiplying out (docs/log.md)
_PIECE = 1 << 22  # weights that are multiplied out at a time


def fits(out_features: int, in_features: int, group: int) -> bool:
    """Whether a matrix can be kept in groups of this size."""
    return in_features % group == 0 and out_features % 64 == 0


class Int4(FrozenStorage):
    """The nibbles (out, in / 2) in blocks of 64 rows: a block holds 32 bytes for each input, and byte j has row j in
    its low and row j + 32 in its high half, which is the order of PyTorch's 4-bit kernel on CPUs with AVX512. The m
    and a as bytes (out / 64, groups, 64, 2), so that a block's lie side by side, and the factors s / 127 (out), in
    float32.
    """

    def __init__(
        self,
        nibbles: Tensor,
        steps: Int[Tensor, "b g 64 2"],
        factor: Float[Tensor, " o"],
        dtype: torch.dtype,
    ):
        super().__init__(len(nibbles), 2 * nibbles.shape[1], dtype)
        self.group = self.in_features // steps.shape[1]
        self.nibbles: Tensor
        self.steps: Tensor
        self.factor: Tensor
        self.register_buffer("nibbles", nibbles)
        self.register_buffer("steps", steps)
        self.register_buffer("factor", factor)
        self._wide: tuple[Tensor, Tensor] | None = None  # steps, and what PyTorch's kernel wants in their place

    @classmethod
    def of(cls, weight: Float[Tensor, "o i"], group: int = 32) -> Int4:
        """Round to nearest, each group between its own smallest and largest weight or, where the squared error is less,
        a little inside."""
        if group not in GROUPS:
            raise DougongError(f"group is {group}; expected one of {', '.join(map(str, GROUPS))}")
        if not fits(weight.shape[0], weight.shape[1], group):
            raise DougongError(
                f"a matrix of {tuple(weight.shape)} cannot be kept in 4 bits in groups of {group}: rows must be a "
                f"multiple of 64, columns of {group}"
            )
        kind, weight = weight.dtype, weight.detach().float()
        pieces = [_rounded(piece, group) for piece in weight.split(max(1, _PIECE // weight.shape[1]))]
        q, m, z, scale = (torch.cat(each) for each in zip(*pieces, strict=True))
        steps = torch.stack((m, z - 8 * m), -1).to(torch.int8).unflatten(0, (-1, 64)).transpose(1, 2).contiguous()
        return cls(_pack(q), steps, scale / LEVELS, kind)

    def joined(self, parts: Sequence[Storage]) -> Int4:
        same = [each for each in parts if isinstance(each, Int4)]
        nibbles, factor = torch.cat([each.nibbles for each in same]), torch.cat([each.factor for each in same])
        return Int4(nibbles, torch.cat([each.steps for each in same]), factor, self.dtype)

    def product(self, x: Float[Tensor, "N i"], bias: Tensor | None) -> Float[Tensor, "N o"]:
        ours = native.serving(x)
        if ours is not None:
            held = self._buffers  # a module's own look-up of them takes as long as a small product
            nibbles, steps, factor = held["nibbles"], held["steps"], held["factor"]
            assert nibbles is not None and steps is not None and factor is not None
            y = ours.int4_linear(x.float().contiguous(), nibbles, steps, factor, whole(bias), self.group)
            return y if y.dtype == x.dtype else y.to(x.dtype)
        p, largest = by_token(x)
        if len(x) <= _FEW and p.device.type == "cpu" and _kernel_serves():
            total = torch.ops.aten._weight_int4pack_mm_for_cpu(
                p.to(torch.bfloat16), self.nibbles, self.group, self._for_torch()
            )
        else:
            total = self._by_bytes(p)
        return rescaled(total, self.factor, largest, bias, x.dtype)

    def _for_torch(self) -> Float[Tensor, "g o 2"]:
        """m and z in bfloat16; made once."""
        if self._wide is None or self._wide[0] is not self.steps:
            m, a = self.steps.to(torch.bfloat16).transpose(0, 1).flatten(1, 2).unbind(-1)
            self._wide = self.steps, torch.stack((m, a + 8 * m), -1)
        return self._wide[1]

    def _by_bytes(self, p: Int[Tensor, "N i"]) -> Tensor:
        """The sums (N, out), rounded as the kernel for few rows rounds them."""
        out = torch.empty(len(p), self.out_features, dtype=torch.bfloat16, device=p.device)
        rows = max(64, _PIECE // self.in_features // 64 * 64)
        for start in range(0, self.out_features, rows):
            q = self.bytes(start, min(start + rows, self.out_features))
            out[:, start : start + q.shape[1]] = integer_product(p, q)
        return out

    def bytes(self, start: int, stop: int) -> Int[Tensor, "i o"]:
        """m q + a of the rows from `start` to `stop` (multiples of 64) as int8, turned."""
        blocks, inputs, group = (stop - start) // 64, self.in_features, self.group
        stored = self.nibbles[start:stop].view(blocks, inputs, 32).view(torch.int64)
        steps = self.steps[start // 64 : stop // 64]  # (blocks, g, 64, 2)
        m, a = (each.unflatten(2, (2, 32)).permute(2, 0, 1, 3) for each in steps.unbind(-1))
        out = torch.empty(inputs, blocks, 64, dtype=torch.int8, device=stored.device)
        # Eight nibbles at a time; m q + a, modulo 256, lands where the integer kernel wants it.
        halves = stored & _NIBBLES, (stored >> 4).bitwise_and_(_NIBBLES)
        for half, by, plus, place in zip(halves, m, a, out.split(32, 2), strict=True):
            q = half.view(torch.int8).view(blocks, -1, group, 32)
            target = place.view(inputs // group, group, blocks, 32).permute(2, 0, 1, 3)
            torch.addcmul(plus[:, :, None], q, by[:, :, None], out=target)
        return out.view(inputs, -1)

    def rows(self, ids: Int[Tensor, "*N"]) -> Float[Tensor, "*N i"]:
        flat = ids.reshape(-1)
        within = flat % 64
        bytes_ = self.nibbles.view(-1, self.in_features, 32)[flat // 64, :, within % 32]  # (N, i)
        q = torch.where((within < 32)[:, None], bytes_ & 15, bytes_ >> 4).float()
        m, a = self.steps[flat // 64, :, within].permute(2, 0, 1).float()[..., None]
        levels = torch.addcmul(a, q.view(len(flat), -1, self.group), m).flatten(1)
        return (levels * (self.factor[flat] * LEVELS)[:, None]).to(self.dtype).view(*ids.shape, -1)

    def dense(self) -> Float[Tensor, "o i"]:
        return (self.bytes(0, self.out_features).t() * (self.factor * LEVELS)[:, None]).to(self.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, groups of {self.group}"


_NIBBLES = 0x0F0F0F0F0F0F0F0F


def _pack(q: Tensor) -> Tensor:
    """(o, i) from 0 to 15 as nibbles (o, i / 2), uint8."""
    halves = q.to(torch.uint8).contiguous().view(-1, 2, 32, q.shape[1]).transpose(2, 3)
    return (halves[:, 0] | (halves[:, 1] << 4)).contiguous().view(q.shape[0], -1)


@cache
def _kernel_serves() -> bool:
    """Whether this build has the 4-bit kernel and this CPU is one where it wants the nibbles in our order."""
    q = torch.arange(64 * 32, dtype=torch.int32).view(64, 32) * 7 % 16
    try:
        return torch.equal(torch.ops.aten._convert_weight_to_int4pack_for_cpu(q, 1), _pack(q))
    except (AttributeError, RuntimeError):
        return False


def _rounded(weight: Float[Tensor, "o i"], group: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(q, m, z, s) of some rows."""
    parts = weight.unflatten(1, (-1, group))  # (o, g, group)
    low, high = parts.amin(2), parts.amax(2)
    # Fine enough for the widest group's steps, coarse enough for the largest weight.
    scale = torch.maximum((high - low).amax(1) / (15 * MOST), weight.abs().amax(1) / 120)
    unit = scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    low, high, parts = low / unit, high / unit, parts / unit[..., None]
    best: tuple[Tensor, Tensor, Tensor] | None = None
    error = torch.full_like(low, torch.inf)
    for change in (0, -1, -2, 1):
        m = ((high - low) / 15).round_().add_(change).clamp_(1, MOST)
        z = ((low + high) / 2 + m / 2).round_()
        z = torch.minimum(torch.maximum(z, 8 * m - 128), 127 - 7 * m)
        q = ((parts - z[..., None]) / m[..., None]).round_().clamp_(-8, 7)
        off = (parts - torch.addcmul(z[..., None], q, m[..., None])).square_().sum(2)
        better = off < error
        best = (
            (q, m, z)
            if best is None
            else tuple(  # pyright: ignore[reportAssignmentType]
                torch.where(better if new.ndim == 2 else better[..., None], new, old)
                for new, old in zip((q, m, z), best, strict=True)
            )
        )
        error = torch.where(better, off, error)
    assert best is not None
    q, m, z = best
    return (q.flatten(1) + 8).to(torch.uint8), m.to(torch.int16), z.to(torch.int16), scale
