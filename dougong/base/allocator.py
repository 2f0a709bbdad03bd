"""Memory that stays: glibc's malloc gives every large block back to the kernel and asks for it again at the next step,
and the kernel clears each page anew. A training step on a CPU loses a sixth of its time to that (docs/log.md)."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_memory() -> bool:
    """Let this process keep the memory it frees, for its next allocation. True if the allocator understood.

    Peak memory is unchanged; memory in use between peaks is not returned to the system. Does nothing where the C
    library is not glibc.
    """
    return _thresholds(1 << 30, (1 << 31) - 1)


def return_memory() -> bool:
    """The opposite, for work that frees much of what it allocates: blocks from 128 KiB on are mapped one by one and go
    back when they are freed. (glibc begins so, and raises the border to the size of each block it sees freed.)"""
    return _thresholds(1 << 17, 1 << 17)


def _thresholds(mapped: int, trimmed: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, mapped)) and bool(mallopt(_TRIM_THRESHOLD, trimmed))


def give_back() -> bool:
    """Return what is free to the system, between blocks in use too. True where the C library is glibc.

    It keeps freed blocks for itself once it has seen a few large ones, so that a model whose matrices are replaced by
    smaller ones one after the other would end with both in memory. Milliseconds a call.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return False
    return True
