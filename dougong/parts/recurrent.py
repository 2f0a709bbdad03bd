"""The recurrent networks before attention: LSTM (Hochreiter & Schmidhuber 1997) and GRU (Cho et al. 2014).

Gates and biases as in torch's nn.LSTM and nn.GRU, with an output projection onto the residual path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from dougong.parts.carry import Counts, Pieces, carry, real_tokens
from dougong.parts.context import Context
from dougong.parts.linear import Linear
from dougong.parts.shapes import Float
from dougong.parts.state import LayerState, Slot, Slots


@dataclass(frozen=True)
class LSTM:
    """o(h), with i, f, g, p = up(x_t) + back(h_{t-1}), c = sigmoid(f) c + sigmoid(i) tanh(g)
    and h = sigmoid(p) tanh(c)."""

    tagged: ClassVar[bool] = True

    hidden: int
    bias: bool = True

    def build(self, width: int) -> LSTMLayer:
        return LSTMLayer(self, width)

    def slots(self) -> Slots:
        return {name: Slot((self.hidden,), per_token=False, dtype=torch.float32) for name in ("h", "c")}

    def parameters(self, width: int) -> int:
        return _gates(4, width, self.hidden, self.bias)

    def flops(self, width: int, context: float) -> float:
        return 2 * _gates(4, width, self.hidden, False)


class LSTMLayer(nn.Module):
    def __init__(self, spec: LSTM, width: int):
        super().__init__()
        self.spec = spec
        self.up = Linear(width, 4 * spec.hidden, spec.bias, axes=("embed", "ffn"))  # gates i, f, g, o
        self.back = Linear(spec.hidden, 4 * spec.hidden, spec.bias, axes=("ffn", "ffn"))
        self.o = Linear(spec.hidden, width, axes=("ffn", "embed"))

    def forward(
        self, x: Float[Tensor, "B T D"], ctx: Context, state: LayerState | None = None
    ) -> Float[Tensor, "B T D"]:
        return carry(self._run, x, ctx, state, self.spec.slots())

    def _run(self, x: Tensor, past: Pieces, counts: Counts) -> tuple[Tensor, Pieces]:
        inputs, real = self.up(x), real_tokens(x, counts)
        h, c = past["h"].float(), past["c"].float()
        out = []
        for t, each in enumerate(inputs.float().unbind(1)):
            gates = each + self.back(h.to(x.dtype)).float()
            i, f, g, o = gates.chunk(4, -1)
            new_c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            new_h = o.sigmoid() * new_c.tanh()
            h, c = _where(real, t, new_h, h), _where(real, t, new_c, c)
            out.append(h)
        return self.o(torch.stack(out, 1).to(x.dtype)), {"h": h, "c": c}


@dataclass(frozen=True)
class GRU:
    """o(h): with r, z from sigmoid(up(x_t) + back(h_{t-1})) and n = tanh(up_n(x_t) + r * back_n(h_{t-1})),
    h = (1 - z) n + z h."""

    tagged: ClassVar[bool] = True

    hidden: int
    bias: bool = True

    def build(self, width: int) -> GRULayer:
        return GRULayer(self, width)

    def slots(self) -> Slots:
        return {"h": Slot((self.hidden,), per_token=False, dtype=torch.float32)}

    def parameters(self, width: int) -> int:
        return _gates(3, width, self.hidden, self.bias)

    def flops(self, width: int, context: float) -> float:
        return 2 * _gates(3, width, self.hidden, False)


class GRULayer(nn.Module):
    def __init__(self, spec: GRU, width: int):
        super().__init__()
        self.spec = spec
        self.up = Linear(width, 3 * spec.hidden, spec.bias, axes=("embed", "ffn"))  # gates r, z, n
        self.back = Linear(spec.hidden, 3 * spec.hidden, spec.bias, axes=("ffn", "ffn"))
        self.o = Linear(spec.hidden, width, axes=("ffn", "embed"))

    def forward(
        self, x: Float[Tensor, "B T D"], ctx: Context, state: LayerState | None = None
    ) -> Float[Tensor, "B T D"]:
        return carry(self._run, x, ctx, state, self.spec.slots())

    def _run(self, x: Tensor, past: Pieces, counts: Counts) -> tuple[Tensor, Pieces]:
        inputs, real = self.up(x), real_tokens(x, counts)
        h = past["h"].float()
        out = []
        for t, each in enumerate(inputs.float().unbind(1)):
            r, z, n = each.chunk(3, -1)
            old_r, old_z, old_n = self.back(h.to(x.dtype)).float().chunk(3, -1)
            new = (n + (r + old_r).sigmoid() * old_n).tanh()
            h = _where(real, t, torch.lerp(new, h, (z + old_z).sigmoid()), h)
            out.append(h)
        return self.o(torch.stack(out, 1).to(x.dtype)), {"h": h}


def _gates(count: int, width: int, hidden: int, bias: bool) -> int:
    """Parameters of `count` gates and the output."""
    return count * hidden * (width + hidden + 2 * bias) + hidden * width


def _where(real: Tensor | None, t: int, new: Tensor, old: Tensor) -> Tensor:
    """The new state in rows whose token t is real."""
    return new if real is None else torch.where(real[:, t, None], new, old)
