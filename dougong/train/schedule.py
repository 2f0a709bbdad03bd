"""Learning-rate schedules: a factor of the peak rate for each step, as pure functions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from dougong.base import DougongError


@dataclass(frozen=True)
class Schedule:
    """A linear warm-up over `warmup` steps, then `kind`:

    constant  1
    cosine    half a cosine from 1 to `final` (Loshchilov & Hutter 2017)
    linear    a line from 1 to `final`
    wsd       1, then a line to `final` over the last `decay` share of the steps (Hu et al. 2024)
    rsqrt     sqrt(warmup / step) (Vaswani et al. 2017)
    """

    kind: Literal["constant", "cosine", "linear", "wsd", "rsqrt"] = "cosine"
    warmup: int = 100
    final: float = 0.1
    decay: float = 0.2

    def __post_init__(self) -> None:
        if self.warmup < 0:
            raise DougongError(f"schedule.warmup is {self.warmup} steps; expected 0 or more")
        if not 0 <= self.final <= 1:
            raise DougongError(f"schedule.final is {self.final}; expected a share of the peak rate, 0 to 1")
        if not 0 < self.decay <= 1:
            raise DougongError(f"schedule.decay is {self.decay}; expected a share of the steps, above 0 up to 1")

    def factor(self, step: int, steps: int) -> float:
        """The factor for update number `step` (from 0) of `steps`."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, steps - self.warmup)
        match self.kind:
            case "constant":
                return 1.0
            case "cosine":
                return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done))
            case "linear":
                return 1 - (1 - self.final) * done
            case "wsd":
                return 1 - (1 - self.final) * max(0.0, (step - steps * (1 - self.decay)) / (steps * self.decay))
            case "rsqrt":
                return math.sqrt(max(1, self.warmup) / max(1, step + 1))
