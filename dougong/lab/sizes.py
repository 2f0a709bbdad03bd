"""Models of equal size: the feed-forward takes what the mixer leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dougong.base import DougongError
from dougong.model import ModelSpec


def filled(made: Mapping[str, Callable[[int], ModelSpec]], parameters: int) -> dict[str, ModelSpec]:
    """Of each model, a function of its feed-forward's columns, the one whose parameters are nearest to that many.

    Raises DougongError when one has more without any feed-forward to speak of.
    """
    specs = {}
    for name, make in made.items():
        least = make(1).parameters()
        if least > parameters:
            raise DougongError(f"{name} has {least:,} parameters with one column; {parameters:,} are too few")
        specs[name] = make(1 + round((parameters - least) / (make(2).parameters() - least)))
    return specs
