"""adapter_config.json of PEFT: what its keys mean here, and the refusal of those that would change the computation."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from dougong.base import DougongError

# Keys that say nothing about what a stored adapter computes.
_SAID = {
    "task_type", "peft_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version",
    "target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern", "fan_in_fan_out",
}  # fmt: skip
_LORA = {
    "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "bias",
    "init_lora_weights", "lora_bias", "megatron_core", "runtime_config", "qalora_group_size", "eva_config",
}  # fmt: skip
_PROMPT = {"num_virtual_tokens", "token_dim", "num_attention_heads", "num_layers"}
_KNOWN: dict[str, set[str]] = {
    "LORA": _SAID | _LORA,
    "ADALORA": (_SAID | _LORA | {
        "target_r", "init_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step",
    }) - {"use_rslora", "use_dora", "lora_bias"},
    "VERA": _SAID | {
        "r", "projection_prng_key", "save_projection", "vera_dropout", "d_initial", "bias", "init_weights",
    },
    "IA3": _SAID | {"feedforward_modules", "init_ia3_weights"},
    "PROMPT_TUNING": _SAID | _PROMPT | {
        "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs",
    },
    "P_TUNING": _SAID | _PROMPT | {
        "encoder_reparameterization_type", "encoder_hidden_size", "encoder_num_layers", "encoder_dropout",
    },
    "PREFIX_TUNING": _SAID | _PROMPT | {"encoder_hidden_size", "prefix_projection", "init_weights"},
}  # fmt: skip
# Starts that leave the base weights alone; others (PiSSA, OLoRA, LoftQ, CorDA) store a change of them elsewhere.
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


def check(config: Mapping[str, Any], where: str) -> str:
    """The peft_type. Raises DougongError for a type that is not known, for a key that would change the computation in a
    way that is not known here, by its name, and for a value that is not of its key's kind."""
    kind = config.get("peft_type")
    if kind not in _KNOWN:
        raise DougongError(f"{where}: peft_type {kind!r} is not supported; known: {', '.join(_KNOWN)}")
    neutral = {"num_transformer_submodules": (None, 1)}
    for key, value in config.items():
        if key not in _KNOWN[kind] and value not in neutral.get(key, (None, False, [], {}, "")):
            raise DougongError(
                f"{where}: {key} is {value!r}, which {kind} here does not know; it would compute otherwise"
            )
    if config.get("init_lora_weights", True) not in _STARTS:
        raise DougongError(
            f"{where}: init_lora_weights is {config['init_lora_weights']!r}, which changes the base weights too; save "
            "the adapter as plain LoRA (PEFT's path_initial_model_for_weight_conversion)"
        )
    if config.get("bias", "none") not in ("none", "all", "lora_only", "vera_only"):
        raise DougongError(f"{where}: bias is {config['bias']!r}; expected none, all, lora_only or vera_only")
    _check_values(config, where)
    return str(kind)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _expression(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        re.compile(value)
    except re.error:
        return False
    return True


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _chosen(value: Any) -> bool:
    return value is None or _names(value) or _expression(value)


def _places(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return value is None or all(isinstance(each, int) and not isinstance(each, bool) for each in values)


def _pattern_of(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def fits(value: Any) -> bool:
        return value is None or (
            isinstance(value, dict) and all(_expression(key) and kind(each) for key, each in value.items())
        )

    return fits


_WHOLE, _CHOICE = "a whole number above 0", "names of modules or a regular expression"
# Keys that are read, what may stand there, and how it is called. AdaLoRA's rank_pattern is another thing.
_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": (_whole, _WHOLE),
    "init_r": (_whole, _WHOLE),
    "lora_alpha": (_number, "a number"),
    "lora_dropout": (_number, "a number"),
    "vera_dropout": (_number, "a number"),
    "lora_bias": (lambda value: value is None or isinstance(value, bool), "true or false"),
    "alpha_pattern": (_pattern_of(_number), "an object of numbers by regular expressions"),
    "target_modules": (_chosen, _CHOICE),
    "exclude_modules": (_chosen, _CHOICE),
    "feedforward_modules": (_chosen, _CHOICE),
    "modules_to_save": (lambda value: value is None or _names(value), "names of modules"),
    "layers_to_transform": (_places, "numbers of layers"),
}


def _check_values(config: Mapping[str, Any], where: str) -> None:
    values = dict(_VALUES)
    if config["peft_type"] == "LORA":
        values["rank_pattern"] = (_pattern_of(_whole), "an object of whole numbers by regular expressions")
    for key, (fits, expected) in values.items():
        if key in config and not fits(config[key]):
            raise DougongError(f"{where}: {key} is {config[key]!r}; expected {expected}")


def targeted(config: Mapping[str, Any], module: str) -> bool:
    """Whether target_modules (names, the ends of names, or a regular expression) asks for a module."""
    wanted, without = config.get("target_modules"), config.get("exclude_modules")
    if without and _asked(without, module):
        return False
    return wanted in (None, "all-linear") or _asked(wanted, module)


def _asked(wanted: Any, module: str) -> bool:
    if isinstance(wanted, str):
        return re.fullmatch(wanted, module) is not None
    return any(module == each or module.endswith(f".{each}") for each in wanted)


def by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """PEFT's rule for rank_pattern and alpha_pattern: the first key that is a regular expression for the name's end."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """s of one LoRA module of that rank."""
    alpha = by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def targets(modules: list[str], all_modules: list[str]) -> list[str]:
    """target_modules for exactly these: last names where all modules of the name are among them, else whole names."""
    out = []
    for module in modules:
        last = module.rpartition(".")[2]
        alike = [each for each in all_modules if each.rpartition(".")[2] == last]
        out.append(last if all(each in modules for each in alike) else module)
    return list(dict.fromkeys(out))
