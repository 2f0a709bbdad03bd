"""How fast a recurrent state fades: log decays g <= 0 for every token and head, fixed or from the input."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dougong.parts.low_rank import products, projection
from dougong.parts.shapes import Float

LightningTable = Literal["slope_rate", "query_decay", "key_decay", "diagonal_decay"]


def _share(layer: int, depth: int) -> float:
    """Of ALiBi's slopes: 1 in the first layer, next to nothing in the last."""
    return 1 - layer / (depth - 1 + 1e-5) + 1e-5


@dataclass(frozen=True)
class FixedDecay:
    """g = log(gamma_h), one number a head that is not trained (RetNet, Sun et al. 2023; lightning attention)."""

    tagged: ClassVar[bool] = True
    TABLES: ClassVar[tuple[LightningTable, ...]] = get_args(LightningTable)

    logs: tuple[float, ...]

    @staticmethod
    def retention(heads: int) -> FixedDecay:
        """RetNet's gamma_h = 1 - 2^(-5-h)."""
        return FixedDecay(tuple(math.log1p(-(2.0 ** (-5 - head))) for head in range(heads)))

    @staticmethod
    def slopes(heads: int, share: float = 1.0) -> FixedDecay:
        """ALiBi's slopes 2^(-8h/H), h = 1 ... H, times `share` (in lightning attention it falls with depth)."""
        return FixedDecay(tuple(-share * 2.0 ** (-8 * (head + 1) / heads) for head in range(heads)))

    @staticmethod
    def lightning(heads: int, layer: int, depth: int) -> FixedDecay:
        """Those of lightning attention (Qin et al. 2024, arXiv 2401.04658) in layer `layer` of `depth`."""
        return FixedDecay.slopes(heads, _share(layer, depth))

    @staticmethod
    def tables(heads: int, block: int, layer: int, depth: int) -> dict[LightningTable, Callable[[], Tensor]]:
        """What makes each `table`, which may be large: the last one has heads * block^2 numbers."""
        return {name: partial(FixedDecay.table, name, heads, block, layer, depth) for name in FixedDecay.TABLES}

    @staticmethod
    def table(name: LightningTable, heads: int, block: int, layer: int, depth: int) -> Tensor:
        """One of the tables that files of lightning attention hold: the slopes, and the decays of a block of so many
        tokens, of what its queries read from before it, of what its keys leave behind it, and of what they are to each
        other. In the order of operations of those files, so that not even rounding differs."""
        slope = ((1 / (2 ** (8 / heads))) ** (torch.arange(heads) + 1) * _share(layer, depth))[:, None, None]
        place = torch.arange(block)[:, None] + 1
        apart = slope * (place - place.mT)[None, None]
        tables: dict[LightningTable, Tensor] = {
            "slope_rate": slope,
            "query_decay": torch.exp(-slope * place),
            "key_decay": torch.exp(-slope * (block - place)),
            "diagonal_decay": torch.exp(torch.where(apart >= 0, -apart, float("-inf"))),
        }
        return tables[name]

    def build(self, width: int, heads: int, size: int) -> FixedDecayLayer:
        return FixedDecayLayer(self)

    def parameters(self, width: int, heads: int, size: int) -> int:
        return 0

    def products(self, width: int, heads: int, size: int) -> int:
        """Those of the parameters that stand in matrices."""
        return 0


class FixedDecayLayer(nn.Module):
    def __init__(self, spec: FixedDecay):
        super().__init__()
        self.logs = spec.logs

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T H 1"]:
        logs = torch.tensor(self.logs, device=x.device)[:, None]
        return logs.expand(*x.shape[:2], -1, -1)


@dataclass(frozen=True)
class SigmoidDecay:
    """g = log sigmoid(b(a(x)) + bias) / temperature for each key channel (GLA, Yang et al. 2023)."""

    tagged: ClassVar[bool] = True

    rank: int = 16
    temperature: float = 16.0

    def build(self, width: int, heads: int, size: int) -> SigmoidDecayLayer:
        return SigmoidDecayLayer(self, width, heads, size)

    def parameters(self, width: int, heads: int, size: int) -> int:
        return self.products(width, heads, size) + heads * size

    def products(self, width: int, heads: int, size: int) -> int:
        return products(width, heads * size, self.rank)


class SigmoidDecayLayer(nn.Module):
    def __init__(self, spec: SigmoidDecay, width: int, heads: int, size: int):
        super().__init__()
        self.heads, self.temperature = heads, spec.temperature
        self.step = projection(width, heads * size, spec.rank, bias=True)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T H d"]:
        return F.logsigmoid(self.step(x).float()).unflatten(-1, (self.heads, -1)) / self.temperature


@dataclass(frozen=True)
class SoftplusDecay:
    """g = -exp(log_rate_h) softplus(step(x) + bias), as in Mamba-2 and gated DeltaNet.

    rank None: one g a head. Otherwise one a key channel, from a step of that rank (Kimi Delta Attention).
    """

    tagged: ClassVar[bool] = True

    rank: int | None = None

    def build(self, width: int, heads: int, size: int) -> SoftplusDecayLayer:
        return SoftplusDecayLayer(self, width, heads, size)

    def parameters(self, width: int, heads: int, size: int) -> int:
        return self.products(width, heads, size) + self._steps(heads, size) + heads

    def products(self, width: int, heads: int, size: int) -> int:
        return products(width, self._steps(heads, size), self.rank)

    def _steps(self, heads: int, size: int) -> int:
        return heads if self.rank is None else heads * size


class SoftplusDecayLayer(nn.Module):
    def __init__(self, spec: SoftplusDecay, width: int, heads: int, size: int):
        super().__init__()
        self.heads = heads
        out = heads if spec.rank is None else heads * size
        self.step = projection(width, out, spec.rank)
        self.bias = nn.Parameter(torch.empty(out))
        self.log_rate = nn.Parameter(torch.empty(heads))

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T H c"]:
        step = F.softplus(self.step(x).float() + self.bias.float())
        return -self.log_rate.float().exp()[:, None] * step.unflatten(-1, (self.heads, -1))

    @torch.no_grad()
    def initial(self, generator: torch.Generator) -> None:
        """Rates uniform in [1, 16], steps log-uniform in [0.001, 0.1] at x = 0 (Dao & Gu 2024)."""
        self.log_rate.uniform_(1.0, 16.0, generator=generator).log_()
        step = torch.empty_like(self.bias).uniform_(math.log(1e-3), math.log(1e-1), generator=generator).exp()
        self.bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus of it is the step


Decay = FixedDecay | SigmoidDecay | SoftplusDecay
