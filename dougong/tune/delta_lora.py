"""Delta-LoRA (Zi et al. 2023, arXiv 2309.02411): the weight itself moves by what its two thin matrices' product moved.

W <- W + ratio s (B' A' - B A) after each update past `warmup`, so W is trained without a gradient or an optimizer's
state of its own. No dropout in the branch, for the paper's argument needs dL/dW = dL/d(BA).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.parts.grouped import GroupedDense, GroupedLinear
from dougong.parts.linear import Dense, Linear
from dougong.parts.shapes import Float
from dougong.tune.lora import LowRank, LowRankPlugin
from dougong.tune.method import Side
from dougong.tune.places import Site
from dougong.tune.tuning import Tuning


@dataclass(frozen=True)
class DeltaLoRA(LowRank):
    """ratio: how much of the product's change goes to the weight (the paper's lambda). warmup: updates without it."""

    tagged: ClassVar[bool] = True
    kinds: ClassVar[tuple[type, ...]] = (Linear, GroupedLinear)
    whole: ClassVar[bool] = True

    ratio: float = 0.5
    warmup: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dropout:
            raise DougongError(f"DeltaLoRA.dropout is {self.dropout}; expected 0: the method needs a branch without it")

    def plug(self, path: str, site: Site, tuning: Tuning, generator: torch.Generator) -> LowRankPlugin:
        if not isinstance(site.storage, (Dense, GroupedDense)):
            raise DougongError(
                f"{path} is kept as {type(site.storage).__name__}, which cannot move; DeltaLoRA needs the weight in "
                "floating point"
            )
        tuning.shared[f"moves:{path}"] = site.storage.weight
        return super().plug(path, site, tuning, generator)

    def side(self, tuning: Tuning, steps: int) -> Side:
        return _Moving(self, tuning)


class _Moving(Side):
    def __init__(self, method: DeltaLoRA, tuning: Tuning):
        self.method = method
        self.sites: list[tuple[LowRankPlugin, Tensor]] = []
        for path, plug in tuning.plugs.items():
            assert isinstance(plug, LowRankPlugin)
            self.sites.append((plug, tuning.shared[f"moves:{path}"]))
        self.done = 0
        self.kept: list[tuple[Tensor, Tensor]] = []

    def before(self, scale: Float[Tensor, ""]) -> None:
        self.kept = [(plug.a.detach().clone(), plug.b.detach().clone()) for plug, _ in self.sites]

    @torch.no_grad()
    def after(self) -> None:
        self.done += 1
        if self.done <= self.method.warmup:
            return
        for (plug, weight), (a, b) in zip(self.sites, self.kept, strict=True):
            weight += (self.method.ratio * plug.scale * (plug.b @ plug.a - b @ a)).to(weight.dtype)

    def state(self) -> dict[str, Any]:
        return {"done": self.done}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.done = state["done"]
