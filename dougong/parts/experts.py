"""Mixture of experts: many feed-forwards, of which each token uses a few (Shazeer et al. 2017; Fedus et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dougong.base import DougongError
from dougong.parts import native
from dougong.parts.balance import counts
from dougong.parts.context import Context
from dougong.parts.feedforward import ACTIVATIONS, MLP, Activation, GatedMLP, dropped
from dougong.parts.grouped import GroupedDense, GroupedLinear, Groups
from dougong.parts.linear import Linear
from dougong.parts.router import Base, ExpertChoice, Hash, TopK
from dougong.parts.routing import Routing, combine, dispatch
from dougong.parts.shapes import Float
from dougong.parts.state import LayerState, Slots

# So few tokens with so many weights an expert read these faster in kernels of our own (docs/log.md).
FEW, MANY = 16, 1 << 17
PANEL = 48  # rows of one expert at a time, in experts.c
RouterSpec = TopK | ExpertChoice | Hash | Base


@dataclass(frozen=True)
class ClampedSwiGLU:
    """(clamp(up, -limit, limit) + 1) g sigmoid(alpha g) with g = min(gate, limit) (gpt-oss)."""

    alpha: float = 1.702
    limit: float = 7.0

    def __call__(self, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return (up + 1) * gate * torch.sigmoid(self.alpha * gate)


@dataclass(frozen=True)
class MoE:
    """y = sum over the token's experts of weight_e expert_e(x), plus what all tokens share.

    Each of `experts` is a feed-forward of `hidden`: down(act(gate(x)) * up(x)) where `gated`, else down(act(up(x))).
    dropout    share dropped before an expert's last product, in training
    top_k      experts that a token uses (the mean of them where experts choose)
    shared     a feed-forward for every token (DeepSeek-MoE), times sigmoid(w x) where `shared_gate` (Qwen2-MoE)
    """

    tagged: ClassVar[bool] = True

    experts: int
    top_k: int
    hidden: int
    router: RouterSpec = field(default_factory=TopK)
    activation: Activation | ClampedSwiGLU = "silu"
    gated: bool = True
    bias: bool = False
    shared: GatedMLP | MLP | None = None
    shared_gate: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= self.experts:
            raise DougongError(f"top_k is {self.top_k}; expected 1 to {self.experts}, the number of experts")
        if isinstance(self.activation, ClampedSwiGLU) and not self.gated:
            raise DougongError("ClampedSwiGLU multiplies a gate; set gated to true or choose another activation")
        if self.shared_gate and self.shared is None:
            raise DougongError("shared_gate is set, but there is nothing shared")

    def build(self, width: int) -> MoELayer:
        return MoELayer(self, width)

    def slots(self) -> Slots:
        return self.router.slots(self.experts)

    def expert(self) -> GatedMLP | MLP:
        """One expert as a feed-forward (of the usual activation): its costs are the costs of an expert."""
        usual = "silu" if isinstance(self.activation, ClampedSwiGLU) else self.activation
        return (GatedMLP if self.gated else MLP)(self.hidden, usual, self.bias)

    def _always(self, width: int) -> int:
        shared = self.shared.parameters(width) if self.shared else 0
        return self.router.parameters(width, self.experts) + shared + width * self.shared_gate

    def parameters(self, width: int) -> int:
        return self._always(width) + self.experts * self.expert().parameters(width)

    def active_parameters(self, width: int) -> int:
        """Parameters that one token touches."""
        return self._always(width) + self.top_k * self.expert().parameters(width)

    def flops(self, width: int, context: float) -> float:
        shared = self.shared.flops(width, context) if self.shared else 0
        chosen = self.top_k * self.expert().flops(width, context)
        return self.router.flops(width, self.experts) + chosen + shared + 2 * width * self.shared_gate


class ExpertsLayer(nn.Module):
    """All experts, over rows sorted by expert."""

    def __init__(self, spec: MoE, width: int):
        super().__init__()
        self.activation = spec.activation
        self.dropout = spec.dropout
        inner, outer = ("expert", "embed", "ffn"), ("expert", "ffn", "embed")
        self.gate = GroupedLinear(spec.experts, width, spec.hidden, spec.bias, inner) if spec.gated else None
        self.up = GroupedLinear(spec.experts, width, spec.hidden, spec.bias, inner)
        self.down = GroupedLinear(spec.experts, spec.hidden, width, spec.bias, outer)

    def forward(self, x: Float[Tensor, "P D"], groups: Groups) -> Float[Tensor, "P D"]:
        if self._plain(x):
            return self._in_turn(x, groups)
        up = self.up(x, groups)
        if isinstance(self.activation, ClampedSwiGLU):
            assert self.gate is not None
            inner = self.activation(self.gate(x, groups), up)
        else:
            act = ACTIVATIONS[self.activation]
            inner = act(up) if self.gate is None else act(self.gate(x, groups)) * up
        return self.down(dropped(inner, self.dropout, self.training), groups)

    def _plain(self, x: Tensor) -> bool:
        """Whether an expert may be run from end to end before the next: on a CPU, without a gradient, when nothing
        stands around its products."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
            return False
        if self.dropout and self.training:
            return False
        parts = [each for each in (self.gate, self.up, self.down) if each is not None]
        return x.device.type == "cpu" and all(
            isinstance(each.storage, GroupedDense) and not each.adapters and each.placement is None for each in parts
        )

    def _in_turn(self, x: Tensor, groups: Groups) -> Tensor:
        """Expert by expert: what stands between its products stays in the cache."""
        out, start = torch.empty_like(x), 0
        for expert, size in enumerate(groups.sizes):
            if size:
                out[start : start + size] = self._one(x[start : start + size], expert, GroupedLinear.one)
                start += size
        out[start:].zero_()
        return out

    def _one(self, x: Tensor, expert: int, product: Callable[[GroupedLinear, Tensor, int], Tensor]) -> Tensor:
        """Rows that all belong to one expert, where nothing is differentiated."""
        up = product(self.up, x, expert)
        gate = None if self.gate is None else product(self.gate, x, expert)
        if isinstance(self.activation, ClampedSwiGLU):
            assert gate is not None
            inner = self.activation(gate, up)
        elif self.activation == "silu":
            inner = F.silu(up, inplace=True) if gate is None else F.silu(gate, inplace=True).mul_(up)
        else:
            act = ACTIVATIONS[self.activation]
            inner = act(up) if gate is None else act(gate).mul_(up)
        return product(self.down, inner, expert)

    def directly(self, x: Float[Tensor, "N D"], routing: Routing) -> Float[Tensor, "N D"] | None:
        """The weighted sum in one call of a kernel of our own: sorting, products and adding up. None where it does not
        serve, or where its panels of rows are too few to go around among the threads."""
        pairs, (experts, *_) = len(routing.experts), self.up.weight.shape
        kernels = native.serving(x) if self._plain(x) else None
        if kernels is None or max(pairs // PANEL, min(pairs, experts)) < 2 * torch.get_num_threads():
            return None
        if isinstance(self.activation, ClampedSwiGLU):
            activation = self.activation.alpha, self.activation.limit
        elif self.activation in native.ACTIVATIONS:
            activation = self.activation
        else:
            return None
        gate, up, down = None if self.gate is None else self.gate.weight, self.up.weight, self.down.weight
        if not kernels.can_mix(x, (up, down) if gate is None else (gate, up, down)):
            return None
        biases = None if self.gate is None else self.gate.bias, self.up.bias, self.down.bias
        which = routing.tokens, routing.experts, routing.offsets, routing.weights.float()
        return kernels.experts(x, which, activation, (gate, up, down), biases)

    def few(self, x: Float[Tensor, "N D"], routing: Routing) -> Float[Tensor, "N D"] | None:
        """The weighted sum for a few tokens, without sorting; in float32, whatever the weights are kept in. None where
        that is not possible, or no sooner."""
        if len(x) > FEW or not self._plain(x) or self.up.weight[0].numel() < MANY:
            return None
        kernels, kinds = native.serving(x), {each.weight.dtype for each in (self.up, self.down)}
        if kernels is None or not kinds <= {torch.float32, torch.bfloat16}:
            return None

        def product(layer: GroupedLinear, x: Tensor, expert: int) -> Tensor:
            bias = None if layer.bias is None else layer.bias[expert].float()
            return kernels.linear(x, layer.weight[expert], bias)

        rows, out = x.float(), torch.zeros(x.shape, dtype=torch.float32)
        weights = routing.weights.float()
        pairs: dict[int, list[int]] = {}
        for pair, expert in enumerate(routing.experts.tolist()):
            pairs.setdefault(expert, []).append(pair)
        for expert, found in sorted(pairs.items()):
            if expert == self.up.experts:  # one past the last: dropped
                continue
            if len(x) == 1:  # then each expert has the token once
                out.addcmul_(self._one(rows, expert, product), weights[found[0]])
                continue
            chosen = torch.tensor(found)
            tokens = routing.tokens[chosen]
            out.index_add_(0, tokens, self._one(rows[tokens], expert, product) * weights[chosen, None])
        return out.to(x.dtype)


class MoELayer(nn.Module):
    def __init__(self, spec: MoE, width: int):
        super().__init__()
        self.spec = spec
        self.router = spec.router.build(width, spec.experts, spec.top_k)
        self.experts = ExpertsLayer(spec, width)
        self.shared = spec.shared.build(width) if spec.shared else None
        self.shared_gate = Linear(width, 1, axes=("embed", "one")) if spec.shared_gate else None

    def forward(
        self, x: Float[Tensor, "B T D"], ctx: Context, state: LayerState | None = None
    ) -> Float[Tensor, "B T D"]:
        routing = self.router(x, ctx, state)
        rows = x.flatten(0, 1)
        y = self.experts.directly(rows, routing)
        if y is None:
            y = self.experts.few(rows, routing)
        y = self._sorted(x, routing) if y is None else y.view(x.shape)
        if self.shared is not None:
            shared = self.shared(x, ctx)
            y = y + (shared if self.shared_gate is None else self.shared_gate(x).sigmoid() * shared)
        return y

    def _sorted(self, x: Tensor, routing: Routing) -> Tensor:
        order = routing.experts.argsort(stable=True)
        places = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        rows = dispatch(x.flatten(0, 1), routing, order, places)
        by_row = any(getattr(each, "by_row", False) for each in self.experts.children())
        origin = routing.tokens[order] if by_row else None
        groups = Groups(counts(routing.experts, self.spec.experts), origin, x.shape[0] * x.shape[1])
        return combine(self.experts(rows, groups), routing, order, places).view(x.shape)

    def extra_repr(self) -> str:
        return f"experts={self.spec.experts}, top_k={self.spec.top_k}"
