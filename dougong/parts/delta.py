"""The delta rule: a state that is told its error, so that a new value for a key replaces the old one.

S_t = (I - beta_t k_t k_t^T) diag(exp g_t) S_{t-1} + beta_t k_t v_t^T,    o_t = S_t^T q_t / sqrt(d)

with k and q of length 1 (Schlag et al. 2021; DeltaNet, Yang et al. 2024, arXiv 2406.06484; gated DeltaNet, Yang et al.
2024, arXiv 2412.06464; Kimi Delta Attention, arXiv 2510.26692).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from dougong.base import DougongError
from dougong.parts.context import Context
from dougong.parts.convolution import CausalConv, past_slot
from dougong.parts.decay import Decay
from dougong.parts.feedforward import ACTIVATIONS, Activation
from dougong.parts.linear import Linear
from dougong.parts.linear_attention import finish
from dougong.parts.linear_recurrence import scan
from dougong.parts.low_rank import products, projection
from dougong.parts.norm import Norm
from dougong.parts.segments import check_one_way, each_document
from dougong.parts.shapes import Bool, Float
from dougong.parts.state import LayerState, Slot, Slots

_CONVOLVED = ("q", "k", "v")


@dataclass(frozen=True)
class DeltaNet:
    """Queries, keys and values pass through a short causal convolution and an activation; each of `key_heads` serves
    value_heads / key_heads value heads, each of which has its own state, beta = beta_max sigmoid(.) and decay.

    - without decay and gate: DeltaNet; beta_max 2 lets it turn keys around (Grazzi et al. 2024)
    - softplus decay of each head, silu gate: gated DeltaNet (Qwen3-Next)
    - softplus decay of a rank, sigmoid gate of a rank: Kimi Delta Attention
    """

    tagged: ClassVar[bool] = True

    key_heads: int
    value_heads: int
    key_size: int
    value_size: int
    convolution: int = 4  # tokens that it sees; 0: none, the activation alone
    activation: Activation = "silu"
    decay: Decay | None = None
    beta_max: float = 1.0
    norm: Norm = field(default_factory=Norm)
    gate: Literal["silu", "sigmoid"] | None = None
    gate_rank: int | None = None

    def __post_init__(self) -> None:
        if self.key_heads < 1 or self.value_heads % self.key_heads:
            raise DougongError(
                f"{self.value_heads} value_heads over {self.key_heads} key_heads; expected a multiple of the key heads"
            )

    def build(self, width: int) -> DeltaNetLayer:
        return DeltaNetLayer(self, width)

    def slots(self) -> Slots:
        shape = (self.value_heads, self.key_size, self.value_size)
        slots = {"memory": Slot(shape, per_token=False, dtype=torch.float32)}
        if self.convolution:
            sizes = zip(_CONVOLVED, self.channels(), strict=True)
            slots |= {f"{name}_past": past_slot(channels, self.convolution) for name, channels in sizes}
        return slots

    def channels(self) -> tuple[int, int, int]:
        """Sizes of all heads' queries, keys and values."""
        keys = self.key_heads * self.key_size
        return keys, keys, self.value_heads * self.value_size

    def parameters(self, width: int) -> int:
        count = self._products(width) + sum(self.channels()) * self.convolution + self.norm.parameters(self.value_size)
        return count + (self.decay.parameters(width, self.value_heads, self.key_size) if self.decay else 0)

    def flops(self, width: int, context: float) -> float:
        """Forward operations a token: the projections, the convolutions, and each head's two reads and one write."""
        matrices = self._products(width) + sum(self.channels()) * self.convolution
        if self.decay:
            matrices += self.decay.products(width, self.value_heads, self.key_size)
        return 2 * matrices + 6 * self.value_heads * self.key_size * self.value_size

    def _products(self, width: int) -> int:
        values = self.channels()[-1]
        gate = products(width, values, self.gate_rank) if self.gate else 0
        return width * (sum(self.channels()) + self.value_heads + values) + gate


class DeltaNetLayer(nn.Module):
    def __init__(self, spec: DeltaNet, width: int):
        super().__init__()
        self.spec = spec
        queries, keys, values = spec.channels()
        self.q = Linear(width, queries, axes=("embed", "heads"))
        self.k = Linear(width, keys, axes=("embed", "heads"))
        self.v = Linear(width, values, axes=("embed", "heads"))
        self.convolutions = nn.ModuleDict()
        if spec.convolution:
            for name, channels in zip(_CONVOLVED, spec.channels(), strict=True):
                self.convolutions[name] = CausalConv(channels, spec.convolution, activation=spec.activation)
        self.beta = Linear(width, spec.value_heads, axes=("embed", "heads"))
        self.decay = spec.decay.build(width, spec.value_heads, spec.key_size) if spec.decay else None
        self.gate = projection(width, values, spec.gate_rank) if spec.gate else None
        self.norm = spec.norm.build(spec.value_size)
        self.o = Linear(values, width, axes=("heads", "embed"))

    def forward(
        self, x: Float[Tensor, "B T D"], ctx: Context, state: LayerState | None = None
    ) -> Float[Tensor, "B T D"]:
        beta = self.spec.beta_max * self.beta(x).float().sigmoid()
        decay = x.new_zeros(*beta.shape, 1) if self.decay is None else self.decay(x)
        parts = (self.q(x), self.k(x), self.v(x), beta, decay)
        if state is None:
            y = each_document(lambda each: self.mix(self._convolve(each), each)[0], parts, ctx)
        else:
            check_one_way(ctx)
            convolved = self._convolve(parts, ctx, state)
            y, memory = self.mix(convolved, parts, state.read("memory"), ctx.real())
            state.write("memory", memory)
        gate = None if self.gate is None else self.gate(x)
        return self.o(finish(y, self.norm, "head", gate, self.spec.gate))

    def _convolve(
        self, parts: Sequence[Tensor], ctx: Context | None = None, state: LayerState | None = None
    ) -> Sequence[Tensor]:
        """Queries, keys and values (B, T, channels) through their convolutions, or through the activation alone."""
        if not self.convolutions:
            return [ACTIVATIONS[self.spec.activation](each) for each in parts[:3]]
        out = []
        for name, each in zip(_CONVOLVED, parts[:3], strict=True):
            convolution = self.convolutions[name]
            if state is None or ctx is None:
                y, _ = convolution(each)
            else:
                y, past = convolution(each, state.read(f"{name}_past"), ctx.counts)
                state.write(f"{name}_past", past)
            out.append(y)
        return out

    def mix(
        self,
        convolved: Sequence[Tensor],
        parts: Sequence[Tensor],
        memory: Float[Tensor, "B H d e"] | None = None,
        real: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T H e"], Float[Tensor, "B H d e"]]:
        """What each token reads, and the states after the last one."""
        spec, (q, k, v), (beta, decay) = self.spec, convolved, parts[3:]
        group = spec.value_heads // spec.key_heads
        q, k = (
            unit(each.unflatten(-1, (spec.key_heads, -1))).transpose(1, 2).repeat_interleave(group, 1)
            for each in (q, k)
        )
        v = v.unflatten(-1, (spec.value_heads, -1)).transpose(1, 2)
        y, memory = scan(q * spec.key_size**-0.5, k, v, decay.transpose(1, 2), beta.transpose(1, 2), memory, real)
        return y.transpose(1, 2), memory


def unit(x: Float[Tensor, "*N d"]) -> Float[Tensor, "*N d"]:
    """x / sqrt(sum x^2 + 1e-6): length 1, and 0 where x is 0."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()
