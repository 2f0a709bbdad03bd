"""Matrices of one type, for one type is all that can be multiplied with the same activations."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import reduce

import torch
from torch import Tensor

from dougong.model import Model
from dougong.parts.grouped import GroupedLinear, GroupedStorage
from dougong.parts.linear import Linear, Storage


def unify(model: Model, told: torch.dtype | None) -> None:
    """Where a file has matrices and their biases in several types of floats, make all the one that its config tells, as
    transformers does, or the widest. Other parameters (norms, decays, a router's correction) keep theirs: what is
    computed with them is brought to the type of the activations."""
    held = [each for each in _multiplied(model) if each.is_floating_point()]
    kinds = {each.dtype for each in held}
    if len(kinds) > 1:
        kind = told or reduce(torch.promote_types, kinds)
        for each in held:
            each.data = each.data.to(kind)
        found = ", ".join(sorted(str(each).removeprefix("torch.") for each in kinds))
        warnings.warn(f"the file has matrices of several types ({found}); all were made {kind}", stacklevel=4)


def _multiplied(model: Model) -> Iterator[Tensor]:
    for module in model.modules():
        weight = getattr(module, "weight", None) if isinstance(module, (Storage, GroupedStorage)) else None
        bias = module.bias if isinstance(module, (Linear, GroupedLinear)) else None
        yield from (each for each in (weight, bias) if each is not None)
