"""Weights and activations in 8 bits, with sums in 32: about twice as many weights a second as bfloat16.

    W_oi ~ s_o q_oi           one scale an output channel, s_o = max_i |W_oi| / 127
    x_ni ~ t_n p_ni           one scale a token, made as it comes, t_n = max_i |x_ni| / 127
    y_no = s_o t_n sum_i q_oi p_ni

The sum is of integers, so it is exact: however many rows share a product, each row's result is the same to the bit.
A scale for the whole batch would save little and let one request change another's output.

Where our own kernels serve (parts.native) the integers lie in tiles, in the order in which those read them; elsewhere
in rows, as PyTorch's integer product wants them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dougong.parts import native
from dougong.parts.frozen import FrozenStorage
from dougong.parts.linear import Storage
from dougong.parts.shapes import Float, Int

LEVELS = 127
_PIECE = 1 << 22  # weights that are rounded at a time
# Adding 1.5 * 2^23 to a number below 2^22 rounds it to an integer, which then stands in the low bits of the float32:
# one pass instead of a multiplication, a rounding and a conversion.
_ROUND = torch.full((1,), 12582912.0)


def by_token(x: Float[Tensor, "N i"]) -> tuple[Int[Tensor, "N i"], Float[Tensor, "N 1"]]:
    """(p, 127 t): each row of x as integers from -127 to 127, and its largest magnitude. A row of zeros gives zeros:
    0 / 0 is not a number, and the low byte of that is 0."""
    x = x.float()
    largest = x.abs().amax(-1, keepdim=True)  # a norm of order infinity is one call, but ten times slower at 16 rows
    shifted = torch.addcdiv(_ROUND if x.device.type == "cpu" else _ROUND.to(x.device), x, largest, value=LEVELS)
    return shifted.view(torch.int32).to(torch.int8), largest


def integer_product(p: Int[Tensor, "N i"], q: Int[Tensor, "i o"]) -> Int[Tensor, "N o"]:
    """p q with sums in 32 bits."""
    if p.device.type == "cpu" and q.shape[0] > 1:  # of a single input it makes anything (PyTorch 2.13)
        return torch.ops.aten._int_mm(p, q)
    rows = len(p)
    if p.is_cuda and q.shape[0] % 8 == q.shape[1] % 8 == 0:  # its kernel wants more than 16 rows, in eights
        return torch.ops.aten._int_mm(F.pad(p, (0, 0, 0, max(32, -(-rows // 8) * 8) - rows)), q)[:rows]
    return (p.double() @ q.double()).to(torch.int32)  # exact too


_WASTE = 1.25  # a matrix of few rows is kept in rows
_HIGHEST = 0x80808080 - (1 << 32)
TILE = 64  # rows of a matrix that a kernel reads side by side


def tiled(q: Int[Tensor, "o i"]) -> Tensor:
    """(tiles, inputs / 4, 64, 4) bytes, 128 added to each: the instruction wants one side unsigned. Padded to whole
    tiles and fours."""
    padded = F.pad(q, (0, -q.shape[1] % 4, 0, -q.shape[0] % TILE))
    tiles = padded.view(-1, TILE, padded.shape[1] // 4, 4).transpose(1, 2).contiguous()
    return tiles.view(torch.uint8).bitwise_xor_(128)


class Int8(FrozenStorage):
    """The integers q (out, in), in tiles or in rows, and the factors s / 127 (out), float32."""

    def __init__(self, q: Int[Tensor, "o i"], factor: Float[Tensor, " o"], dtype: torch.dtype):
        super().__init__(q.shape[0], q.shape[1], dtype)
        self.held: Tensor
        self.factor: Tensor
        self.register_buffer("held", tiled(q) if _tiles_serve(q) else q)
        self.register_buffer("factor", factor)

    @classmethod
    def of(cls, weight: Float[Tensor, "o i"]) -> Int8:
        q, scale = torch.empty_like(weight, dtype=torch.int8), torch.empty_like(weight[:, 0], dtype=torch.float32)
        step = max(1, _PIECE // weight.shape[1])
        for start in range(0, len(weight), step):  # in pieces: a large table exists once as floats, not three times
            rows = slice(start, start + step)
            piece = weight[rows].detach().float()
            scale[rows] = piece.abs().amax(1) / LEVELS
            # A row of zeros, or of numbers too small to divide by, becomes zeros.
            levels = (piece / scale[rows, None]).nan_to_num_(0.0, 0.0, 0.0).round_()
            q[rows] = levels.clamp_(-LEVELS, LEVELS).to(torch.int8)
        return cls(q, scale / LEVELS, weight.dtype)

    @property
    def in_tiles(self) -> bool:
        return self.held.dtype == torch.uint8

    @property
    def q(self) -> Int[Tensor, "o i"]:
        """The integers; a copy where they are kept in tiles."""
        if not self.in_tiles:
            return self.held
        rows = (self.held ^ 128).view(torch.int8).transpose(1, 2).flatten(2).flatten(0, 1)
        return rows[: self.out_features, : self.in_features]

    def joined(self, parts: Sequence[Storage]) -> Int8:
        same = [each for each in parts if isinstance(each, Int8)]
        return Int8(torch.cat([each.q for each in same]), torch.cat([each.factor for each in same]), self.dtype)

    def product(self, x: Float[Tensor, "N i"], bias: Tensor | None) -> Float[Tensor, "N o"]:
        buffers = self._buffers  # a module's own look-up of them takes as long as a small product
        held, factor = buffers["held"], buffers["factor"]
        assert held is not None and factor is not None
        if held.dtype == torch.uint8 and (ours := native.serving(x)) is not None:
            y = ours.int8_linear(x.float().contiguous(), held, factor, whole(bias))
            return y if y.dtype == x.dtype else y.to(x.dtype)
        p, largest = by_token(x)
        return rescaled(integer_product(p, self.q.t()), factor, largest, bias, x.dtype)

    def rows(self, ids: Int[Tensor, "*N"]) -> Float[Tensor, "*N i"]:
        if self.in_tiles:
            # Four bytes at a time, and 128 taken off each of them: their highest bits turned around.
            words = self.held.view(torch.int32).squeeze(-1)[ids // TILE, :, ids % TILE]
            found = (words ^ _HIGHEST).view(torch.int8)[..., : self.in_features]
        else:
            found = self.held[ids]
        return (found * (self.factor[ids] * LEVELS)[..., None]).to(self.dtype)

    def dense(self) -> Float[Tensor, "o i"]:
        return (self.q * (self.factor * LEVELS)[:, None]).to(self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int8:
        super()._apply(fn, recurse)
        if self.in_tiles and self.held.device.type != "cpu":  # nobody there reads tiles
            self.held = self.q.contiguous()
        return self


def _tiles_serve(q: Int[Tensor, "o i"]) -> bool:
    """Whether our kernels serve, and whole tiles are not much larger than the matrix."""
    return -(-q.shape[0] // TILE) * TILE <= _WASTE * q.shape[0] and native.serving(q) is not None


def whole(bias: Tensor | None) -> Tensor | None:
    """The bias as the kernels want it: float32, contiguous."""
    return None if bias is None else bias.detach().float().contiguous()


def rescaled(
    total: Tensor, factor: Float[Tensor, " o"], largest: Float[Tensor, "N 1"], bias: Tensor | None, dtype: torch.dtype
) -> Float[Tensor, "N o"]:
    """total_no factor_o largest_n + b_o in `dtype`; three roundings, as in the kernels of our own."""
    y = (total * factor).mul_(largest)
    if bias is not None:
        y = y.add_(bias)
    return y if y.dtype == dtype else y.to(dtype)
