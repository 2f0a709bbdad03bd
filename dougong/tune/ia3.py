"""IA3 (Liu et al. 2022, arXiv 2205.05638): keys, values and the feed-forward's hidden numbers times trained vectors.

Keys and values are the outputs of their projections; the hidden numbers are the input of the one that leads down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dougong.parts.grouped import GroupedLinear, Groups
from dougong.parts.linear import Linear
from dougong.tune.method import Method, experts_of, kind, sizes
from dougong.tune.places import Site, matches
from dougong.tune.tuning import Plugin, Tuning, for_its_rows


@dataclass(frozen=True)
class IA3(Method):
    """inputs: patterns of the modules whose input is scaled; the others' output is."""

    tagged: ClassVar[bool] = True
    default: ClassVar[str] = "k v kv_up down"
    kinds: ClassVar[tuple[type, ...]] = (Linear, GroupedLinear)

    inputs: str = "down"

    def plug(self, path: str, site: Site, tuning: Tuning, generator: torch.Generator) -> IA3Plugin:
        experts, inputs, outputs = sizes(site)
        before = matches(path, self.inputs)
        like = site.storage.dense()
        size = inputs if before else outputs
        plug = IA3Plugin(tuning, torch.ones(*experts, size, dtype=kind(like), device=like.device), before)
        if before:
            assert isinstance(site, nn.Module)
            tuning.undo.append(site.register_forward_pre_hook(plug.before).remove)
        return plug


class IA3Plugin(Plugin):
    """scale: (o) or (i), or (E, ...) for experts."""

    def __init__(self, tuning: Tuning, scale: Tensor, inputs: bool):
        super().__init__(tuning)
        self.scale = nn.Parameter(scale)
        self.inputs = inputs

    def before(self, layer: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """What stands before a module whose input is scaled: the plug-in, on the input."""
        if self.tuning.name not in layer.adapters:  # merged
            return args
        x, *rest = args
        groups = rest[0] if rest else None
        return (for_its_rows(self.tuning, lambda _, y, groups: self.times(y, groups), x, x, groups), *rest)

    def change(self, layer: Any, x: Tensor, y: Tensor, groups: Groups | None = None) -> Tensor:
        return y if self.inputs else self.times(y, groups)

    def times(self, y: Tensor, groups: Groups | None) -> Tensor:
        scale = self.scale
        if groups is not None:
            scale = scale[experts_of(groups, len(y))[0]]
        return (y * scale).to(y.dtype)

    def merged(self, weight: Tensor, bias: Tensor | None, base: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.inputs:
            return weight * self.scale[..., None, :], bias
        return weight * self.scale[..., None], None if bias is None else bias * self.scale
