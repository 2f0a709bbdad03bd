"""What decoding and training wait for, in C, where a compiler can build it; elsewhere PyTorch's kernels serve.

    what      weights in 4, 8, 16 or 32 bits times a few rows of activations (products.c); norm, rotation and attention
              of single tokens in float32 (token.c); gate, norm and rotation with their gradients in float32 (layer.c)
    where     Linux on x86 CPUs with AVX512 VNNI and VBMI (Ice Lake, Zen 4 and later) and a C compiler named `cc`
    when      the first time they are asked for: a second of work, kept in $XDG_CACHE_HOME/dougong (~/.cache/dougong)
    not       with DOUGONG_NATIVE=0 in the environment

Nothing needs them: products are the same sums of integers, to the bit, and the rest agrees to rounding (tests hold both
ways to each other). They are only sooner.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import Parameter

from dougong.parts.shapes import Float

# What the source uses by name: one build serves every machine that has these.
_NEEDS = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512vbmi")
# No contraction of a product and a sum into one rounding, so that a result does not depend on the compiler.
_FLAGS = (
    *("-O3", "-std=gnu11", "-fopenmp", "-fPIC", "-ffp-contract=off", "-mfma"),
    *(f"-m{each.replace('_', '')}" for each in _NEEDS),
)


@final
class Kernels:
    """The built library. Tensors are float32 where nothing else is said, contiguous, on the CPU; nobody checks."""

    def __init__(self, path: Path):
        library = ctypes.CDLL(str(path))

        def function(name: str, pointers: int, whole: int, real: int, result: type | None) -> Callable[..., Any]:
            found = getattr(library, name)
            found.argtypes = [ctypes.c_void_p] * pointers + [ctypes.c_long] * whole + [ctypes.c_float] * real
            found.restype = result
            return found

        self._int8 = function("int8_linear", 5, 3, 0, ctypes.c_int)
        self._int4 = function("int4_linear", 6, 4, 0, ctypes.c_int)
        self._float32 = function("float32_linear", 4, 3, 0, None)
        self._bfloat16 = function("bfloat16_linear", 4, 3, 0, None)
        self._attend = function("attend", 5, 12, 1, ctypes.c_int)
        self._rms_norm, self._turn = function("rms_norm", 3, 2, 1, None), function("turn", 4, 6, 0, None)
        self._rms_norm_gradient = function("rms_norm_gradient", 4, 2, 1, None)
        self._turn_text = function("turn_text", 4, 13, 0, None)
        self._swiglu, self._swiglu_gradient = (
            function("swiglu", 3, 1, 0, None),
            function("swiglu_gradient", 5, 1, 0, None),
        )

    def linear(
        self, x: Float[Tensor, "N i"], weight: Float[Tensor, "o i"], bias: Tensor | None
    ) -> Float[Tensor, "N o"]:
        """x W^T + bias for W in float32 or bfloat16, x and bias in float32."""
        (n, i), o = x.shape, weight.shape[0]
        y = _room(n, o)
        more = None if bias is None else bias.data_ptr()
        multiply = self._float32 if weight.dtype == torch.float32 else self._bfloat16
        multiply(x.data_ptr(), weight.data_ptr(), more, y.data_ptr(), n, i, o)
        return y

    def int8_linear(
        self, x: Float[Tensor, "N i"], q: Tensor, factor: Float[Tensor, " o"], bias: Tensor | None
    ) -> Float[Tensor, "N o"]:
        """x W^T + bias for W as parts.int8.Int8 holds it."""
        (n, i), o = x.shape, factor.shape[0]
        y = _room(n, o)
        more = None if bias is None else bias.data_ptr()
        _check(self._int8(x.data_ptr(), q.data_ptr(), factor.data_ptr(), more, y.data_ptr(), n, i, o))
        return y

    def int4_linear(
        self,
        x: Float[Tensor, "N i"],
        nibbles: Tensor,
        steps: Tensor,
        factor: Float[Tensor, " o"],
        bias: Tensor | None,
        group: int,
    ) -> Float[Tensor, "N o"]:
        """x W^T + bias for W as parts.int4.Int4 holds it."""
        (n, i), o = x.shape, factor.shape[0]
        y = _room(n, o)
        more = None if bias is None else bias.data_ptr()
        matrix = nibbles.data_ptr(), steps.data_ptr(), factor.data_ptr()
        _check(self._int4(x.data_ptr(), *matrix, more, y.data_ptr(), n, i, o, group))
        return y

    def rms_norm(self, x: Float[Tensor, "*N D"], weight: Float[Tensor, " D"] | None, eps: float) -> Tensor:
        """x / sqrt(mean(x^2) + eps) * weight over the last dimension."""
        y, width = _room(*x.shape), x.shape[-1]
        by = None if weight is None else weight.data_ptr()
        self._rms_norm(x.data_ptr(), by, y.data_ptr(), x.numel() // width, width, eps)
        return y

    def turn(
        self, x: Float[Tensor, "B 1 H d"], cos: Float[Tensor, "#B 1 h"], sin: Float[Tensor, "#B 1 h"]
    ) -> Float[Tensor, "B H 1 d"]:
        """The first 2h coordinates of each head turned, halves paired. Heads of x are adjacent; its rows may not be."""
        (batch, _, heads, size), h = x.shape, cos.shape[-1]
        y = _room(batch, heads, 1, size)
        rows = x.stride(0), h if cos.shape[0] > 1 else 0
        self._turn(x.data_ptr(), cos.data_ptr(), sin.data_ptr(), y.data_ptr(), batch, heads, size, h, *rows)
        return y

    def turn_text(
        self,
        x: Float[Tensor, "B T H d"],
        cos: Float[Tensor, "#B T h"],
        sin: Float[Tensor, "#B T h"],
        y: Float[Tensor, "B T H d"],
        back: bool = False,
    ) -> None:
        """The same for whole texts, or the rotation back, into y; of x and y only a head's coordinates are adjacent."""
        (batch, tokens, heads, size), h = x.shape, cos.shape[-1]
        shape = batch, tokens, heads, size, h, *x.stride()[:3], *y.stride()[:3]
        angles = tokens * h if cos.shape[0] > 1 else 0
        self._turn_text(x.data_ptr(), cos.data_ptr(), sin.data_ptr(), y.data_ptr(), *shape, angles, back)

    def rms_norm_gradient(
        self, x: Float[Tensor, "*N D"], weight: Float[Tensor, " D"], grad: Float[Tensor, "*N D"], eps: float
    ) -> Float[Tensor, "*N D"]:
        """The gradient of `rms_norm`'s x."""
        out, width = _room(*x.shape), x.shape[-1]
        pointers = x.data_ptr(), weight.data_ptr(), grad.data_ptr(), out.data_ptr()
        self._rms_norm_gradient(*pointers, x.numel() // width, width, eps)
        return out

    def swiglu(self, gate: Float[Tensor, "*N F"], up: Float[Tensor, "*N F"]) -> Float[Tensor, "*N F"]:
        """silu(gate) * up."""
        y = _room(*gate.shape)
        self._swiglu(gate.data_ptr(), up.data_ptr(), y.data_ptr(), gate.numel())
        return y

    def swiglu_gradient(self, gate: Tensor, up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of `swiglu`'s gate and up."""
        of_gate, of_up = _room(*gate.shape), _room(*gate.shape)
        pointers = (each.data_ptr() for each in (gate, up, grad, of_gate, of_up))
        self._swiglu_gradient(*pointers, gate.numel())
        return of_gate, of_up

    def attend(
        self,
        q: Float[Tensor, "B K G d"],
        k: Float[Tensor, "B K S d"],
        v: Float[Tensor, "B K S d"],
        mask: Float[Tensor, "#B 1 1 S"] | None,
        scale: float,
    ) -> Float[Tensor, "B K G d"]:
        """softmax(scale q k^T + mask) v; d is a multiple of 16. Only the last dimension of k and v need be adjacent."""
        q = q.contiguous()  # as part of what was turned together with k its rows lie apart
        (batch, heads, group, size), count = q.shape, k.shape[2]
        y = _room(*q.shape)
        seen = None if mask is None else mask.data_ptr()
        apart = mask.stride(0) if mask is not None and mask.shape[0] > 1 else 0
        shape = batch, heads, group, count, size, *k.stride()[:3], *v.stride()[:3], apart
        _check(self._attend(q.data_ptr(), k.data_ptr(), v.data_ptr(), seen, y.data_ptr(), *shape, scale))
        return y


def _room(*shape: int) -> Tensor:
    """Room for a result: what the kernels write is float32 on the CPU, whatever PyTorch's defaults are set to."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("no memory for the work of a product; free some, or ask for less at a time")


def serving(x: Tensor) -> Kernels | None:
    """The kernels, where they can take a tensor like x: a plain one on the CPU, outside of a compiler's tracing."""
    plain = x.device.type == "cpu" and type(x) in (Tensor, Parameter)
    return kernels() if plain and not torch.compiler.is_compiling() else None


def kernels() -> Kernels | None:
    """The kernels, built if they were not yet; None where that cannot be (`missing` says why)."""
    return _found()[0]


def missing() -> str:
    """Why there are no kernels; empty if there are."""
    return _found()[1]


@cache
def _found() -> tuple[Kernels | None, str]:
    if os.environ.get("DOUGONG_NATIVE", "1") == "0":
        return None, "DOUGONG_NATIVE is 0"
    lacking = [each for each in _NEEDS if each not in _cpu_flags()]
    if lacking:
        return None, f"this CPU lacks {', '.join(lacking)}"
    compiler = shutil.which("cc")
    if compiler is None:
        return None, "there is no C compiler named cc"
    try:
        return Kernels(_built(compiler)), ""
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        return None, f"building them failed: {error}"


def _cpu_flags() -> set[str]:
    if not sys.platform.startswith("linux"):
        return set()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), set())


def _built(compiler: str) -> Path:
    """The library's path. Built beside it and moved into place, so that no other process loads half of one."""
    sources = sorted(Path(__file__).parent.glob("*.c"))
    shared = sorted(Path(__file__).parent.glob("*.h"))
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=20, check=True).stdout
    parts = (*(each.read_bytes() for each in (*sources, *shared)), version, " ".join(_FLAGS).encode())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dougong"
    path = folder / f"kernels-{hashlib.sha256(bytes(1).join(parts)).hexdigest()[:16]}.so"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        objects = [str(Path(temporary, f"{each.stem}.o")) for each in sources]
        for source, made in zip(sources, objects, strict=True):
            _run([compiler, *_FLAGS, "-c", str(source), "-o", made])
        # Linked without OpenMP: its names are found in the library that PyTorch has loaded.
        whole = Path(temporary, "kernels.so")
        _run([compiler, "-shared", *objects, "-o", str(whole)])
        whole.replace(path)
    return path


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise OSError(f"{command[0]} {command[-1]}: {done.stderr.strip()[:300]}")
