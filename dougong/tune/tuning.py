"""One attached adapter: what it put where, and whether, and for which rows of a batch, it speaks.

All plug-ins of an adapter share one `Tuning`: turning the adapter off or giving it some rows is one assignment,
whatever the number of its plug-ins.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from dougong.base import DougongError
from dougong.parts.grouped import Groups
from dougong.parts.shapes import Int


@dataclass(eq=False)
class Units:
    """The units of a step (rows of the batch, or its single tokens) that an adapter serves, of `total`.

    An input of N vectors, its leading dimensions flattened, holds N / total vectors of each unit, one unit after
    another.
    """

    chosen: Int[Tensor, " n"]
    total: int
    kept: dict[int, Tensor] = field(default_factory=dict)

    def rows(self, count: int) -> Int[Tensor, " m"]:
        """Which of `count` vectors belong to the chosen units. Raises DougongError where units cannot be told apart."""
        if count % self.total:
            raise DougongError(
                f"a layer met {count} vectors, but adapters were given for {self.total} rows; give a name for every "
                "row of the batch, or for every token of a packed step"
            )
        if count not in self.kept:
            each = count // self.total
            steps = torch.arange(each, device=self.chosen.device)
            self.kept[count] = (self.chosen[:, None] * each + steps).flatten()
        return self.kept[count]

    def mask(self, groups: Groups) -> Tensor:
        """(P, 1) bool: which rows of a mixture of experts come from tokens of the chosen units."""
        assert groups.tokens is not None
        inside = torch.zeros(groups.total, dtype=torch.bool, device=self.chosen.device)
        inside[self.rows(groups.total)] = True
        return inside[groups.tokens][:, None]


@dataclass(eq=False)
class Swap:
    """An attribute of a module that stands for another: a storage, a bias, a norm's weight."""

    module: nn.Module
    name: str
    old: Any
    new: Any

    def put(self, new: bool) -> None:
        setattr(self.module, self.name, self.new if new else self.old)


@dataclass(eq=False)
class Tuning:
    """An adapter by its name: the method, its plug-ins by the paths of the modules they sit on, and swapped parts.

    units    rows of the batch that it serves; None: all
    shared   tensors that all its plug-ins read and nothing trains (VeRA's projections)
    frozen   parameters that were trained before it came
    merged   whether its change is in the weights; merges: these weights and those before, with the first of several
    ids      virtual token ids of a prompt
    undo     what detaching calls besides (hooks)
    """

    name: str
    method: Any
    plugs: dict[str, Plugin] = field(default_factory=dict)
    swaps: list[Swap] = field(default_factory=list)
    also: dict[str, Swap] = field(default_factory=dict)  # swapped parameters by their plain names
    shared: dict[str, Tensor] = field(default_factory=dict)
    frozen: list[nn.Parameter] = field(default_factory=list)
    on: bool = True
    units: Units | None = None
    ids: range = range(0)
    merged: bool = False
    merges: list[Swap] = field(default_factory=list)
    undo: list[Callable[[], None]] = field(default_factory=list)

    def turn(self, on: bool) -> None:
        """Switch the adapter on or off."""
        if on != self.on:
            self.on = on
            for swap in self.swaps:
                swap.put(on)

    def parameters(self) -> dict[str, nn.Parameter]:
        """What the adapter consists of, by path and name, each parameter once."""
        out: dict[str, nn.Parameter] = {}
        for path, plug in self.plugs.items():
            out |= {f"{path}.{name}": parameter for name, parameter in plug.named_parameters()}
        for name, swap in self.also.items():
            out[name] = swap.new if isinstance(swap.new, nn.Parameter) else swap.new.weight
        return out


