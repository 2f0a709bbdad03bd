"""Mamba-2 (Dao & Gu 2024): nothing but state space dual layers (Codestral-Mamba too).

Semantics: transformers' modeling_mamba2, which multiplies with the gate before the norm whatever norm_before_gate says,
and normalises each group alone.
"""

from __future__ import annotations

import math
from typing import Any

from dougong.hub.families.fields import Given, Key, Keys, activation, flag, integer, repeated, usually
from dougong.hub.families.names import spelled
from dougong.hub.families.reader import Reader
from dougong.hub.families.ssm import OUTSIDE, WITHOUT_EFFECT, backbone, expand
from dougong.hub.families.table import Table
from dougong.hub.keymap import KeyMap, Rule
from dougong.model.spec import ModelSpec
from dougong.parts.ssd import Mamba2

FAMILY = "mamba2"
INFINITY = {"__float__": "Infinity"}


def _read_steps(reader: Reader, key: str, usual: None) -> tuple[float, float | None]:
    """The least and the largest time step; infinity (None) is spelled in several ways."""
    given = reader.raw(key) if key in reader else [0.0, None]
    steps: Any = given if isinstance(given, (list, tuple)) and len(given) == 2 else ("", "")
    least, largest = steps[0], math.inf if steps[1] in (None, "Infinity", "inf", INFINITY) else steps[1]
    if not {type(least), type(largest)} <= {int, float} or not 0 <= least <= largest:
        raise reader.wrong(key, given, "the least and the largest time step")
    return float(least), None if math.isinf(largest) else float(largest)


def _write_steps(steps: tuple[float, float | None]) -> list[Any]:
    return [steps[0], INFINITY if steps[1] is None else steps[1]]


def _check(config: Reader, given: Given) -> None:
    heads, size, groups = (given["mixer"][name] for name in ("heads", "head_size", "groups"))
    if heads * size != (inner := given["mixer"].pop("inner")):
        raise config.wrong("num_heads", heads, f"expand times hidden_size, {inner}, over head_dim, {size}")
    if heads % groups:
        raise config.wrong("n_groups", groups, f"a divisor of num_heads, {heads}")


TABLE = Table(
    FAMILY,
    "Mamba2ForCausalLM",
    {"mixer": Mamba2},
    (
        *usually(OUTSIDE, {"model.vocab": 32768, "model.width": 4096, "layers.depth": 64, "head.tied": False}),
        integer("num_heads", "mixer.heads", 128),
        integer("head_dim", "mixer.head_size", 64),
        integer("n_groups", "mixer.groups mixer.norm_groups", 8),
        expand("expand", "mixer"),
        repeated(intermediate_size="mixer.inner"),
        Keys(_check),
        integer("state_size", "mixer.state", 128),
        integer("conv_kernel", "mixer.kernel", 4),
        flag("use_bias", "mixer.bias", False),
        flag("use_conv_bias", "mixer.conv_bias", True),
        activation("hidden_act", "mixer.activation", "silu"),
        Key("time_step_limit", "mixer.steps", _read_steps, tell=_write_steps),
    ),
    always={"mixer.eps": lambda given: given["norm"]["eps"]},
    said={"rms_norm": True},
    silent=f"norm_before_gate time_step_rank {WITHOUT_EFFECT}",
)
from_config, to_config = TABLE.from_config, TABLE.to_config


def keys(spec: ModelSpec) -> KeyMap:
    names = spelled({"in_proj": "gate up b c dt", "conv1d": "conv", "out_proj": "o"})
    alone = {"dt_bias": "dt_bias", "A_log": "a_log", "D": "skip", "norm.weight": "norm"}
    return backbone((*names, *(Rule(foreign, (own,)) for foreign, own in alone.items())))
