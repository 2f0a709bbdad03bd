"""Fusing: an inference transform. Checkpoints, and models that are trained, keep their matrices apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from dougong.parts.frozen import FrozenStorage
from dougong.parts.fused import Fusable, Part, Whole
from dougong.parts.linear import Dense, Linear

if TYPE_CHECKING:
    from dougong.hub import LanguageModel


def fuse(lm: LanguageModel) -> int:
    """Give Linears that read the same input one matrix, in place. Returns how many matrices became fewer.

    Their names, biases and adapters stay, but they no longer learn: what was fused is frozen. Adapters still train.
    Linears that are sharded or kept in different forms are left alone. Quantised matrices become what quantising the
    fused one would have given, before or after. One matrix exists twice at a time.
    """
    saved = 0
    for module in list(lm.model.modules()):
        if isinstance(module, Fusable):
            for linears in module.siblings():
                saved += fuse_linears(linears)
    return saved


def fuse_linears(linears: Sequence[Linear]) -> int:
    """One matrix for these Linears; 0 where that is done already or cannot be."""
    storages = [each.storage for each in linears]
    if any(isinstance(each, Part) for each in storages) or any(each.placement is not None for each in linears):
        return 0
    if len({type(each) for each in storages}) > 1:
        return 0
    first = storages[0]
    if isinstance(first, FrozenStorage):
        joined = first.joined(storages)
    elif isinstance(first, Dense):
        weights = [each.dense().detach() for each in storages]
        if len({(each.dtype, each.device) for each in weights}) > 1:
            return 0
        joined = dense_of(torch.cat(weights))
    else:
        return 0
    Whole(joined, linears).take_over()
    for each in linears:
        if each.bias is not None:
            each.bias.requires_grad_(False)
    return len(linears) - 1


def dense_of(weight: torch.Tensor) -> Dense:
    """A frozen matrix as it is."""
    made = Dense.__new__(Dense)
    nn.Module.__init__(made)
    made.weight = nn.Parameter(weight, requires_grad=False)
    return made
