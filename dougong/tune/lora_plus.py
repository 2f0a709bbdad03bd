"""LoRA+ (Hayou et al. 2024, arXiv 2402.12354): B learns `ratio` times as fast as A, as wide layers need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from dougong.tune.lora import LowRank, plugs
from dougong.tune.tuning import Tuning


@dataclass(frozen=True)
class LoRAPlus(LowRank):
    """ratio: of B's learning rate to A's, which is the optimizer's."""

    tagged: ClassVar[bool] = True

    ratio: float = 16.0

    def rates(self, tuning: Tuning) -> dict[nn.Parameter, float]:
        return {plug.b: self.ratio for plug in plugs(tuning)}
