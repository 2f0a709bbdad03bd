"""How much memory the engine's state may take, and how it is divided."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from dougong.base import DougongError
from dougong.engine.store import Layout

_SHARE = 0.4  # of free memory, where nobody says how much
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_MOST_PAGES = 1 << 18


def parse_memory(memory: int | float | str | None, device: torch.device) -> int:
    """Bytes: a number of them, a text such as "2GiB" or "500 MB", or (None) a share of what is free now."""
    if memory is None:
        return int(free_memory(device) * _SHARE)
    if isinstance(memory, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", memory)
        if not found or found[2].lower() not in _UNITS:
            raise DougongError(f"memory is {memory!r}; expected a number of bytes, or a text such as '2GiB' or '500MB'")
        memory = float(found[1]) * _UNITS[found[2].lower()]
    if isinstance(memory, bool) or memory <= 0:
        raise DougongError(f"memory is {memory!r}; expected a number of bytes above 0, or a text such as '2GiB'")
    return int(memory)


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still take: of the machine, or of the group of processes it is confined to."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
        cached = next(
            int(line.split()[1])
            for line in (group / "memory.stat").read_text(encoding="ascii").splitlines()
            if line.startswith("inactive_file ")
        )
        free = min(free, max(0, limit - used + cached))
    except (OSError, StopIteration, ValueError):
        pass  # no such group, or one without a limit ("max")
    return free


@dataclass(frozen=True)
class Division:
    """pages: of each table. rows: of fixed state. lanes, snapshots: bytes."""

    pages: tuple[int, ...]
    rows: int
    lanes: int
    snapshots: int


def divide(layout: Layout, budget: int, page_size: int, context: int, sequences: int, slack: int) -> Division:
    """Rows of fixed state come first (at most half), an eighth is for their snapshots; of the rest lanes may take 2/5.

    A table with a window needs fewer pages the longer texts are, but as many for short ones: it gets the window's share
    of the context, and no less than a quarter, a token that others have. Raises DougongError when nothing fits.
    """
    row = layout.row_bytes()
    snapshots = budget // 8 if row else 0
    usable = budget - snapshots
    most = usable // 2 if layout.groups else usable
    rows = min(sequences, most // row) if row else sequences
    rest = usable - rows * row
    lanes = rest * 2 // 5 if layout.groups else 0
    rest -= lanes
    shares = [
        1.0 if window is None else min(1.0, max(0.25, (window + slack + 2 * page_size) / context))
        for window in layout.windows
    ]
    sizes = [page_size * layout.token_bytes(table) for table in range(len(layout.windows))]
    whole = sum(share * size for share, size in zip(shares, sizes, strict=True))
    # No more than all sequences can fill twice: what is left after that would only make the lists longer.
    enough = min(_MOST_PAGES, 64 + 2 * sequences * -(-context // page_size))
    # Two pages have no owner: the one that is read where nothing is, and the one where padding is written.
    pages = tuple(min(enough, int(rest * share / whole) - 2) for share in shares)
    if rows < 1 or any(count < 1 for count in pages):
        least = 4 * (row + sum(sizes) * 3)
        raise DougongError(
            f"memory is {budget} bytes; one sequence of {page_size} tokens needs about {least}: raise memory, or lower "
            "page_size"
        )
    return Division(pages, rows, lanes, snapshots)
