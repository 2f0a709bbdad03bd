"""Optimizers. Each takes the factor that turns the accumulated gradient sums into the clipped mean gradient, so no pass
over the gradients is spent on dividing or clipping them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dougong.base import DougongError
from dougong.parts.shapes import Float
from dougong.tune import rates, sides
from dougong.tune.method import Side


@dataclass(frozen=True)
class Optimizer:
    """adamw: decoupled weight decay (Loshchilov & Hutter 2019) for every parameter.
    muon: matrices inside the layers by Muon (Jordan et al. 2024) at `matrix_rate`; embeddings, head, norms and biases
    by AdamW at `rate`. Weight decay touches matrices only."""

    kind: Literal["adamw", "muon"] = "adamw"
    rate: float = 3e-4
    matrix_rate: float = 0.02
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    momentum: float = 0.95
    clip: float = 1.0  # largest norm of the whole gradient; 0: none

    def __post_init__(self) -> None:
        for name in ("rate", "matrix_rate"):
            if not 0 < getattr(self, name) < 100:
                raise DougongError(f"optimizer.{name} is {getattr(self, name)}; expected a small positive number")
        for name in ("beta1", "beta2", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise DougongError(f"optimizer.{name} is {getattr(self, name)}; expected 0 or more, below 1")
        for name in ("weight_decay", "clip", "eps"):
            if getattr(self, name) < 0:
                raise DougongError(f"optimizer.{name} is {getattr(self, name)}; expected 0 or more")

    def build(self, model: nn.Module, steps: int = 0) -> Optimizers:
        """For the trained parameters of a model, over `steps` updates; adapters on it may have rates of their own and
        a part in each update (dougong.tune)."""
        matrices, others, vectors = [], [], []
        factors = rates(model)
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            inside = parameter.ndim == 2 and ".layers." in f".{name}"
            if inside and self.kind == "muon":
                matrices.append(parameter)
            else:
                (others if parameter.ndim == 2 else vectors).append(parameter)
        parts: list[AdamW | Muon] = []
        for factor in sorted({1.0, *factors.values()}):
            for chosen, decay in ((others, self.weight_decay), (vectors, 0.0)):
                alike = [each for each in chosen if factors.get(id(each), 1.0) == factor]
                parts.append(AdamW(alike, self.rate * factor, (self.beta1, self.beta2), self.eps, decay))
        if matrices:
            parts.append(Muon(matrices, self.matrix_rate, self.momentum, self.weight_decay))
        return Optimizers(parts, sides(model, steps))


class Optimizers:
    """Several optimizers stepped as one, with what adapters do around each step."""

    def __init__(self, parts: list[AdamW | Muon], sides: Sequence[Side] = ()):
        self.parts = [part for part in parts if part.parameters]
        self.sides = sides

    def step(self, factor: float, scale: Float[Tensor, ""]) -> None:
        """Update with learning rates times `factor` and gradients times `scale`, then drop the gradients."""
        for side in self.sides:
            side.before(scale)
        for part in self.parts:
            part.step(factor, scale)
        for side in self.sides:
            side.after()
        for part in self.parts:
            for parameter in part.parameters:
                parameter.grad = None

    def state(self) -> dict[str, Any]:
        return {
            **{str(index): part.state() for index, part in enumerate(self.parts)},
            **{f"side {index}": side.state() for index, side in enumerate(self.sides)},
        }

    def restore(self, state: dict[str, Any]) -> None:
        for index, part in enumerate(self.parts):
            part.restore(state[str(index)])
        for index, side in enumerate(self.sides):
            side.restore(state[f"side {index}"])


class AdamW:
    """m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  w -= rate (mhat / (sqrt(vhat) + eps) + decay w).

    One fused kernel runs over all parameters; it also applies `scale` to the gradients as it reads them.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], rate: float, betas: tuple[float, float], eps: float, decay: float
    ):
        self.parameters = list(parameters)
        self.rate, self.betas, self.eps, self.decay = rate, betas, eps, decay
        self.first = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.second = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.steps = [torch.zeros((), device=parameter.device) for parameter in self.parameters]

    @torch.no_grad()
    def step(self, factor: float, scale: Float[Tensor, ""]) -> None:
        present = [index for index, parameter in enumerate(self.parameters) if parameter.grad is not None]
        if not present:
            return

        def pick(values: list[Any]) -> list[Any]:
            return [values[index] for index in present]

        steps = pick(self.steps)
        torch.ops.aten._foreach_add_.Scalar(steps, 1)
        torch.ops.aten._fused_adamw_.default(
            pick(self.parameters),
            [self.parameters[index].grad for index in present],
            pick(self.first),
            pick(self.second),
            [],
            steps,
            lr=self.rate * factor,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=self.decay,
            eps=self.eps,
            amsgrad=False,
            maximize=False,
            grad_scale=1 / scale,  # the kernel divides by it
            found_inf=None,
        )

    def state(self) -> dict[str, Any]:
        return {"first": self.first, "second": self.second, "steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        for name in ("first", "second", "steps"):
            for mine, saved in zip(getattr(self, name), state[name], strict=True):
                mine.copy_(saved)


class Muon:
    """Momentum whose update is made orthogonal: every direction of a matrix learns at the same rate.

    m = mu m + (1 - mu) g;  u = (1 - mu) g + mu m (Nesterov);  w -= rate s UV^T where U S V^T = u, and
    s = sqrt(max(1, rows / columns)) keeps the size of the change in the outputs (Jordan et al. 2024).
    Matrices of one shape are stacked, so that their Newton-Schulz iterations are batched products.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], rate: float, momentum: float, decay: float):
        self.parameters = list(parameters)
        self.rate, self.mu, self.decay = rate, momentum, decay
        self.momentum = [torch.zeros_like(parameter) for parameter in self.parameters]

    @torch.no_grad()
    def step(self, factor: float, scale: Float[Tensor, ""]) -> None:
        groups: dict[torch.Size, list[int]] = {}
        for index, parameter in enumerate(self.parameters):
            if parameter.grad is not None:
                groups.setdefault(parameter.shape, []).append(index)
        rate = self.rate * factor
        for (rows, columns), members in groups.items():
            updates = []
            for index in members:
                grad = self.parameters[index].grad
                assert grad is not None
                grad = grad * scale
                self.momentum[index].lerp_(grad, 1 - self.mu)
                updates.append(grad.lerp_(self.momentum[index], self.mu))
            change = orthogonalise(torch.stack(updates)) * max(1.0, rows / columns) ** 0.5
            for index, each in zip(members, change, strict=True):
                parameter = self.parameters[index]
                parameter.mul_(1 - rate * self.decay).add_(each.to(parameter.dtype), alpha=-rate)

    def state(self) -> dict[str, Any]:
        return {"momentum": self.momentum}

    def restore(self, state: dict[str, Any]) -> None:
        for mine, saved in zip(self.momentum, state["momentum"], strict=True):
            mine.copy_(saved)


def orthogonalise(x: Float[Tensor, "N r c"], steps: int = 5) -> Float[Tensor, "N r c"]:
    """Nearly U V^T for each matrix U S V^T: singular values end between about 0.7 and 1.2.

    The quintic Newton-Schulz iteration X <- a X + (b A + c A^2) X, A = X X^T, with Jordan's coefficients. In bfloat16
    on a GPU, in float32 on a CPU.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = x.shape[-2] <= x.shape[-1]
    y = x if wide else x.transpose(-1, -2)
    y = y.bfloat16() if x.is_cuda else y.float()
    y = y / (torch.linalg.vector_norm(y, dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = y @ y.transpose(-1, -2)
        y = torch.baddbmm(y, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), y, beta=a)
    return y if wide else y.transpose(-1, -2)
