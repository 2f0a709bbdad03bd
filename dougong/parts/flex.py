"""Attention by `torch.nn.attention.flex_attention`: a kernel written for the scores and the mask that are asked for.

The same semantics as `flash`, for CUDA: PyTorch compiles the two little functions below, what becomes of a score and
who sees whom, into its own FlashAttention kernel, and skips the blocks of 128 x 128 that the mask leaves empty (Dong et
al. 2024). On a CPU it runs uncompiled, slowly and without a backward pass. (`no_type_check`: PyTorch counts their
arguments, and whatever else stands around them would be compiled too.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, no_type_check

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, flex_attention

from dougong.parts.flash import check
from dougong.parts.shapes import Float, Int


def flex(
    q: Float[Tensor, "B H T d"],
    k: Float[Tensor, "B K S d"],
    v: Float[Tensor, "B K S e"],
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    documents: Int[Tensor, "B S"] | None = None,
    slopes: Float[Tensor, " H"] | None = None,
    sinks: Float[Tensor, " H"] | None = None,
    mask: BlockMask | None = None,
) -> Float[Tensor, "B H T e"]:
    """softmax(scale q k^T, capped, + ALiBi, masked) v; the arguments mean what they do in `dougong.parts.flash.flash`.

    slopes  of ALiBi, one a head: a key `distance` tokens away has slope x distance taken from its score
    mask    what `block_mask` gave for these lengths, causal, window and documents, so that layers can share one; None:
            it is made for this call
    """
    check(q, k, v, causal, window, documents)
    tokens, keys = q.shape[2], k.shape[2]
    if mask is None:
        mask = block_mask(tokens, keys, causal, window, documents, q.device)
    run = _compiled(flex_attention) if q.is_cuda and not torch.compiler.is_compiling() else flex_attention
    given = {"score_mod": _score(softcap, slopes, keys - tokens, q.device), "block_mask": mask, "scale": scale}
    if sinks is None:
        return run(q, k, v, **given, enable_gqa=True)
    out, aux = run(q, k, v, **given, enable_gqa=True, return_aux=AuxRequest(lse=True))
    # One more score s in the sum e^L of each row: what was e^L / e^L of the output is e^L / (e^L + e^s).
    assert aux.lse is not None
    share = torch.sigmoid(aux.lse - sinks.float()[:, None])
    return out * share[..., None].to(out.dtype)


def block_mask(
    tokens: int,
    keys: int,
    causal: bool = True,
    window: int | None = None,
    documents: Int[Tensor, "B S"] | None = None,
    device: torch.device | str = "cpu",
) -> BlockMask | None:
    """Who sees whom, and which blocks of queries and keys hold nobody who does. None: everybody sees everybody."""
    if not causal and window is None and documents is None:
        return None
    offset = _constant(keys - tokens, device)
    banded = window is not None
    width = _constant(keys if window is None else window, device)

    @no_type_check
    def seen(b: Tensor, h: Tensor, m: Tensor, n: Tensor) -> Tensor:
        distance = m + offset - n
        yes = distance >= 0 if causal else n >= 0
        if banded:
            yes = yes & (distance < width) & (distance > -width)
        if documents is not None:
            yes = yes & (documents[b, m + offset] == documents[b, n])
        return yes

    batch = None if documents is None else documents.shape[0]
    # Uncompiled, all T x S answers are held at once while the blocks are counted.
    make = _compiled(create_block_mask) if torch.device(device).type == "cuda" else create_block_mask
    return make(seen, batch, None, tokens, keys, device=device)


def _score(softcap: float | None, slopes: Tensor | None, offset: int, device: torch.device) -> Any:
    if softcap is None and slopes is None:
        return None
    capped = softcap is not None
    cap, first = _constant(softcap or 1.0, device), _constant(offset, device)

    @no_type_check
    def changed(score: Tensor, b: Tensor, h: Tensor, m: Tensor, n: Tensor) -> Tensor:
        if capped:
            score = cap * torch.tanh(score / cap)
        return score if slopes is None else score - slopes[h] * (m + first - n).abs()

    return changed


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function)


@functools.lru_cache(256)
def _constant(value: float, device: torch.device | str) -> Tensor:
    """A number that compiled functions read as data: as a plain one, another window would be another kernel."""
    with torch.inference_mode(False):  # it outlives the mode of this call
        return torch.tensor(value, device=device)
