"""FlashAttention as Triton kernels, forward and backward (Dao 2023). `flash` has the same algorithm in plain PyTorch.

Needs the package triton and a GPU, or TRITON_INTERPRET=1 in the environment of the process: then the kernels run in
Python on the CPU, slowly, which is how they are tested. Triton is imported at the first call.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.parts.flash import check
from dougong.parts.shapes import Float, Int

LARGEST = 128  # head size whose tiles still fit into a GPU's registers and shared memory
_KINDS = (torch.float32, torch.bfloat16, torch.float16)
_LOG2_E = math.log2(math.e)


def flash(
    q: Float[Tensor, "B H T d"],
    k: Float[Tensor, "B K S d"],
    v: Float[Tensor, "B K S e"],
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    documents: Int[Tensor, "B S"] | None = None,
    sinks: Float[Tensor, " H"] | None = None,
    blocks: tuple[int, int] | None = None,
) -> Float[Tensor, "B H T e"]:
    """softmax(scale q k^T, capped, masked) v; the arguments mean what they mean in `dougong.parts.flash.flash`.

    float32, bfloat16 or float16; heads of at most 128. blocks (queries, keys) of a tile are powers of two from 16 on;
    None chooses them by type and head size.
    """
    check(q, k, v, causal, window, documents)
    if q.dtype not in _KINDS or not q.dtype == k.dtype == v.dtype:
        raise DougongError(f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}; expected all float32, bfloat16 or float16")
    size, values = q.shape[-1], v.shape[-1]
    if max(size, values) > LARGEST:
        raise DougongError(f"heads are of size {max(size, values)}; these kernels hold up to {LARGEST}")
    if q.device.type == "cpu" and not _kernels().INTERPRETED:
        raise DougongError("these kernels run on a GPU; on a CPU set TRITON_INTERPRET=1 before Python starts")
    scale = 1 / math.sqrt(size) if scale is None else scale
    if blocks is None:
        blocks = _blocks(max(size, values), q.dtype)
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    if documents is not None:
        documents = documents.contiguous()
    out = _Flash.apply(q, k, v, sinks, documents, causal, window, softcap, scale, blocks)
    assert isinstance(out, Tensor)
    return out


def _blocks(size: int, dtype: torch.dtype) -> tuple[int, int]:
    """The largest tiles whose sums, by the compiler's own count, stay in a GPU's registers."""
    if dtype == torch.float32:
        return (32, 32) if size <= 64 else (16, 32)
    return 64, 64


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sinks: Tensor | None,
        documents: Tensor | None,
        causal: bool,
        window: int | None,
        softcap: float | None,
        scale: float,
        blocks: tuple[int, int],
    ) -> Tensor:
        batch, heads, tokens, _ = q.shape
        # The layout that the output projection reads: (B, T, H, e).
        out = q.new_empty(batch, tokens, heads, v.shape[-1]).transpose(1, 2)
        logsum = q.new_empty(batch, heads, tokens, dtype=torch.float32)
        rules = _rules(q, k, v, documents, causal, window, softcap, scale, blocks)
        grid = (-(-tokens // blocks[0]), batch * heads)
        start = None if sinks is None else sinks.float().contiguous()
        given = (q, k, v, out, logsum, start, documents)
        with torch.cuda.device_of(q):
            _kernels().forward_kernel[grid](*given, *_strides(q, k, v, out), **rules, SINKS=start is not None)
        ctx.save_for_backward(q, k, v, sinks, documents, out, logsum)
        ctx.rest = rules, blocks
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, sinks, documents, out, logsum = ctx.saved_tensors
        rules, blocks = ctx.rest
        batch, heads, tokens, _ = q.shape
        grad = grads[0] if grads[0].stride(-1) == 1 else grads[0].contiguous()
        delta = (grad.float() * out.float()).sum(-1)  # D
        dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        given = (q, k, v, grad, logsum, delta, documents)
        by_queries, by_keys = -(-tokens // blocks[0]), -(-k.shape[2] // blocks[1])
        with torch.cuda.device_of(q):
            grid = (by_queries, batch * heads)
            _kernels().queries_kernel[grid](*given, dq, *_strides(q, k, v, grad, dq), **rules)
            grid = (by_keys, batch * k.shape[1])
            _kernels().keys_kernel[grid](*given, dk, dv, *_strides(q, k, v, grad, dk, dv), **rules)
        dsinks = None
        if sinks is not None:
            share = torch.exp2(sinks.float()[:, None] * _LOG2_E - logsum)  # the sink's part of each row
            dsinks = -(share * delta).sum((0, 2)).to(sinks.dtype)
        return dq, dk, dv, dsinks, None, None, None, None, None, None


def _kernels() -> Any:
    """The module of the kernels, with Triton behind it."""
    try:
        return importlib.import_module("dougong.parts.flash_kernels")
    except ModuleNotFoundError as error:
        raise DougongError(f"{error.name} is not installed; these kernels need it: pip install triton") from None


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for x in tensors for stride in x.stride()[:3]]


def _rules(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    documents: Tensor | None,
    causal: bool,
    window: int | None,
    softcap: float | None,
    scale: float,
    blocks: tuple[int, int],
) -> dict[str, Any]:
    """What all three kernels are told. Capitals are compiled in."""
    return {
        "heads": q.shape[1],
        "group": q.shape[1] // k.shape[1],
        "tokens": q.shape[2],
        "keys": k.shape[2],
        "size": q.shape[3],
        "values": v.shape[3],
        "scale": scale,
        "cap": softcap or 0.0,
        "window": window or 0,
        "CAUSAL": causal,
        "WINDOW": window is not None,
        "CAPPED": softcap is not None,
        "DOCUMENTS": documents is not None,
        "M": blocks[0],
        "N": blocks[1],
        "D": max(16, 1 << (q.shape[3] - 1).bit_length()),
        "E": max(16, 1 << (v.shape[3] - 1).bit_length()),
        "WIDE": _kernels().INTERPRETED and q.dtype == torch.bfloat16,
        "num_warps": 8 if q.dtype != torch.float32 and max(q.shape[3], v.shape[3]) > 64 else 4,
        "num_stages": 2,
    }
