"""Feed-forward layers: every token alone, out to a wider space and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dougong.parts import native
from dougong.parts.context import Context
from dougong.parts.fused import together
from dougong.parts.linear import Linear
from dougong.parts.shapes import Float
from dougong.parts.state import LayerState, Slots

Activation = Literal[
    "silu",
    "gelu",
    "gelu_tanh",
    "quick_gelu",
    "relu",
    "relu2",
    "relu6",
    "leaky_relu",
    "hardswish",
    "mish",
    "sigmoid",
    "tanh",
]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu2": lambda x: F.relu(x).square(),
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "hardswish": F.hardswish,
    "mish": F.mish,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


def activated(name: str, gate: Float[Tensor, "*N F"], up: Float[Tensor, "*N F"] | None = None) -> Float[Tensor, "*N F"]:
    """f(gate), times up where there is one; in one pass where our own kernels serve."""
    if torch.is_grad_enabled():
        if name == "silu" and up is not None and not torch.compiler.is_compiling():
            y = _SwiGLU.apply(gate, up)
            assert isinstance(y, Tensor)
            return y
    elif (ours := native.serving(gate)) is not None and ours.can_activate(name, gate, up):
        return ours.activate(name, gate, up)
    y = ACTIVATIONS[name](gate)
    return y if up is None else y * up


class _SwiGLU(torch.autograd.Function):
    """silu(g) u, which keeps g and u alone. With s = sigmoid(g): dg = dy u s (1 + g (1 - s)), du = dy g s."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return activated("silu", gate, up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grad = grads[0].contiguous()
        plain = all(each.dtype == torch.float32 and each.is_contiguous() for each in (gate, up, grad))
        ours = native.serving(gate) if plain else None
        if ours is not None:
            return ours.swiglu_gradient(gate, up, grad)
        return torch.ops.aten.silu_backward.default(grad * up, gate), F.silu(gate).mul_(grad)


def dropped(x: Float[Tensor, "*N"], share: float, training: bool) -> Float[Tensor, "*N"]:
    """Dropout (Srivastava et al. 2014): in training each number is 0 with probability `share`, else x / (1 - share)."""
    return F.dropout(x, share) if share and training else x


@dataclass(frozen=True)
class MLP:
    """down(act(up(x))). dropout: the share dropped before the last product, in training."""

    tagged: ClassVar[bool] = True

    hidden: int
    activation: Activation = "gelu"
    bias: bool = False
    dropout: float = 0.0

    def build(self, width: int) -> MLPLayer:
        return MLPLayer(self, width)

    def slots(self) -> Slots:
        return {}

    def parameters(self, width: int) -> int:
        return 2 * width * self.hidden + (self.hidden + width) * self.bias

    def flops(self, width: int, context: float) -> float:
        return 4 * width * self.hidden


class MLPLayer(nn.Module):
    def __init__(self, spec: MLP, width: int):
        super().__init__()
        self.activation = spec.activation
        self.dropout = spec.dropout
        self.up = Linear(width, spec.hidden, spec.bias, axes=("embed", "ffn"))
        self.down = Linear(spec.hidden, width, spec.bias, axes=("ffn", "embed"))

    def forward(
        self, x: Float[Tensor, "B T D"], ctx: Context, state: LayerState | None = None
    ) -> Float[Tensor, "B T D"]:
        return self.down(dropped(activated(self.activation, self.up(x)), self.dropout, self.training))


@dataclass(frozen=True)
class GatedMLP:
    """down(act(gate(x)) * up(x)): SwiGLU with silu, GeGLU with gelu (Shazeer 2020). dropout: as in MLP."""

    tagged: ClassVar[bool] = True

    hidden: int
    activation: Activation = "silu"
    bias: bool = False
    dropout: float = 0.0

    def build(self, width: int) -> GatedMLPLayer:
        return GatedMLPLayer(self, width)

    def slots(self) -> Slots:
        return {}

    def parameters(self, width: int) -> int:
        return 3 * width * self.hidden + (2 * self.hidden + width) * self.bias

    def flops(self, width: int, context: float) -> float:
        return 6 * width * self.hidden


class GatedMLPLayer(nn.Module):
    def __init__(self, spec: GatedMLP, width: int):
        super().__init__()
        self.activation = spec.activation
        self.dropout = spec.dropout
        self.gate = Linear(width, spec.hidden, spec.bias, axes=("embed", "ffn"))
        self.up = Linear(width, spec.hidden, spec.bias, axes=("embed", "ffn"))
        self.down = Linear(spec.hidden, width, spec.bias, axes=("ffn", "embed"))

    def siblings(self) -> list[tuple[Linear, ...]]:
        """Linears that read the same input (fused.py)."""
        return [(self.gate, self.up)]

    def forward(
        self, x: Float[Tensor, "B T D"], ctx: Context, state: LayerState | None = None
    ) -> Float[Tensor, "B T D"]:
        gate, up = together(x, self.gate, self.up)
        return self.down(dropped(activated(self.activation, gate, up), self.dropout, self.training))
