"""How several own weights lie in one foreign tensor. Each layout gives the foreign shape and goes both ways exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

Shape = tuple[int, ...]


@runtime_checkable
class Layout(Protocol):
    def shape(self, shapes: Sequence[Shape]) -> Shape:
        """The foreign tensor's shape, from those of its pieces."""
        ...

    def split(self, whole: Tensor, shapes: Sequence[Shape]) -> Sequence[Tensor]:
        """The pieces, as views where possible."""
        ...

    def join(self, parts: Sequence[Tensor]) -> Tensor: ...


@dataclass(frozen=True)
class Concat:
    """Pieces one after another along a dimension."""

    dim: int = 0

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        whole = list(shapes[0])
        whole[self.dim] = sum(shape[self.dim] for shape in shapes)
        return tuple(whole)

    def split(self, whole: Tensor, shapes: Sequence[Shape]) -> Sequence[Tensor]:
        return whole.split([shape[self.dim] for shape in shapes], self.dim)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return parts[0] if len(parts) == 1 else torch.cat(list(parts), self.dim)


@dataclass(frozen=True)
class Groups:
    """Pieces in turn, group by group: sizes[j] rows of piece j, for each group, along a dimension.

    GPT-NeoX has (d, d, d), a group a head; Falcon (q a group * d, d, d), a group a key head; gate and up rows in turn
    are (1, 1).
    """

    sizes: tuple[int, ...]
    dim: int = 0

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        return Concat(self.dim).shape(shapes)

    def split(self, whole: Tensor, shapes: Sequence[Shape]) -> Sequence[Tensor]:
        parts = whole.unflatten(self.dim, (-1, sum(self.sizes))).split(list(self.sizes), self.dim + 1)
        return [part.flatten(self.dim, self.dim + 1) for part in parts]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        pieces = [part.unflatten(self.dim, (-1, size)) for part, size in zip(parts, self.sizes, strict=True)]
        return torch.cat(pieces, self.dim + 1).flatten(self.dim, self.dim + 1)


@dataclass(frozen=True)
class Permuted:
    """One piece whose rows are reordered within each block of len(order): foreign row i is own row order[i]."""

    order: tuple[int, ...]

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        return shapes[0]

    def split(self, whole: Tensor, shapes: Sequence[Shape]) -> Sequence[Tensor]:
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return [whole.unflatten(0, (-1, len(self.order)))[:, back].flatten(0, 1)]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return parts[0].unflatten(0, (-1, len(self.order)))[:, list(self.order)].flatten(0, 1)


@dataclass(frozen=True)
class Viewed:
    """One piece under another shape; -1 stands for the dimension that fits."""

    form: Shape

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        return tuple(torch.empty(shapes[0], device="meta").view(self.form).shape)

    def split(self, whole: Tensor, shapes: Sequence[Shape]) -> Sequence[Tensor]:
        return [whole.reshape(shapes[0])]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return parts[0].reshape(self.form)
