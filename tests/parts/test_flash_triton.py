"""The Triton kernels equal the formula, forward and backward: in Triton's interpreter, and on a GPU where there is one.

Whether a kernel is interpreted is settled when Triton is imported, and no checks of shapes may stand around kernels. So
all cases run in one process of their own, which is this file as a program; it prints the errors it found.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
TRITON = importlib.util.find_spec("triton") is not None
pytestmark = pytest.mark.skipif(not TRITON, reason="triton is not installed (pip install triton)")


@dataclass(frozen=True)
class Case:
    """tokens queries over keys (None: as many) in heads (queries, keys) of sizes (queries, values)."""

    tokens: int
    keys: int | None = None
    heads: tuple[int, int] = (2, 1)
    sizes: tuple[int, int] = (16, 16)
    causal: bool = True
    window: int | None = None
    softcap: float | None = None
    scale: float | None = None
    documents: tuple[tuple[int, int], ...] = ()  # (number, tokens)
    sinks: bool = False
    dtype: str = "float32"
    blocks: tuple[int, int] | None = (16, 16)


CASES = {
    "one token": Case(1, heads=(1, 1)),
    "exact tiles": Case(32, heads=(2, 2)),
    "ragged": Case(37),
    "wide tiles": Case(37, blocks=(32, 16)),
    "long tiles": Case(37, blocks=(16, 32)),
    "full": Case(21, causal=False),
    "last of the keys": Case(5, 39),
    "one query": Case(1, 33, heads=(4, 2)),
    "cross": Case(35, 18, causal=False),
    "no power of two": Case(20, sizes=(10, 10)),
    "values of another size": Case(20, sizes=(24, 40)),
    "window": Case(50, window=9),
    "window of one": Case(18, window=1),
    "window, last of the keys": Case(20, 50, window=17),
    "window both ways": Case(40, causal=False, window=6),
    "softcap": Case(37, softcap=2.0),
    "scale": Case(20, scale=0.7),
    "documents": Case(35, documents=((0, 7), (1, 20), (2, 3), (-1, 5))),
    "documents, full": Case(30, documents=((3, 12), (1, 18)), causal=False),
    "documents, last of the keys": Case(10, 40, documents=((0, 30), (1, 10))),
    "all at once": Case(40, documents=((0, 21), (1, 19)), window=11, softcap=3.0, sinks=True, heads=(4, 2)),
    "sinks": Case(20, sinks=True, window=5),
    "bfloat16": Case(20, heads=(4, 2), dtype="bfloat16", softcap=5.0),
    "float16": Case(20, heads=(4, 2), dtype="float16", window=9),
    "largest head, chosen tiles": Case(70, heads=(1, 1), sizes=(128, 128), blocks=None),
}


def errors(case: Case, device: str) -> list[float]:
    """Error of output and gradients, each relative to its largest value, against the formula in float64."""
    from dougong.parts.flash_triton import flash

    torch.manual_seed(0)
    keys = case.keys or case.tokens
    (heads, shared), (size, values) = case.heads, case.sizes
    kind = getattr(torch, case.dtype)
    # As attention hands them over: (B, T, H, d) turned, so that no head is contiguous.
    shapes = ((case.tokens, heads, size), (keys, shared, size), (keys, shared, values))
    batch = 2 if case.documents else 1
    inputs = [
        torch.randn(batch, *shape, device=device, dtype=kind).transpose(1, 2).requires_grad_() for shape in shapes
    ]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    sinks = torch.randn(heads, device=device) if case.sinks else None
    if sinks is not None:
        inputs.append(sinks.requires_grad_())
        exact.append(sinks.detach().double().requires_grad_())
    documents = None
    if case.documents:
        row = torch.tensor([number for number, count in case.documents for _ in range(count)], device=device)
        documents = torch.stack((row, torch.zeros_like(row)))
    rest = (case.causal, case.window, case.softcap, case.scale, documents)
    mine = flash(*inputs[:3], *rest, sinks=inputs[3] if case.sinks else None, blocks=case.blocks)
    truth = formula(*exact[:3], *rest, sinks=exact[3] if case.sinks else None)
    assert mine.dtype == kind
    grad = torch.randn_like(truth).to(kind)
    pairs = zip(
        (mine, *torch.autograd.grad(mine, inputs, grad)),
        (truth, *torch.autograd.grad(truth, exact, grad.double())),
        strict=True,
    )
    return [float((a.double() - b).detach().abs().max() / b.detach().abs().max().clamp(min=1)) for a, b in pairs]


def formula(q, k, v, causal, window, softcap, scale, documents, sinks):
    """Attention with all scores at once, in the type of its inputs."""
    tokens, keys, group = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    distance = torch.arange(keys - tokens, keys, device=q.device)[:, None] - torch.arange(keys, device=q.device)
    seen = (distance >= 0 if causal else torch.ones_like(distance).bool())[None]
    if window is not None:
        seen = seen & (distance.abs() < window)
    if documents is not None:
        seen = seen & (documents[:, keys - tokens :, None] == documents[:, None, :])
    scores = scores.masked_fill(~seen[:, None], float("-inf"))
    if sinks is not None:
        scores = torch.cat((scores, sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)), -1)
    return scores.softmax(-1)[..., :keys] @ v


@functools.cache
def found(device: str) -> dict[str, list[float]]:
    environment = {**os.environ, "TRITON_INTERPRET": "1" if device == "cpu" else "0"}
    run = [sys.executable, __file__, device]
    done = subprocess.run(run, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


TOLERANCE = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}


@pytest.mark.parametrize("name", CASES)
def test_kernels_in_the_interpreter_equal_the_formula(name):
    assert max(found("cpu")[name]) <= TOLERANCE[CASES[name].dtype], found("cpu")[name]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("name", CASES)
def test_kernels_on_a_gpu_equal_the_formula(name):
    assert max(found("cuda")[name]) <= TOLERANCE[CASES[name].dtype], found("cuda")[name]


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET", "0") != "0", reason="the interpreter is on")
@pytest.mark.parametrize(
    ("size", "kind", "told"),
    [
        (16, torch.float32, "run on a GPU"),
        (136, torch.float32, "up to 128"),
        (16, torch.float64, "expected all float32"),
    ],
)
def test_what_the_kernels_cannot_do_is_told(size, kind, told):
    from dougong.base import DougongError
    from dougong.parts.flash_triton import flash

    q = torch.zeros(1, 2, 4, size, dtype=kind)
    with pytest.raises(DougongError, match=told):
        flash(q, q, q)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("dtype", "size", "least"), [("bf16", 64, 0), ("bf16", 64, 1), ("fp16", 128, 0), ("fp32", 128, 0)]
)
def test_kernels_compile_for_gpus_and_fit_into_their_shared_memory(dtype, size, least, capability, tmp_path):
    """What Triton's interpreter accepts, its compiler may refuse; that needs no GPU to be found out."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    run = [sys.executable, __file__, "compile", dtype, *map(str, (size, capability, least))]
    done = subprocess.run(run, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    shared = json.loads(done.stdout.splitlines()[-1])
    assert set(shared) == {"forward_kernel", "queries_kernel", "keys_kernel"}
    assert max(shared.values()) <= 99 << 10  # what consumer GPUs have; data centres' have more


def compiled(dtype: str, size: int, capability: int, least: int) -> dict[str, int]:
    """Bytes of shared memory that each kernel asks for, with everything switched on; `least`: off, and one head.

    Triton compiles a number that is 1 in as a constant, which its language treats otherwise than a number.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from dougong.parts import flash_kernels, flash_triton

    kind = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
    q = torch.empty(1, 1, 256, size, dtype=kind, device="meta")
    rules = flash_triton._rules(q, q, q, q, True, 100, 30.0, 1.0, flash_triton._blocks(size, kind)) | {"SINKS": True}
    if least:
        off = dict.fromkeys(("CAUSAL", "WINDOW", "CAPPED", "DOCUMENTS", "SINKS"), False)
        rules |= off | dict.fromkeys(("heads", "group", "tokens", "keys"), 1)
    options = {name: rules[name] for name in ("num_warps", "num_stages")}
    floats = dict.fromkeys(("q", "k", "v", "out", "grad", "dq", "dk", "dv"), f"*{dtype}")
    types = floats | {"documents": "*i64", "scale": "fp32", "cap": "fp32"}
    types |= dict.fromkeys(("logsum", "delta", "sinks"), "*fp32")
    shared = {}
    for kernel in (flash_kernels.forward_kernel, flash_kernels.queries_kernel, flash_kernels.keys_kernel):
        names = kernel.arg_names
        fixed = {name for name in names if name.isupper() or (least and rules.get(name) == 1)}
        signature = {name: "constexpr" if name in fixed else types.get(name, "i32") for name in names}
        constants = {(place,): rules[name] for place, name in enumerate(names) if name in fixed}
        even = {
            (place,): [["tt.divisibility", 16]]
            for place, name in enumerate(names)
            if signature[name][0] == "*" or name.endswith(("_b", "_h", "_t"))
        }
        source = ASTSource(kernel, signature, constants, even)
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        shared[kernel.__name__] = made.metadata.shared
    return shared


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "compile":
        print(json.dumps(compiled(sys.argv[2], *map(int, sys.argv[3:]))))
        sys.exit()
    print(json.dumps({name: errors(case, sys.argv[1]) for name, case in CASES.items()}))
