"""AdaLoRA (Zhang et al. 2023, arXiv 2303.10512): ranks go where they are worth most.

The change is s B diag(e) A with e zero at the start; an orthogonality penalty keeps A's rows and B's columns apart, so
that each (a_i, e_i, b_i) can be judged and dropped alone. While the budget falls from `rank` a module to `target`, the
triplets of least importance, a smoothed |w grad| times its smoothed variation, have their e set to 0. Details (the
cubic schedule, s = alpha / (rank + 1e-5), the scores) are PEFT's, so that its files mean the same here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dougong.base import DougongError
from dougong.parts.grouped import GroupedLinear
from dougong.parts.linear import Linear
from dougong.parts.shapes import Float
from dougong.tune.lora import LowRank, LowRankPlugin
from dougong.tune.method import Side, kind, sizes
from dougong.tune.places import Site
from dougong.tune.tuning import Tuning


@dataclass(frozen=True)
class AdaLoRA(LowRank):
    """target: mean rank at the end. begin, end: updates before and after the budget falls. every: updates between
    two cuts. beta1, beta2: smoothing of importance and of its variation. orthogonal: weight of the penalty."""

    tagged: ClassVar[bool] = True
    kinds: ClassVar[tuple[type, ...]] = (Linear, GroupedLinear)

    rank: int = 12
    alpha: float = 32.0
    target: int = 8
    begin: int = 0
    end: int = 0
    every: int = 1
    beta1: float = 0.85
    beta2: float = 0.85
    orthogonal: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.target <= self.rank:
            raise DougongError(f"AdaLoRA.target is {self.target}; expected 1 to rank, {self.rank}")
        if self.every < 1:
            raise DougongError(f"AdaLoRA.every is {self.every}; expected at least 1")

    def scale_of(self, path: str, rank: int) -> float:
        return self.alpha / (rank + 1e-5)

    def plug(self, path: str, site: Site, tuning: Tuning, generator: torch.Generator) -> AdaLoRAPlugin:
        experts, inputs, outputs = sizes(site)
        rank, like = self.rank_of(path), site.storage.dense()
        a = torch.empty(*experts, rank, inputs).normal_(0.0, 0.02, generator=generator).to(like.device, kind(like))
        b = torch.empty(*experts, outputs, rank).normal_(0.0, 0.02, generator=generator).to(like.device, kind(like))
        return AdaLoRAPlugin(tuning, a, a.new_zeros(*experts, rank), b, self.scale_of(path, rank), self.dropout)

    def side(self, tuning: Tuning, steps: int) -> Side:
        if self.begin + self.end >= steps:
            raise DougongError(
                f"AdaLoRA.begin + end is {self.begin + self.end} of {steps} updates; leave some for the budget to fall"
            )
        return Allocation(self, [plug for plug in tuning.plugs.values() if isinstance(plug, AdaLoRAPlugin)], steps)


class AdaLoRAPlugin(LowRankPlugin):
    """y + s B (e * (A x)). e: (r) or (E, r)."""

    def __init__(self, tuning: Tuning, a: Tensor, e: Tensor, b: Tensor, scale: float, dropout: float = 0.0):
        super().__init__(tuning, a, b, scale, dropout)
        self.e = nn.Parameter(e)

    def factors(self) -> tuple[Float[Tensor, "*E r i"], Float[Tensor, "*E o r"]]:
        return self.a * self.e[..., None], self.b


class Allocation(Side):
    """The budget over all modules, and the importance of every number they hold."""

    def __init__(self, method: AdaLoRA, plugs: list[AdaLoRAPlugin], steps: int):
        self.method, self.plugs, self.steps = method, plugs, steps
        self.done = 0
        self.scale = torch.ones(())
        self.full = sum(plug.e.numel() for plug in plugs)
        self.goal = sum(plug.e.numel() // plug.e.shape[-1] for plug in plugs) * method.target
        self.parameters = [(plug, name) for plug in plugs for name in ("a", "b", "e")]
        self.importance = [torch.zeros_like(getattr(*place)) for place in self.parameters]
        self.variation = [torch.zeros_like(getattr(*place)) for place in self.parameters]
        self.kept = [torch.ones_like(plug.e, dtype=torch.bool) for plug in plugs]

    @torch.no_grad()
    def before(self, scale: Float[Tensor, ""]) -> None:
        """The gradient of the penalty, mean over matrices of ||P P^T - I||_F, on top of the loss's."""
        self.scale = scale
        matrices = [(plug.a, plug.a.detach(), False) for plug in self.plugs]
        matrices += [(plug.b, plug.b.detach().mT, True) for plug in self.plugs]
        count = sum(matrix.numel() // (matrix.shape[-1] * matrix.shape[-2]) for _, matrix, _ in matrices)
        for parameter, matrix, turned in matrices:
            if parameter.grad is None or not self.method.orthogonal:
                continue
            off = matrix @ matrix.mT - torch.eye(matrix.shape[-2], dtype=matrix.dtype, device=matrix.device)
            norm = torch.linalg.matrix_norm(off, keepdim=True).clamp(min=1e-12)
            slope = 2 * (off / norm) @ matrix * (self.method.orthogonal / count)
            parameter.grad += (slope.mT if turned else slope) / scale

    @torch.no_grad()
    def after(self) -> None:
        step, last = self.done, self.steps - self.method.end
        final = min(last, self.steps - 1)
        self.done += 1
        if step < last:
            self._weigh()
        if step < final:
            budget, cut = self._budget(step)
        else:
            budget, cut = self.goal, step == final
        if cut:
            self._keep(budget)
        if cut or step > final:
            for plug, kept in zip(self.plugs, self.kept, strict=True):
                plug.e.masked_fill_(~kept, 0.0)

    def _weigh(self) -> None:
        first, second = self.method.beta1, self.method.beta2
        for (plug, name), mean, variation in zip(self.parameters, self.importance, self.variation, strict=True):
            parameter = getattr(plug, name)
            if parameter.grad is None:
                continue
            now = (parameter * parameter.grad * self.scale).abs()
            mean.mul_(first).add_(now, alpha=1 - first)
            variation.mul_(second).add_((now - mean).abs(), alpha=1 - second)

    def _budget(self, step: int) -> tuple[int, bool]:
        """Triplets to keep after this update, and whether to cut now: a cubic fall from all of them to the goal. What
        is cut may grow again until the last cut."""
        method, last = self.method, self.steps - self.method.end
        if step <= method.begin:
            return self.full, False
        left = 1 - (step - method.begin) / (last - method.begin)
        budget = int((self.full - self.goal) * left**3 + self.goal)
        return budget, step % method.every == 0

    def _keep(self, budget: int) -> None:
        scores = []
        for index in range(len(self.plugs)):
            a, b, e = (self.importance[at] * self.variation[at] for at in range(3 * index, 3 * index + 3))
            scores.append(e + a.mean(-1) + b.mean(-2))
        whole = torch.cat([score.flatten() for score in scores])
        kept = torch.zeros(len(whole), dtype=torch.bool, device=whole.device)
        kept[whole.topk(budget).indices] = True
        pieces = kept.split([score.numel() for score in scores])
        self.kept = [piece.view(score.shape) for piece, score in zip(pieces, scores, strict=True)]

    def state(self) -> dict[str, Any]:
        return {"done": self.done, "importance": self.importance, "variation": self.variation, "kept": self.kept}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.done = state["done"]
        for name in ("importance", "variation", "kept"):
            for mine, saved in zip(getattr(self, name), state[name], strict=True):
                mine.copy_(saved)
