"""The paged kernel equals the formula, and the formula equals plain attention over the gathered text.

As in test_flash_triton, all kernels run in a process of their own, which is this file as a program.
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
triton_only = pytest.mark.skipif(not TRITON, reason="triton is not installed (pip install triton)")


@dataclass(frozen=True)
class Case:
    """heads (queries, keys) of sizes (queries, values); a row for each of the lengths."""

    lengths: tuple[int, ...] = (37, 1, 64, 5)
    heads: tuple[int, int] = (4, 2)
    sizes: tuple[int, int] = (16, 16)
    page: int = 16
    scale: float | None = None
    window: int | None = None
    softcap: float | None = None
    dtype: str = "float32"


CASES = {
    "pages of 16": Case(),
    "pages of 1": Case(page=1),
    "pages of 24, no power of two": Case(page=24, sizes=(10, 24)),
    "pages longer than a tile": Case(page=64),
    "a head for every query": Case(heads=(3, 3)),
    "seven queries a head": Case(heads=(14, 2), sizes=(64, 64)),
    "more queries a head than a tile": Case(heads=(20, 1)),
    "one token": Case(lengths=(1,)),
    "a row without tokens": Case(lengths=(0, 9)),
    "window": Case(window=9),
    "window, aligned": Case(window=32, lengths=(64, 96)),
    "window of one": Case(window=1),
    "softcap and scale": Case(softcap=2.0, scale=0.7),
    "bfloat16": Case(dtype="bfloat16"),
    "float16": Case(dtype="float16"),
}


def drawn(case: Case, device: str = "cpu") -> tuple[list[torch.Tensor], tuple]:
    """q, k, v, pages and lengths; unowned places, and page numbers past a row's end, are poisoned."""
    generator = torch.Generator().manual_seed(0)
    kind = getattr(torch, case.dtype)
    needed = [-(-length // case.page) for length in case.lengths]
    total = sum(needed) + 3
    numbers = torch.randperm(total, generator=generator)
    pages = torch.full((len(case.lengths), max(needed) + 1), 1 << 40)
    k, v = (torch.full((total * case.page, case.heads[1], size), torch.nan, dtype=kind) for size in case.sizes)
    at = 0
    for row, (count, length) in enumerate(zip(needed, case.lengths, strict=True)):
        pages[row, :count] = numbers[at : at + count]
        at += count
        tokens = torch.arange(length)
        places = pages[row, tokens // case.page] * case.page + tokens % case.page
        for each in (k, v):
            each[places] = torch.randn(length, *each.shape[1:], generator=generator).to(kind)
    q = torch.randn(len(case.lengths), case.heads[0], case.sizes[0], generator=generator).to(kind)
    tensors = [each.to(device) for each in (q, k, v, pages, torch.tensor(case.lengths))]
    return tensors, (case.page, case.scale, case.window, case.softcap)


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].dtype == "float32"])
def test_the_formula_is_attention_over_the_text(name: str) -> None:
    from dougong.parts.attend import Scoring, reference
    from dougong.parts.context import Context
    from dougong.parts.paged import reference as of_pages

    case = CASES[name]
    (q, k, v, pages, lengths), rest = drawn(case)
    found = of_pages(q, k, v, pages, lengths, *rest)
    for row, length in enumerate(case.lengths):
        if not length:
            assert not found[row].any()
            continue
        tokens = torch.arange(length)
        places = pages[row, tokens // case.page] * case.page + tokens % case.page
        ctx = Context(tokens[None, -1:], key_positions=tokens[None])
        how = Scoring(window=case.window, scale=case.scale, softcap=case.softcap)
        own = reference(q[row][None, :, None], *(each[places].transpose(0, 1)[None] for each in (k, v)), ctx, how)
        torch.testing.assert_close(found[row], own[0, :, 0])


@functools.cache
def errors(device: str) -> dict[str, float]:
    environment = {**os.environ, "TRITON_INTERPRET": "1" if device == "cpu" else "0"}
    run = [sys.executable, __file__, device]
    done = subprocess.run(run, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


TOLERANCE = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}


@triton_only
@pytest.mark.parametrize("name", CASES)
def test_the_kernel_in_the_interpreter_equals_the_formula(name: str) -> None:
    assert errors("cpu")[name] <= TOLERANCE[CASES[name].dtype]


@triton_only
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("name", CASES)
def test_the_kernel_on_a_gpu_equals_the_formula(name: str) -> None:
    assert errors("cuda")[name] <= TOLERANCE[CASES[name].dtype]


@triton_only
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET", "0") != "0", reason="the interpreter is on")
@pytest.mark.parametrize(
    ("heads", "size", "kind", "told"),
    [
        ((4, 2), 16, torch.float32, "runs on a GPU"),
        ((4, 2), 260, torch.float32, "up to 256"),
        ((4, 2), 16, torch.float64, "expected all float32"),
        ((4, 3), 16, torch.float32, "must be a multiple"),
    ],
)
def test_what_the_kernel_cannot_do_is_told(heads: tuple[int, int], size: int, kind: torch.dtype, told: str) -> None:
    from dougong.base import DougongError
    from dougong.parts.paged import paged

    q, k = torch.zeros(1, heads[0], size, dtype=kind), torch.zeros(4, heads[1], size, dtype=kind)
    with pytest.raises(DougongError, match=told):
        paged(q, k, k, torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, dtype=torch.int64), 4)


@triton_only
@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("dtype", "size"), [("bf16", 64), ("fp16", 256), ("fp32", 128)])
def test_the_kernel_compiles_for_gpus(dtype: str, size: int, capability: int, tmp_path: Path) -> None:
    """What Triton's interpreter accepts, its compiler may refuse; that needs no GPU to be found out."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    run = [sys.executable, __file__, "compile", dtype, str(size), str(capability)]
    done = subprocess.run(run, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert 0 < int(done.stdout.splitlines()[-1]) <= 99 << 10  # what consumer GPUs have; data centres' have more


def compiled(dtype: str, size: int, capability: int) -> int:
    """Bytes of shared memory that the kernel asks for, with everything switched on."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from dougong.parts.paged_kernels import decode_kernel

    fixed = {"WINDOW": True, "CAPPED": True, "PAGE": 16, "G": 16, "N": 32, "D": size, "E": size, "WIDE": False}
    types = dict.fromkeys(("q_at", "k_at", "v_at", "out_at"), f"*{dtype}") | {"scale": "fp32", "cap": "fp32"}
    types |= dict.fromkeys(("pages_at", "lengths_at"), "*i64")
    names = decode_kernel.arg_names
    signature = {name: "constexpr" if name in fixed else types.get(name, "i32") for name in names}
    constants = {(place,): fixed[name] for place, name in enumerate(names) if name in fixed}
    made = triton.compile(ASTSource(decode_kernel, signature, constants), target=GPUTarget("cuda", capability, 32))
    return made.metadata.shared


def measured(case: Case, device: str) -> float:
    from dougong.parts.paged import paged, reference

    (q, k, v, pages, lengths), rest = drawn(case, device)
    mine = paged(q, k, v, pages, lengths, *rest)
    truth = reference(q.double(), k.double(), v.double(), pages, lengths, *rest)
    assert mine.dtype == q.dtype and bool(torch.isfinite(mine).all())
    return float((mine.double() - truth).abs().max() / truth.abs().max().clamp(min=1))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    torch.set_num_threads(1)
    if sys.argv[1] == "compile":
        print(compiled(sys.argv[2], *map(int, sys.argv[3:])))
        sys.exit()
    print(json.dumps({name: measured(case, sys.argv[1]) for name, case in CASES.items()}))
