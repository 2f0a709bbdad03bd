"""Which precision to compute products in: float32, or bfloat16 where this machine is faster at it.

Processors differ by more than a factor of ten in bfloat16. So "auto" asks the machine, once a run: the answer is kept
in the run folder, and a resumed run computes as it began.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Literal

import torch

from dougong.base import read_json, write_json
from dougong.train.ranks import Ranks

Precision = Literal["float32", "bfloat16"]

# bfloat16 costs a little accuracy, so it must be worth it.
_WORTH = 1.2


def choose_precision(asked: Literal["float32", "bfloat16", "auto"], run: Path, ranks: Ranks) -> Precision:
    """`asked`, or for "auto" what RUN/precision.json says, written by the first rank after a short measurement."""
    if asked != "auto":
        return asked
    kept = run / "precision.json"
    if ranks.first and not kept.is_file():
        write_json(kept, {"precision": faster_precision()})
    ranks.wait()
    return "bfloat16" if read_json(kept)["precision"] == "bfloat16" else "float32"


def faster_precision() -> Precision:
    """bfloat16 if this machine multiplies matrices at least 1.2 times as fast in it as in float32, else float32."""
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if _seconds(torch.float32) > _WORTH * _seconds(torch.bfloat16) else "float32"


def _seconds(dtype: torch.dtype) -> float:
    """Median time of a product of the size that small models have."""
    x, weight = torch.ones(1024, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    times = []
    for _ in range(9):
        began = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])