class Plugin(nn.Module, ABC):
    """What an adapter puts on one Linear, GroupedLinear or embedding."""

    def __init__(self, tuning: Tuning):
        super().__init__()
        self.tuning = tuning

    @abstractmethod
    def change(self, layer: Any, x: Tensor, y: Tensor, groups: Groups | None = None) -> Tensor:
        """The layer's output with the adapter, from its input and its output so far. Rows do not know each other.

        x: (N, i), or token ids (N) on an embedding; y: (N, o). On experts the rows are sorted by `groups`.
        """

    def instead(self, layer: Any, x: Tensor) -> Tensor | None:
        """The layer's product with the change in it, where one computation of both is sooner than `change` after the
        product; None: it is not. Asked where the adapter serves all rows of a Linear."""
        return None

    def merged(self, weight: Tensor, bias: Tensor | None, base: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weight (o, i) or (E, o, i), float32, and bias of one layer that gives what the adapted one does.

        base: the weight without any adapter. Raises DougongError where the method has no such weight.
        """
        raise DougongError(f"{type(self.tuning.method).__name__} is no change of a weight: it cannot be merged")

    @property
    def by_row(self) -> bool:
        return self.tuning.on and self.tuning.units is not None

    def whole(self, layer: Any, x: Tensor) -> Tensor | None:
        return self.instead(layer, x) if self.tuning.on and self.tuning.units is None else None

    def forward(self, layer: Any, x: Tensor, y: Tensor, groups: Groups | None = None) -> Tensor:
        return for_its_rows(self.tuning, lambda x, y, groups: self.change(layer, x, y, groups), x, y, groups)


def for_its_rows(
    tuning: Tuning,
    change: Callable[[Tensor, Tensor, Groups | None], Tensor],
    x: Tensor,
    y: Tensor,
    groups: Groups | None,
) -> Tensor:
    """y, changed in the rows that the adapter serves: all, some, or none while it is off."""
    if not tuning.on:
        return y
    if tuning.units is None:
        return change(x, y, groups)
    if not len(tuning.units.chosen):
        return y
    if groups is not None:
        return torch.where(tuning.units.mask(groups), change(x, y, groups), y)
    flat = y.flatten(0, -2)
    rows = tuning.units.rows(len(flat))
    inputs = x.flatten() if x.ndim < y.ndim else x.flatten(0, -2)
    return flat.index_copy(0, rows, change(inputs[rows], flat[rows], None).to(flat.dtype)).view(y.shape)


def tunings(model: nn.Module) -> dict[str, Tuning]:
    """The adapters of a model by name, in the order in which they came."""
    if "tunings" not in model.__dict__:
        model.__dict__["tunings"] = {}
    return cast("dict[str, Tuning]", model.__dict__["tunings"])


def tuning_named(model: nn.Module, name: str) -> Tuning:
    """Raises DougongError that lists the adapters there are."""
    there = tunings(model)
    if name not in there:
        raise DougongError(f"there is no adapter {name!r}; attached: {', '.join(there) or 'none'}")
    return there[name]


def all_tunings(module: nn.Module) -> list[Tuning]:
    """The adapters of all models inside a module, or of the model itself."""
    return [tuning for each in module.modules() for tuning in each.__dict__.get("tunings", {}).values()]


def held(module: nn.Module) -> set[int]:
    """ids of the parameters that adapters keep frozen: no update changes them, so no checkpoint needs them."""
    found = all_tunings(module)
    moving = {id(tensor) for tuning in found for name, tensor in tuning.shared.items() if name.startswith("moves:")}
    cold = {id(each) for tuning in found for each in tuning.frozen if not each.requires_grad}
    originals = {id(each) for tuning in found for swap in tuning.swaps for each in _parameters(swap.old)}
    return (cold | originals) - moving


def _parameters(part: Any) -> list[nn.Parameter]:
    return list(part.parameters()) if isinstance(part, nn.Module) else [part]


def rates(module: nn.Module) -> dict[int, float]:
    """Factors of learning rates, by the ids of parameters; 1 where there is none."""
    return {id(each): rate for tuning in all_tunings(module) for each, rate in tuning.method.rates(tuning).items()}


def sides(module: nn.Module, steps: int) -> list[Any]:
    """What the methods do around each of `steps` updates (`method.Side`)."""
    made = [tuning.method.side(tuning, steps) for tuning in all_tunings(module)]
    return [side for side in made if side is not None]
