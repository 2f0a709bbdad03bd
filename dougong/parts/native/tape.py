"""A decoder, written down once and run in one call (tape.c).

A tape is a list of operations on buffers of float32: norms, products, attention, activations, sums. Who writes it
(`engine.writing`) asks for buffers and says in which order what happens; `run` (single tokens over lanes) and `read`
(texts over pages) are one call from Python for all layers, where one a layer and operation takes as long as the work.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from dougong.parts.native import ACTIVATIONS, Kernels
from dougong.parts.shapes import Float

_NORM, _LINEAR, _ATTEND, _ACTIVATE, _ADD, _GATED, _PICK = range(7)
_INT8, _INT4, _FLOAT32, _BFLOAT16 = range(4)
_FLOATS, _HALVES, _BYTES, _BYTES_FLOAT = range(4)
_long, _float, _pointer, _int = ctypes.c_long, ctypes.c_float, ctypes.c_void_p, ctypes.c_int


class _Matrix(ctypes.Structure):
    _fields_ = (
        *(("kind", _int), ("inputs", _long), ("out", _long), ("group", _long)),
        *(("weights", _pointer), ("steps", _pointer), ("factor", _pointer), ("bias", _pointer)),
    )


class _Heads(ctypes.Structure):
    _fields_ = (
        *((name, _long) for name in ("heads", "kv_heads", "size", "turning", "window")),
        *(
            ("interleaved", _int),
            ("norm_last", _int),
            ("kept", _int),
            ("scale", _float),
            ("softcap", _float),
            ("eps", _float),
        ),
        *((name, _long) for name in ("q", "k", "v")),
        *((name, _pointer) for name in ("q_norm", "k_norm", "sinks", "keys", "values")),
        *((name, _pointer) for name in ("key_factors", "value_factors", "cos", "sin")),
        ("table", _long),
        ("both_ways", _long),
    )


class _Texts(ctypes.Structure):
    _fields_ = (
        *((name, _long) for name in ("texts", "picked")),
        *((name, _pointer) for name in ("first", "count", "held", "where", "places", "pick")),
    )


class Placed(NamedTuple):
    """Keys and values of all places (places, key heads, size), in float32, bfloat16 or bytes; of bytes the factors of
    both, (places, key heads, 1) bfloat16, and their kind, "int8" or "fp8". table: the number of their table of places.
    """

    keys: Tensor
    values: Tensor
    table: int = 0
    factors: tuple[Tensor, Tensor] | None = None
    kind: str | None = None


class Reading(NamedTuple):
    """Texts whose new tokens are the rows of a tape, one text after the other; int64.

    first, size, held   of each text its first row, how many rows, and how many tokens it has before them
    where               (tables, texts): from where on `places` names the places of the text's tokens, old and new
    pick                the rows that are wanted in the end, ascending
    """

    first: np.ndarray
    size: np.ndarray
    held: np.ndarray
    where: np.ndarray
    places: np.ndarray
    pick: np.ndarray


class _Step(ctypes.Structure):
    _fields_ = (
        *(("op", _int), ("kind", _int), ("width", _long), ("x_apart", _long), ("y_apart", _long), ("eps", _float)),
        *((name, _pointer) for name in ("x", "up", "w", "b", "y", "matrix", "heads")),
    )


@final
class Tape:
    """Operations for up to `rows` rows. Tensors that it is given are held as long as it lives, and read where they lie:
    what is changed in place is seen, what is put in their place is not."""

    def __init__(self, kernels: Kernels, rows: int):
        self._kernels = kernels
        self.rows = rows
        self._steps: list[_Step] = []
        self._held: list[Any] = []
        self._whole: Any = None
        self._heads: list[tuple[_Heads, Any]] = []

    def buffer(self, width: int) -> Float[Tensor, "rows width"]:
        """Room for a row of `width` numbers for each row."""
        return torch.zeros(self.rows, width, dtype=torch.float32, device="cpu")

    def _at(self, x: Tensor | None) -> int | None:
        if x is None:
            return None
        self._held.append(x)
        return x.data_ptr()

    def _add(self, op: int, x: Tensor, y: Tensor, width: int, kind: int = 0, **more: Any) -> None:
        step = _Step(
            op=op, kind=kind, width=width, x=self._at(x), y=self._at(y), x_apart=x.stride(0), y_apart=y.stride(0)
        )
        for name, value in more.items():
            setattr(step, name, value)
        self._steps.append(step)
        self._whole = None

    def rms_norm(self, x: Tensor, y: Tensor, weight: Tensor | None, eps: float) -> None:
        """y = x / sqrt(mean(x^2) + eps) * weight."""
        self._add(_NORM, x, y, x.shape[1], 0, eps=eps, w=self._at(weight))

    def layer_norm(self, x: Tensor, y: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> None:
        """y = (x - mean) / sqrt(variance + eps) * weight + bias."""
        self._add(_NORM, x, y, x.shape[1], 1, eps=eps, w=self._at(weight), b=self._at(bias))

    def add(self, x: Tensor, y: Tensor) -> None:
        """y += x, both without gaps."""
        self._add(_ADD, x, y, x.shape[1])

    def activate(self, name: str, gate: Tensor, up: Tensor | None, y: Tensor) -> None:
        """y = f(gate) * up, or f(gate). gate and up may be parts of the same rows."""
        more = {} if up is None else {"up": self._at(up)}
        self._add(_ACTIVATE, gate, y, gate.shape[1], ACTIVATIONS[name], **more)

    def int8(self, x: Tensor, y: Tensor, tiles: Tensor, factor: Tensor, bias: Tensor | None, add: bool = False) -> None:
        """y = x W^T + bias, or y += with `add`, for W in 8 bits (parts.int8)."""
        sizes = {"inputs": x.shape[1], "out": y.shape[1], "group": x.shape[1]}
        self._linear(x, y, _Matrix(kind=_INT8, weights=self._at(tiles), factor=self._at(factor), **sizes), bias, add)

    def int4(
        self,
        x: Tensor,
        y: Tensor,
        nibbles: Tensor,
        steps: Tensor,
        factor: Tensor,
        group: int,
        bias: Tensor | None,
        add: bool = False,
    ) -> None:
        """The same for W in 4 bits (parts.int4)."""
        held = {"weights": self._at(nibbles), "steps": self._at(steps), "factor": self._at(factor)}
        matrix = _Matrix(kind=_INT4, inputs=x.shape[1], out=y.shape[1], group=group, **held)
        self._linear(x, y, matrix, bias, add)

    def dense(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, add: bool = False) -> None:
        """The same for W in float32 or bfloat16."""
        kind = _FLOAT32 if weight.dtype == torch.float32 else _BFLOAT16
        sizes = {"inputs": x.shape[1], "out": y.shape[1], "group": x.shape[1]}
        self._linear(x, y, _Matrix(kind=kind, weights=self._at(weight), **sizes), bias, add)

    def gated(
        self,
        name: str,
        x: Tensor,
        y: Tensor,
        held: tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor],
        group: int,
        bias: Tensor | None,
    ) -> None:
        """y = f(g) * u where g and u are the halves of a product of 2 y.shape[1] rows, each a multiple of 64 wide.

        held: what `int8` (tiles and factor; group is then x's width) or `int4` (nibbles, steps and factor) takes."""
        assert x.is_contiguous() and y.is_contiguous() and y.shape[1] % 64 == 0
        kind, steps = (_INT8, None) if len(held) == 2 else (_INT4, self._at(held[1]))
        matrix = _Matrix(kind=kind, inputs=x.shape[1], out=2 * y.shape[1], group=group, weights=self._at(held[0]))
        matrix.steps, matrix.factor, matrix.bias = steps, self._at(held[-1]), self._at(bias)
        self._held.append(matrix)
        self._add(_GATED, x, y, y.shape[1], ACTIVATIONS[name], matrix=ctypes.addressof(matrix))

    def pick(self, *buffers: Tensor) -> None:
        """Where texts are read, only the wanted rows of these go on from here; nothing else does."""
        for number, each in enumerate(buffers):
            self._add(_PICK, each, each, each.shape[1], int(number + 1 == len(buffers)))

    def _linear(self, x: Tensor, y: Tensor, matrix: _Matrix, bias: Tensor | None, add: bool) -> None:
        assert x.is_contiguous()
        matrix.bias = self._at(bias)
        self._held.append(matrix)
        self._add(_LINEAR, x, y, y.shape[1], int(add), matrix=ctypes.addressof(matrix))

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        y: Tensor,
        state: Any,
        heads: int,
        kv_heads: int,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        angles: tuple[Tensor, Tensor] | None = None,
        interleaved: bool = False,
        norms: tuple[Tensor | None, Tensor | None, float] | None = None,
        norm_last: bool = False,
        sinks: Tensor | None = None,
        both_ways: bool = False,
    ) -> None:
        """Attention of each row's token over its lane, to which the token's own key and value are added first.

        q, k, v  parts of the same buffer's rows, changed on the way
        state    whatever names these keys and values to `place`
        angles   cos and sin (rows, h): the first 2h coordinates of queries and keys turn
        norms    factors (or None) and eps of the norm of every head of queries and of keys, before or after turning
        both_ways  where texts are read, their new tokens see each other whatever their order
        """
        row, start, size = q.stride(0), q.data_ptr(), q.shape[1] // heads
        made = _Heads(heads=heads, kv_heads=kv_heads, size=size, window=window or 0, scale=scale, softcap=softcap or 0)
        made.k, made.v = (k.data_ptr() - start) // 4, (v.data_ptr() - start) // 4
        if angles is not None:
            made.turning, made.cos, made.sin = angles[0].shape[1], self._at(angles[0]), self._at(angles[1])
        made.both_ways = both_ways
        made.interleaved, made.norm_last, made.sinks = interleaved, norm_last, self._at(sinks)
        if norms is not None:
            ones = torch.ones(size)
            made.q_norm, made.k_norm = (self._at(ones if each is None else each) for each in norms[:2])
            made.eps = norms[2]
        self._heads.append((made, state))
        self._add(_ATTEND, q, y, q.shape[1], x_apart=row, heads=ctypes.addressof(made))

    def place(self, where: dict[Any, Placed]) -> None:
        """Where the keys and values of each state lie."""
        for made, state in self._heads:
            found = where[state]
            made.keys, made.values, made.table = found.keys.data_ptr(), found.values.data_ptr(), found.table
            if found.factors is None:
                made.kept = _HALVES if found.keys.dtype == torch.bfloat16 else _FLOATS
            else:
                made.kept = _BYTES if found.kind == "int8" else _BYTES_FLOAT
                made.key_factors, made.value_factors = (each.data_ptr() for each in found.factors)

    def run(self, held: np.ndarray, start: np.ndarray) -> None:
        """Run the tape for single tokens, one of each lane. held: tokens of each row before this one, int64. start: the
        place of each row's first token in its lane."""
        self._run(len(held), held.ctypes.data, start.ctypes.data, None)

    def read(self, reading: Reading) -> int:
        """Run the tape for the new tokens of texts; how many rows come out: those that are picked, if the tape picks.
        No layer may have a window that such a text passes, sinks or a softcap."""
        assert all(each.dtype == np.int64 and each.flags.c_contiguous for each in reading)
        given = _Texts(len(reading.first), len(reading.pick), *(each.ctypes.data for each in reading))
        self._run(int(reading.size.sum()), None, None, ctypes.addressof(given))
        return len(reading.pick) if any(step.op == _PICK for step in self._steps) else int(reading.size.sum())

    def _run(self, rows: int, held: int | None, start: int | None, texts: int | None) -> None:
        if self._whole is None:
            self._whole = (_Step * len(self._steps))(*self._steps)
        self._kernels.run_tape(ctypes.addressof(self._whole), len(self._steps), rows, held, start, texts)
