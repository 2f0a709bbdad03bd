"""A model in evaluation mode while the engine runs it: rollouts come in the middle of training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within, no module trains; afterwards all are as they were."""
    training = [module.__dict__ for module in modules(model) if module.training]
    for each in training:  # a module's own way to set an attribute takes milliseconds for all of them
        each["training"] = False
    try:
        yield
    finally:
        for each in training:
            each["training"] = True


def modules(model: nn.Module) -> list[nn.Module]:
    """All modules, each once. `Module.modules` and `eval` ask every module by several calls: milliseconds a request."""
    found, seen, left = [], set[int](), [model]
    while left:
        module = left.pop()
        if id(module) not in seen:
            seen.add(id(module))
            found.append(module)
            left += [each for each in module._modules.values() if each is not None]
    return found
