"""Adapters in the engine: every sequence may have one of its own, whatever shares its step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from dougong.base import DougongError, nearest
from dougong.model import Model
from dougong.tune import attached, using
from dougong.tune import rows as rows_of
from dougong.tune.insert import prompts_of
from dougong.tune.tuning import Units


def check_adapter(model: Model, name: str | None) -> None:
    """Raise DougongError for an adapter that is not attached, or cannot serve one text alone."""
    if not name:
        return
    there = attached(model)
    if name not in there:
        hint = nearest(name, there) if there else "; none is attached, leave `adapter` out"
        raise DougongError(f"there is no adapter {name!r}{hint}")
    if there[name].merged:
        raise DougongError(f"the adapter {name!r} is merged into the weights; unmerge it, or leave `adapter` out")
    rows_of(model, [name])


def virtual_ids(model: Model, name: str | None) -> list[int]:
    """Ids that stand before a text which the adapter serves: those of its soft prompt; none for other methods. None:
    those of all prompts that are on. An encoder-decoder's stand before the source, where `encode` puts them itself.

    Raises DougongError for prompts that are on together and have others between them.
    """
    if name == "" or model.encoder is not None:
        return []
    there = attached(model)
    served = there if name is None else {name: there[name]}
    return list(prompts_of({each: tuning for each, tuning in served.items() if tuning.on}, 1)[0])


@contextmanager
def adapted(model: Model, names: Sequence[str | None]) -> Iterator[None]:
    """Within, row i of a batch goes through the adapter names[i]: None for all that are on, "" for none."""
    if all(name is None for name in names):
        yield
        return
    device = model.like.device
    served = {name: [at for at, each in enumerate(names) if each is None or each == name] for name in attached(model)}
    choice = {
        name: Units(torch.tensor(own, dtype=torch.int64, device=device), len(names)) for name, own in served.items()
    }
    with using(model, choice):
        yield
