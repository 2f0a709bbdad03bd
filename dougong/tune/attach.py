"""Adapters on and off a model: attach, detach, disabled, and rows of one batch with adapters of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dougong.base import DougongError
from dougong.tune.method import Method
from dougong.tune.places import Patterns, matches
from dougong.tune.swap import parameter_names, retie, swap_in
from dougong.tune.tuning import Tuning, Units, tuning_named, tunings

if TYPE_CHECKING:
    from dougong.hub import LanguageModel
    from dougong.model import Model

    Adapted = LanguageModel | Model


def model_of(lm: Any) -> Any:
    """The module of a LanguageModel, or the module itself."""
    return lm if isinstance(lm, nn.Module) else lm.model


def attach(
    lm: Adapted,
    method: Method,
    match: Patterns | None = None,
    name: str = "default",
    *,
    also: Patterns = (),
    seed: int = 0,
) -> Tuning:
    """Put an adapter on a model; from then on only the adapter is trained.

    match   patterns on module paths that choose where it goes (`places.matches`); None: the method's own choice
    also    patterns of modules that are trained whole beside it, as copies (PEFT's modules_to_save)
    seed    of the numbers that it starts from, drawn from a generator of their own

    Raises DougongError for a name in use, patterns that fit nothing, and modules that the method cannot go on.
    """
    model = model_of(lm)
    places, extra = method.places(model, match), named_also(model, also)
    tuning = Tuning(name, method)

    def put() -> None:
        method.install(model, places, tuning, torch.Generator().manual_seed(seed))
        swap_in(model, tuning, [each for each in extra if each not in tuning.also])

    return adopt(model, tuning, put)


def adopt(model: Model, tuning: Tuning, put: Callable[[], None]) -> Tuning:
    """Freeze the model and take `tuning` in, whose plug-ins and swaps `put` makes; if that fails, nothing is changed.

    Raises DougongError for a name that is in use or cannot be used.
    """
    there, name = tunings(model), tuning.name
    if name in there:
        raise DougongError(f"an adapter named {name!r} is attached already; detach it or choose another name")
    if not name or "." in name or hasattr(nn.ModuleDict(), name):
        raise DougongError(f"an adapter cannot be named {name!r}; choose a plain word")
    if merged := [other for other in there.values() if other.merged]:
        raise DougongError(f"the adapter {merged[0].name!r} is merged; unmerge or detach it first")
    own = {id(parameter) for other in there.values() for parameter in other.parameters().values()}
    tuning.frozen = [each for each in model.parameters() if each.requires_grad and id(each) not in own]
    for parameter in tuning.frozen:
        parameter.requires_grad_(False)
    there[name] = tuning
    try:
        put()
        plug_in(model, tuning)
    except BaseException:
        _remove(model, tuning)
        raise
    return tuning


def named_also(model: Model, also: Patterns) -> list[str]:
    """The parameters of the modules that the patterns fit. Raises DougongError where they fit none."""
    if not also:
        return []
    names = [name for name in parameter_names(model) if matches(name.rpartition(".")[0], also)]
    if not names:
        raise DougongError(f"also {also!r} fits no module of this model that has parameters of its own")
    return names


def plug_in(model: Model, tuning: Tuning) -> None:
    for path, plug in tuning.plugs.items():
        module: Any = model.get_submodule(path)
        plug.train(module.training)
        module.adapters[tuning.name] = plug


def plug_out(model: Model, tuning: Tuning) -> None:
    for path in tuning.plugs:
        adapters: Any = model.get_submodule(path).adapters
        if tuning.name in adapters:
            del adapters[tuning.name]


def detach(lm: Adapted, name: str = "default") -> Tuning:
    """Take an adapter off: the model is what it was before, and trained as before where no other adapter is left.

    A merged adapter's change stays in the weights. Methods that train the model's own weights in place (`Full`,
    `Frozen`, `DeltaLoRA`) leave them trained. Raises DougongError for an unknown name.
    """
    model = model_of(lm)
    tuning = tuning_named(model, name)
    _remove(model, tuning)
    return tuning


def _remove(model: Model, tuning: Tuning) -> None:
    there = tunings(model)
    if not tuning.merged:
        tuning.turn(False)
    there.pop(tuning.name, None)
    plug_out(model, tuning)
    for undo in tuning.undo:
        undo()
    tuning.undo.clear()
    for parameter in tuning.parameters().values():
        parameter.requires_grad_(True)
    if there:
        next(iter(there.values())).frozen.extend(tuning.frozen)
    else:
        for parameter in tuning.frozen:
            parameter.requires_grad_(True)
    retie(model)


def attached(lm: Adapted) -> dict[str, Tuning]:
    """The adapters of a model by name."""
    return dict(tunings(model_of(lm)))


@contextmanager
def disabled(lm: Adapted, names: Sequence[str] | None = None) -> Iterator[None]:
    """The model without its adapters (or without those named), such as the reference of a preference loss."""
    model = model_of(lm)
    chosen = list(tunings(model).values()) if names is None else [tuning_named(model, name) for name in names]
    if merged := [tuning for tuning in chosen if tuning.merged]:
        raise DougongError(f"the adapter {merged[0].name!r} is merged into the weights; unmerge it first")
    before = [tuning.on for tuning in chosen]
    for tuning in chosen:
        tuning.turn(False)
    retie(model)
    try:
        yield
    finally:
        for tuning, on in zip(chosen, before, strict=True):
            tuning.turn(on)
        retie(model)


Choice = dict[str, Units]


def rows(lm: Adapted, names: Sequence[str | None]) -> Choice:
    """Which rows of a batch each adapter serves; None: the base alone.

    names has an entry for every row of the batch, (B, T) tokens; or, where a step packs texts of different lengths
    into one row, for every token. To be made once for a batch and used with `using` in every step of it.
    """
    model = model_of(lm)
    device = model.like.device
    for name in dict.fromkeys(name for name in names if name is not None):
        tuning = tuning_named(model, name)
        if tuning.swaps or tuning.method.whole:
            raise DougongError(
                f"the adapter {name!r} trains weights of the model itself; it cannot serve some rows alone"
            )
    return {
        name: Units(
            torch.tensor([at for at, each in enumerate(names) if each == name], device=device, dtype=torch.int64),
            len(names),
        )
        for name in tunings(model)
    }


@contextmanager
def using(lm: Adapted, choice: Choice | Sequence[str | None]) -> Iterator[None]:
    """Within, each row of a batch goes through the adapter that `choice` gives it (`rows`), and through no other.

    The cost of an adapter is that of its own rows. Scopes nest: a head that reads some of a step's tokens stands in a
    scope with the names of those. Scopes belong to the model, not to a thread.
    """
    model = model_of(lm)
    choice = choice if isinstance(choice, dict) else rows(lm, choice)
    there = tunings(model)
    before = {name: tuning.units for name, tuning in there.items()}
    for name, tuning in there.items():
        tuning.units = choice.get(name)
    try:
        yield
    finally:
        for name, tuning in there.items():
            tuning.units = before.get(name)
