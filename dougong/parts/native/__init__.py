"""What decoding and training wait for, in C, where a compiler can build it; elsewhere PyTorch's kernels serve.

    what      weights in 4 and 8 bits times rows of activations (integers.c), in 16 and 32 bits times few (floats.c);
              norm, rotation, activation and attention of single tokens (token.c) and of many (attention.c, and over
              pages texts.c) in float32; a mixture of experts in 16 and 32 bits (experts.c); gradients of activation
              and norm, rotation of texts, in float32 (layer.c); and a whole decoder in one call (tape.c, written by
              tape.py)
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

from dougong.parts.shapes import Float, Int

# What the source uses by name: one build serves every machine that has these.
_NEEDS = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512vbmi")
ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3, "relu2": 4}
# No contraction of a product and a sum into one rounding, so that a result does not depend on the compiler.
_FLAGS = (
    *("-O3", "-std=gnu11", "-fopenmp", "-fPIC", "-ffp-contract=off", "-mfma"),
    *(f"-m{each.replace('_', '')}" for each in _NEEDS),
)


class _Shape(ctypes.Structure):
    """Of attention.c: sizes, strides of q, k, v and the mask, whether it is causal; the scale."""

    _fields_ = (*((f"number{place}", ctypes.c_long) for place in range(18)), ("scale", ctypes.c_float))


class _Experts(ctypes.Structure):
    """Of experts.c: sizes, type, activation and its numbers; the weights, then the biases, of gate, up and down."""

    _fields_ = (
        *((f"number{place}", ctypes.c_long) for place in range(5)),
        *((f"real{place}", ctypes.c_float) for place in range(2)),
        *((f"tensor{place}", ctypes.c_void_p) for place in range(6)),
    )


class _Pairs(ctypes.Structure):
    """Of experts.c: tokens and pairs, how many; each pair's token and expert, where each token's begin, and weights."""

    _fields_ = (
        *((f"number{place}", ctypes.c_long) for place in range(2)),
        *((f"tensor{place}", ctypes.c_void_p) for place in range(4)),
    )


@final
class Kernels:
    """The built library. Tensors are float32 where nothing else is said, contiguous, on the CPU; nobody checks."""

    def __init__(self, path: Path):
        library = ctypes.CDLL(str(path))

        def function(name: str, *kinds: Any, result: type | None = ctypes.c_int) -> Callable[..., Any]:
            found: Any = getattr(library, name)
            found.argtypes, found.restype = kinds, result
            return found

        at, whole, real = ctypes.c_void_p, ctypes.c_long, ctypes.c_float
        self._int8 = function("int8_linear", *[at] * 5, *[whole] * 3)
        self._int4 = function("int4_linear", *[at] * 6, *[whole] * 4)
        self._float32 = function("float32_linear", *[at] * 4, *[whole] * 3, result=None)
        self._bfloat16 = function("bfloat16_linear", *[at] * 4, *[whole] * 3, result=None)
        self._attend = function("attend", *[at] * 5, *[whole] * 12, real)
        self._attend_rows = function("attend_rows", *[at] * 6)
        self._rms_norm = function("rms_norm", *[at] * 3, *[whole] * 2, real, result=None)
        self._turn = function("turn", *[at] * 4, *[whole] * 6, result=None)
        self._activate = function("activate", ctypes.c_int, *[at] * 3, *[whole] * 3, result=None)
        self._rms_norm_gradient = function("rms_norm_gradient", *[at] * 4, *[whole] * 2, real, result=None)
        self._turn_text = function("turn_text", *[at] * 4, *[whole] * 13, result=None)
        self._swiglu_gradient = function("swiglu_gradient", *[at] * 5, whole, result=None)
        self._experts = function("experts", *[at] * 5)
        self._run_tape = function("run_tape", at, *[whole] * 2, *[at] * 3, whole)

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

    def swiglu_gradient(self, gate: Tensor, up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of gate and up in silu(gate) * up."""
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
        """softmax(scale q k^T + mask) v. Only the last dimension of k and v need be adjacent."""
        q = q.contiguous()  # as part of what was turned together with k its rows lie apart
        (batch, heads, group, size), count = q.shape, k.shape[2]
        y = _room(*q.shape)
        seen = None if mask is None else mask.data_ptr()
        apart = mask.stride(0) if mask is not None and mask.shape[0] > 1 else 0
        shape = batch, heads, group, count, size, *k.stride()[:3], *v.stride()[:3], apart
        _check(self._attend(q.data_ptr(), k.data_ptr(), v.data_ptr(), seen, y.data_ptr(), *shape, scale))
        return y

    def attend_rows(
        self,
        q: Float[Tensor, "B H T d"],
        k: Float[Tensor, "B K S d"],
        v: Float[Tensor, "B K S d"],
        mask: Float[Tensor, "#B 1 T S"] | None,
        causal: bool,
        scale: float,
    ) -> Float[Tensor, "B H T d"]:
        """softmax(scale q k^T + mask) v for many queries, d adjacent in all. causal: query t sees the keys up to
        t + S - T. The result's heads lie after its tokens, as what reads it wants them."""
        (batch, heads, tokens, size), keys = q.shape, k.shape[2]
        y = _room(batch, tokens, heads, size)
        rows = (mask.stride(0) if mask.shape[0] > 1 else 0, mask.stride(2)) if mask is not None else (0, 0)
        sizes = batch, heads, k.shape[1], tokens, keys, size
        shape = _Shape(*sizes, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *rows, causal, scale)
        seen = None if mask is None else mask.data_ptr()
        given = ctypes.addressof(shape), q.data_ptr(), k.data_ptr(), v.data_ptr(), seen, y.data_ptr()
        _check(self._attend_rows(*given))
        return y.transpose(1, 2)

    def can_mix(self, x: Tensor, weights: tuple[Tensor, ...]) -> bool:
        """Whether `experts` takes rows and weights (E, out, in) like these: all in float32, or all in bfloat16 on a CPU
        that multiplies it, where inputs go in pairs."""
        if x.dtype == torch.bfloat16:
            fits = "avx512_bf16" in _cpu_flags() and all(each.shape[2] % 2 == 0 for each in weights)
        else:
            fits = x.dtype == torch.float32
        return fits and all(each.dtype == x.dtype and each.is_contiguous() for each in weights)

    def experts(
        self,
        x: Float[Tensor, "N D"],
        pairs: tuple[Int[Tensor, " P"], Int[Tensor, " P"], Int[Tensor, " M"], Float[Tensor, " P"]],
        activation: str | tuple[float, float],
        weights: tuple[Float[Tensor, "E F D"] | None, Float[Tensor, "E F D"], Float[Tensor, "E D F"]],
        biases: tuple[Tensor | None, Tensor | None, Tensor | None],
    ) -> Float[Tensor, "N D"]:
        """Each token's weighted sum of what its experts give, in the type of x and of the weights of gate, up and down.

        pairs: token and expert of each (an expert of E: dropped), N + 1 offsets of the tokens' pairs, factors.
        activation: a name, or alpha and limit of a clamped SwiGLU. Between products numbers are float32; where weights
        are bfloat16 they are rounded to it before the last.
        """
        count, (experts, hidden, width) = len(pairs[0]), weights[1].shape
        x, out, y = x.contiguous(), torch.empty(x.shape, dtype=x.dtype, device="cpu"), _room(count, width)
        kind, numbers = (ACTIVATIONS[activation], (0.0, 0.0)) if isinstance(activation, str) else (-1, activation)
        kept = [None if each is None else each.float().contiguous() for each in biases]
        given = [None if each is None else each.data_ptr() for each in (*weights, *kept)]
        mixture = _Experts(experts, width, hidden, x.dtype == torch.bfloat16, kind, *numbers, *given)
        lists = [each.contiguous() for each in pairs]
        which = _Pairs(len(x), count, *(each.data_ptr() for each in lists))
        addresses = ctypes.addressof(mixture), ctypes.addressof(which), x.data_ptr(), y.data_ptr(), out.data_ptr()
        _check(self._experts(*addresses))
        return out

    def can_activate(self, name: str, gate: Tensor, up: Tensor | None) -> bool:
        """Whether `activate` takes these: float32, a known function, rows at equal distances."""
        given = (gate,) if up is None else (gate, up)
        return (
            name in ACTIVATIONS
            and gate.numel() > 0
            and all(
                each.dtype == torch.float32 and each.stride(-1) == 1 and _even(each) and each.stride() == gate.stride()
                for each in given
            )
        )

    def activate(self, name: str, gate: Float[Tensor, "*N F"], up: Float[Tensor, "*N F"] | None) -> Tensor:
        """f(gate) * up, or f(gate) without one."""
        y, width = _room(*gate.shape), gate.shape[-1]
        more = None if up is None else up.data_ptr()
        apart = gate.stride(-2) if gate.ndim > 1 else width
        self._activate(ACTIVATIONS[name], gate.data_ptr(), more, y.data_ptr(), y.numel() // width, width, apart)
        return y

    def run_tape(
        self, steps: int, count: int, rows: int, held: int | None, start: int | None, texts: int | None
    ) -> None:
        """See tape.Tape.run and tape.Tape.read; addresses, and how many."""
        _check(self._run_tape(steps, count, rows, held, start, texts, torch.get_num_threads()))


def _even(x: Tensor) -> bool:
    """Whether all rows of x, whatever its leading dimensions, lie at one distance from the next."""
    shape, stride = x.shape, x.stride()
    return all(shape[at] == 1 or stride[at] == stride[at + 1] * shape[at + 1] for at in range(x.ndim - 2))


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


@cache
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
    sources, headers = (sorted(Path(__file__).parent.glob(kind)) for kind in ("*.c", "*.h"))
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=20, check=True).stdout
    parts = (*(each.read_bytes() for each in (*sources, *headers)), version, " ".join(_FLAGS).encode())
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
        _run([compiler, "-shared", *objects, "-lm", "-o", str(whole)])
        whole.replace(path)
    return path


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise OSError(f"{command[0]} {command[-1]}: {done.stderr.strip()[:300]}")
