"""Linear attention: softmax's exponential replaced by a product of features, so that the past fits into one matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dougong.base import DougongError
from dougong.parts.context import Context
from dougong.parts.decay import Decay
from dougong.parts.feedforward import ACTIVATIONS, Activation
from dougong.parts.linear import Linear
from dougong.parts.linear_recurrence import CHUNK, scan
from dougong.parts.norm import Norm
from dougong.parts.position import NOWHERE
from dougong.parts.rope import Rope
from dougong.parts.segments import check_one_way, each_document
from dougong.parts.shapes import Bool, Float
from dougong.parts.state import LayerState, Slot, Slots

Feature = Activation | Literal["identity", "elu", "softmax"]

FEATURES: dict[str, Callable[[Tensor], Tensor]] = {
    **ACTIVATIONS,
    "identity": lambda x: x,
    "elu": lambda x: F.elu(x) + 1,
    "softmax": lambda x: x.softmax(-1),
}
GATES: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "sigmoid": torch.sigmoid}


@dataclass(frozen=True)
class LinearAttention:
    """S_t = exp(g_t) S_{t-1} + f(k_t) v_t^T, o_t = scale S_t^T f(q_t), for each head; then norm, gate and projection.

    - elu and normaliser: the transformer as an RNN (Katharopoulos et al. 2020); o_t is divided by sum_j f(q_t) f(k_j)
    - silu (of values too), fixed decay, norm over all heads, sigmoid gate: lightning attention as MiniMax-01 has it
    - Rope, fixed decay, norm of each head, silu gate: retention (Sun et al. 2023)
    - sigmoid decay, norm of each head, silu gate: GLA (Yang et al. 2023)
    """

    tagged: ClassVar[bool] = True

    heads: int
    key_size: int
    value_size: int
    feature: Feature = "elu"
    value_feature: Feature = "identity"
    normaliser: bool = False
    decay: Decay | None = None
    position: Rope | None = None
    scale: float = 1.0
    norm: Norm | None = None
    norm_over: Literal["head", "all"] = "head"
    gate: Literal["silu", "sigmoid"] | None = None
    chunk: int = CHUNK  # tokens worked on at once: a matter of speed alone

    def __post_init__(self) -> None:
        if self.normaliser and self.position is not None:
            raise DougongError("a normaliser needs features that stay positive; turned ones do not: drop the position")
        if self.chunk < 1:
            raise DougongError(f"chunk is {self.chunk}; expected at least 1 token")

    def build(self, width: int) -> LinearAttentionLayer:
        return LinearAttentionLayer(self, width)

    def slots(self) -> Slots:
        shape = (self.heads, self.key_size, self.value_size + self.normaliser)
        return {"memory": Slot(shape, per_token=False, dtype=torch.float32)}

    def parameters(self, width: int) -> int:
        count = self._products(width) + (self.norm.parameters(self.norm_size()) if self.norm else 0)
        if self.decay:
            count += self.decay.parameters(width, self.heads, self.key_size)
        return count

    def flops(self, width: int, context: float) -> float:
        """Forward operations a token: the projections, and one write to and one read from each head's matrix."""
        products = self._products(width)
        if self.decay:
            products += self.decay.products(width, self.heads, self.key_size)
        return 2 * products + 4 * self.heads * self.key_size * (self.value_size + self.normaliser)

    def _products(self, width: int) -> int:
        values = self.heads * self.value_size
        return width * (2 * self.heads * self.key_size + (3 if self.gate else 2) * values)

    def norm_size(self) -> int:
        return self.value_size * (self.heads if self.norm_over == "all" else 1)


class LinearAttentionLayer(nn.Module):
    def __init__(self, spec: LinearAttention, width: int):
        super().__init__()
        self.spec = spec
        keys, values = spec.heads * spec.key_size, spec.heads * spec.value_size
        self.q = Linear(width, keys, axes=("embed", "heads"))
        self.k = Linear(width, keys, axes=("embed", "heads"))
        self.v = Linear(width, values, axes=("embed", "heads"))
        self.gate = Linear(width, values, axes=("embed", "heads")) if spec.gate else None
        self.decay = spec.decay.build(width, spec.heads, spec.key_size) if spec.decay else None
        self.norm = spec.norm.build(spec.norm_size()) if spec.norm else None
        self.o = Linear(values, width, axes=("heads", "embed"))

    def forward(
        self, x: Float[Tensor, "B T D"], ctx: Context, state: LayerState | None = None
    ) -> Float[Tensor, "B T D"]:
        parts = self.project(x, ctx)
        if state is None:
            y = each_document(lambda each: self.mix(each)[0], parts, ctx)
        else:
            check_one_way(ctx)
            y, memory = self.mix(parts, state.read("memory"), ctx.real())
            state.write("memory", memory)
        gate = None if self.gate is None else self.gate(x)
        return self.o(finish(y, self.norm, self.spec.norm_over, gate, self.spec.gate))

    def project(self, x: Float[Tensor, "B T D"], ctx: Context) -> tuple[Tensor, ...]:
        """Features of queries and keys, turned to their positions, values, and log decays; (B, T, H, size) each."""
        spec = self.spec
        q, k, v = (each(x).unflatten(-1, (spec.heads, -1)) for each in (self.q, self.k, self.v))
        q, k, v = FEATURES[spec.feature](q), FEATURES[spec.feature](k), FEATURES[spec.value_feature](v)
        q, k = (each.transpose(1, 2) for each in (spec.position or NOWHERE).rotate(q, k, ctx))
        decay = x.new_zeros(*x.shape[:2], spec.heads, 1) if self.decay is None else self.decay(x)
        return spec.scale * q, k, v, decay

    def mix(
        self,
        parts: Sequence[Tensor],
        memory: Float[Tensor, "B H d m"] | None = None,
        real: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T H e"], Float[Tensor, "B H d m"]]:
        """What each token reads, and the matrices after the last one; `parts` as `project` gives them."""
        q, k, v, decay = (each.transpose(1, 2) for each in parts)
        if not self.spec.normaliser:
            y, memory = scan(q, k, v, decay, None, memory, real, self.spec.chunk)
            return y.transpose(1, 2), memory
        # One more value, always 1, sums the keys.
        y, memory = scan(q, k, F.pad(v, (0, 1), value=1.0), decay, None, memory, real, self.spec.chunk)
        y = y.transpose(1, 2)
        return y[..., :-1] / (y[..., -1:] + 1e-6), memory


def finish(
    y: Float[Tensor, "B T H e"],
    norm: nn.Module | None,
    over: Literal["head", "all"],
    gate: Float[Tensor, "B T v"] | None,
    activation: str | None,
) -> Float[Tensor, "B T v"]:
    """The heads side by side, normalised (each alone or all together) and gated."""
    if norm is not None and over == "head":
        y = norm(y)
    y = y.flatten(2)
    if norm is not None and over == "all":
        y = norm(y)
    return y if gate is None or activation is None else y * GATES[activation](gate)
