"""Large pages: the same memory in pieces of 2 MiB, not 4 KiB. A processor that reads a model's weights from one end to
the other, once a token, then looks up an address 512 times less often: memory gives a fifth more (docs/log.md).

The kernel gives them to whoever asks (Linux with transparent_hugepage at "madvise" or "always"). Everywhere else
nothing here does anything.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

SIZE = 2 << 20
_ALIGNED = 64  # bytes, from tensor to tensor in a region: a line of the cache
_NEAR = 1 << 16  # bytes between tensors that are asked for together
_HUGEPAGE, _COLLAPSE = 14, 25  # of madvise: large pages from now on; what is there already, into large ones


def together(tensors: list[Tensor]) -> Iterator[Tensor]:
    """A copy of each, one after the other in one region of large pages.

    A copy is made when it is asked for, and its tensor then leaves the list; the region takes memory as it is written.
    So of what nobody else holds, one tensor at a time exists twice.
    """
    starts, end = [], 0
    for each in tensors:
        starts.append(end)
        end += -(-each.nbytes // _ALIGNED) * _ALIGNED
    whole = torch.empty(end + SIZE, dtype=torch.uint8)
    first = -whole.data_ptr() % SIZE
    _advise(whole.data_ptr() + first, end, _HUGEPAGE)
    for start in starts:
        each = tensors.pop(0)
        place = whole[first + start : first + start + each.nbytes]
        yield place.view(each.dtype).view(each.shape).copy_(each)


def enlarge(tensors: Sequence[Tensor]) -> None:
    """Bring tensors into large pages where they lie, as far as they fill such pages together. Their values, and
    everything that refers to them, stay. About two seconds a gigabyte at first, nothing when it is done already."""
    runs: list[list[int]] = []
    for start, end in sorted((each.data_ptr(), each.data_ptr() + each.nbytes) for each in tensors):
        if runs and start - runs[-1][1] <= _NEAR:
            runs[-1][1] = max(runs[-1][1], end)
        else:
            runs.append([start, end])
    for start, end in runs:
        first = -(-start // SIZE) * SIZE
        if end - first >= SIZE and _advise(first, end - first, _HUGEPAGE):
            _advise(first, end - first, _COLLAPSE)


def _advise(start: int, size: int, what: int) -> bool:
    """Advice for the whole pages that begin at `start`, which is a multiple of SIZE. False where it is not taken, which
    changes no more than speed."""
    size = size // SIZE * SIZE
    if not size or not sys.platform.startswith("linux"):
        return False
    try:
        madvise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return False
    return not madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), what)
