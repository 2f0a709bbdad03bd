"""Adapters with a bottleneck: up(act(down(x))) + biases, with `up` zero at the start.

Houlsby   y + adapter(y) behind each sublayer's output projection (Houlsby et al. 2019, arXiv 1902.00751)
Parallel  y + scale adapter(x) beside a projection, from its own input (He et al. 2021, arXiv 2110.04366)

On experts one bottleneck serves all of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dougong.parts.feedforward import ACTIVATIONS, Activation
from dougong.parts.grouped import GroupedLinear, Groups
from dougong.parts.linear import Linear
from dougong.tune.method import Method, at_least, experts_of, kind, sizes
from dougong.tune.places import Site
from dougong.tune.tuning import Plugin, Tuning


@dataclass(frozen=True)
class Houlsby(Method):
    """width: of the bottleneck."""

    tagged: ClassVar[bool] = True
    default: ClassVar[str] = "o down"
    kinds: ClassVar[tuple[type, ...]] = (Linear, GroupedLinear)

    width: int = 16
    activation: Activation = "gelu"

    def __post_init__(self) -> None:
        at_least(self, width=1)

    def plug(self, path: str, site: Site, tuning: Tuning, generator: torch.Generator) -> BottleneckPlugin:
        _, _, outputs = sizes(site)
        return BottleneckPlugin(tuning, site, outputs, outputs, self.width, self.activation, 1.0, generator)


@dataclass(frozen=True)
class Parallel(Method):
    """width: of the bottleneck. scale: of what it adds (the paper's s, 4)."""

    tagged: ClassVar[bool] = True
    default: ClassVar[str] = "up down"
    kinds: ClassVar[tuple[type, ...]] = (Linear, GroupedLinear)

    width: int = 16
    activation: Activation = "relu"
    scale: float = 4.0

    def __post_init__(self) -> None:
        at_least(self, width=1)

    def plug(self, path: str, site: Site, tuning: Tuning, generator: torch.Generator) -> BottleneckPlugin:
        _, inputs, outputs = sizes(site)
        return BottleneckPlugin(tuning, site, inputs, outputs, self.width, self.activation, self.scale, generator)


class BottleneckPlugin(Plugin):
    """down: (m, i), up: (o, m), their biases (m) and (o)."""

    def __init__(
        self,
        tuning: Tuning,
        site: Site,
        inputs: int,
        outputs: int,
        width: int,
        activation: Activation,
        scale: float,
        generator: torch.Generator,
    ):
        super().__init__(tuning)
        like = site.storage.dense()
        down = torch.empty(width, inputs).normal_(0.0, inputs**-0.5, generator=generator)
        self.down = nn.Parameter(down.to(like.device, kind(like)))
        self.down_bias = nn.Parameter(self.down.new_zeros(width))
        self.up = nn.Parameter(self.down.new_zeros(outputs, width))
        self.up_bias = nn.Parameter(self.down.new_zeros(outputs))
        self.activation, self.scale = activation, scale

    def change(self, layer: Any, x: Tensor, y: Tensor, groups: Groups | None = None) -> Tensor:
        read = y if isinstance(self.tuning.method, Houlsby) else x
        read = read if torch.is_autocast_enabled(read.device.type) else read.to(self.down.dtype)
        hidden = ACTIVATIONS[self.activation](F.linear(read, self.down, self.down_bias))
        added = self.scale * F.linear(hidden, self.up, self.up_bias)
        if groups is not None:  # rows of no expert stay 0
            added = added * experts_of(groups, len(y))[1]
        return y + added.to(y.dtype)
