"""LoRA-FA (Zhang et al. 2023, arXiv 2308.03303): A stays as it was drawn; only B is trained.

The weight's gradient is then known up to the columns that A spans, and among the updates of B the one whose change of
the weight comes nearest to it is s^-2 G (A A^T)^-1 for the gradient G of B, as PEFT's optimizer corrects it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dougong.parts.shapes import Float
from dougong.tune.lora import LowRank, LowRankPlugin, plugs
from dougong.tune.method import Side
from dougong.tune.places import Site
from dougong.tune.tuning import Tuning

_RIDGE = 1e-8


@dataclass(frozen=True)
class LoRAFA(LowRank):
    """correct: turn B's gradient so that the weight moves as near to its own gradient as A allows."""

    tagged: ClassVar[bool] = True

    correct: bool = True

    def plug(self, path: str, site: Site, tuning: Tuning, generator: torch.Generator) -> LowRankPlugin:
        plug = super().plug(path, site, tuning, generator)
        plug.a.requires_grad_(False)
        return plug

    def side(self, tuning: Tuning, steps: int) -> Side | None:
        return _Corrected(plugs(tuning)) if self.correct else None


class _Corrected(Side):
    """A never changes, so neither does what B's gradient is multiplied by."""

    def __init__(self, plugs: list[LowRankPlugin]):
        self.pairs = [(plug, correction(plug.a.detach(), plug.scale)) for plug in plugs]

    def before(self, scale: Float[Tensor, ""]) -> None:
        for plug, factor in self.pairs:
            if plug.b.grad is not None:
                plug.b.grad = plug.b.grad @ factor.to(plug.b.grad.dtype)

    def after(self) -> None:
        return None


def correction(a: Float[Tensor, "*E r i"], scale: float) -> Float[Tensor, "*E r r"]:
    """s^-2 (A A^T + 1e-8 I)^+."""
    gram = a @ a.mT
    return torch.linalg.pinv(gram + _RIDGE * torch.eye(a.shape[-2], dtype=a.dtype, device=a.device)) / scale**2
