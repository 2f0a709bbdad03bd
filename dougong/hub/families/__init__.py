"""Model families: each a module that turns its config.json into a spec and back, and names its tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any, Protocol, final, runtime_checkable

from dougong.base import DougongError
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


@final
@dataclass(frozen=True)
class _Headed:
    """A family, with the names of heads for tasks, which are the same on decoders of all families."""

    module: Family

    def from_config(self, config: Mapping[str, Any]) -> ModelSpec:
        return self.module.from_config(config)

    def to_config(self, spec: ModelSpec) -> dict[str, Any]:
        return self.module.to_config(spec)

    def keys(self, spec: ModelSpec) -> KeyMap:
        from dougong.hub.families.tasks import decoder_task_keys

        keys = self.module.keys(spec)
        named = any(own.startswith("task.") for rule in keys.rules for own in rule.own)
        return keys if named or not spec.causal or spec.encoder is not None else decoder_task_keys(spec, keys)


class _Families(Mapping[str, Family]):
    """Modules by config.json's model_type, imported when first asked for."""

    def __init__(self, modules: Mapping[str, str]):
        self._modules = modules

    def __getitem__(self, name: str) -> Family:
        family = import_module(f"{__name__}.{self._modules[name]}")
        assert isinstance(family, Family)
        return _Headed(family)

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)


# model_type: module, in the order in which a spec without a family is offered to them.
FAMILIES = _Families(
    {
        "llama": "llama",
        "mistral": "mistral",
        "qwen2": "qwen2",
        "qwen3": "qwen3",
        "gpt2": "gpt2",
        "mixtral": "mixtral",
        "qwen2_moe": "qwen2_moe",
        "qwen3_moe": "qwen3_moe",
        "glm4_moe": "glm4_moe",
        "minimax_m2": "minimax_m2",
        "gpt_oss": "gpt_oss",
        "gemma": "gemma",
        "gemma2": "gemma2",
        "gemma3_text": "gemma3_text",
        "phi3": "phi3",
        "gpt_neox": "gpt_neox",
        "nanochat": "nanochat",
        "glm": "glm",
        "glm4": "glm4",
        "olmo": "olmo",
        "olmo2": "olmo2",
        "olmo3": "olmo3",
        "falcon": "falcon",
        "bloom": "bloom",
        "mpt": "mpt",
        "baichuan": "baichuan",
        "mamba": "mamba",
        "mamba2": "mamba2",
        "rwkv": "rwkv",
        "jamba": "jamba",
        "deepseek_v2": "deepseek_v2",
        "deepseek_v3": "deepseek_v3",
        "deepseek_v32": "deepseek_v32",
        "qwen3_next": "qwen3_next",
        "qwen3_5_text": "qwen3_5",
        "qwen3_5_moe_text": "qwen3_5",
        "minimax": "minimax",
        "kimi_linear": "kimi_linear",
        "bert": "bert",
        "roberta": "roberta",
        "modernbert": "modernbert",
        "t5": "t5",
        "bart": "bart",
        "switch_transformers": "switch_transformers",
    }
)


def family_named(name: Any, where: str = "") -> Family:
    """Raises DougongError that lists the known families."""
    if name not in FAMILIES:
        known, close = ", ".join(FAMILIES), get_close_matches(str(name), FAMILIES, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise DougongError(f"{where}{': ' if where else ''}model_type {name!r} is not supported; known: {known}{hint}")
    return FAMILIES[name]


def family_for(spec: ModelSpec) -> str:
    """The first family that can express the spec. Raises DougongError when none can, with the objections of those that
    have its kinds of layers, a few of them."""
    objections = []
    for name, family in FAMILIES.items():
        try:
            family.to_config(spec)
        except DougongError as error:
            objections.append(str(error))
        else:
            return name
    near = [each for each in objections if "it would be read as" in each] or objections
    rest = f"; and {len(objections) - 4} other families" if len(objections) > 4 else ""
    raise DougongError("no known family can express this model: " + "; ".join(near[:4]) + rest)


def harmless(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config.json that says nothing about the computation, kept to be written again."""
    return {key: value for key, value in config.items() if key in HARMLESS}


__all__ = ["FAMILIES", "Family", "family_for", "family_named", "harmless"]
