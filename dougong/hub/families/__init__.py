"""Model families: each a module that turns its config.json into a spec and back, and names its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from dougong.base import DougongError
from dougong.hub.families import gpt2, llama, mistral, qwen2, qwen3
from dougong.hub.families.reader import HARMLESS
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec


@runtime_checkable
class Family(Protocol):
    """What the module of a family offers. Errors are DougongErrors that name the key or the part of the spec."""

    def from_config(self, config: Mapping[str, Any]) -> ModelSpec:
        """The spec that a config.json describes; refuses keys that it does not understand."""
        ...

    def to_config(self, spec: ModelSpec) -> dict[str, Any]:
        """A config.json that `from_config` reads back as the same spec; refuses what the family cannot express."""
        ...

    def keys(self, spec: ModelSpec) -> KeyMap:
        """The family's names for the weights of such a model."""
        ...


# In the order in which a spec without a family is offered to them; the key is config.json's model_type.
FAMILIES: dict[str, Family] = {"llama": llama, "mistral": mistral, "qwen2": qwen2, "qwen3": qwen3, "gpt2": gpt2}


def family_named(name: Any, where: str = "") -> Family:
    """Raises DougongError that lists the known families."""
    if name not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise DougongError(f"{where}{': ' if where else ''}model_type {name!r} is not supported; known: {known}")
    return FAMILIES[name]


def family_for(spec: ModelSpec) -> str:
    """The first family that can express the spec. Raises DougongError with each one's objection when none can."""
    objections = []
    for name, family in FAMILIES.items():
        try:
            family.to_config(spec)
        except DougongError as error:
            objections.append(str(error))
        else:
            return name
    raise DougongError("no known family can express this model: " + "; ".join(objections))


def harmless(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config.json that says nothing about the computation, kept to be written again."""
    return {key: value for key, value in config.items() if key in HARMLESS}


__all__ = ["FAMILIES", "Family", "family_for", "family_named", "harmless"]
