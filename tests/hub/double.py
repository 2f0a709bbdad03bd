"""Both sides in float64 throughout, where what is left between them is formulas and no rounding.

Code that casts to float32 on the way (scores, norms, angles, recurrences, on either side) casts to float64 here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from dougong.parts import rope


class _Double(TorchFunctionMode):
    """Wherever float32 is asked for, float64."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        func = torch.Tensor.double if func is torch.Tensor.float else func
        return func(*map(_wide, args), **{name: _wide(value) for name, value in (kwargs or {}).items()})


def _wide(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


@contextmanager
def doubled() -> Iterator[None]:
    """Everything that is made or run within is in float64."""
    rope._frequencies.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        with _Double():
            yield
    finally:
        torch.set_default_dtype(torch.float32)
        rope._frequencies.cache_clear()
