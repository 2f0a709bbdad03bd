"""Mamba-2 (Dao & Gu 2024): nothing but state space dual layers (Codestral-Mamba too).

Semantics: transformers' modeling_mamba2, which multiplies with the gate before the norm whatever norm_before_gate says,
and normalises each group alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dougong.hub.families.common import exact, expect, first_layer, read_activation, write_activation
from dougong.hub.families.mamba import check_repeated, read_model, read_norm, write_model
from dougong.hub.families.reader import Reader
from dougong.hub.keymap import KeyMap, Rule
from dougong.model.spec import LayerSpec, ModelSpec
from dougong.parts.ssd import Mamba2

FAMILY = "mamba2"
ARCHITECTURE = "Mamba2ForCausalLM"


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = Reader(FAMILY, config)
    width, depth = reader.integer("hidden_size", 4096), reader.integer("num_hidden_layers", 64)
    heads, size = reader.integer("num_heads", 128), reader.integer("head_dim", 64)
    inner, groups, norm = reader.integer("expand", 2) * width, reader.integer("n_groups", 8), read_norm(reader)
    if heads * size != inner:
        raise reader.wrong("num_heads", heads, f"expand times hidden_size, {inner}, over head_dim, {size}")
    if heads % groups:
        raise reader.wrong("n_groups", groups, f"a divisor of num_heads, {heads}")
    check_repeated(reader, {"intermediate_size": inner})
    for key in ("norm_before_gate", "time_step_rank"):
        reader.raw(key)
    mixer = Mamba2(
        heads,
        size,
        reader.integer("state_size", 128),
        groups,
        reader.integer("conv_kernel", 4),
        reader.flag("use_bias", False),
        reader.flag("use_conv_bias", True),
        read_activation(reader, "hidden_act", "silu"),
        _read_steps(reader),
        norm.eps,
        groups,
    )
    return read_model(reader, width, (LayerSpec(mixer, None, norm),) * depth, vocab=32768, tied=False)


def to_config(spec: ModelSpec) -> dict[str, Any]:
    mixer = expect(FAMILY, "mixer", first_layer(FAMILY, spec).mixer, Mamba2)
    least, largest = mixer.steps
    config = {
        **write_model(FAMILY, spec),
        "num_heads": mixer.heads,
        "head_dim": mixer.head_size,
        "expand": max(1, mixer.inner // spec.width),
        "n_groups": mixer.groups,
        "state_size": mixer.state,
        "conv_kernel": mixer.kernel,
        "use_bias": mixer.bias,
        "use_conv_bias": mixer.conv_bias,
        "hidden_act": write_activation(mixer.activation),
        "time_step_limit": [least, {"__float__": "Infinity"} if largest is None else largest],
    }
    return exact(FAMILY, ARCHITECTURE, spec, config, from_config)


def keys(spec: ModelSpec) -> KeyMap:
    def rule(foreign: str, *own: str) -> Rule:
        return Rule(f"backbone.layers.{{i}}.mixer.{foreign}", tuple(f"layers.{{i}}.mixer.{name}" for name in own))

    inputs = ("gate", "up", "b", "c", "dt")
    return KeyMap(
        rules=(
            Rule("backbone.embeddings.weight", ("embedding.weight",)),
            Rule("backbone.layers.{i}.norm.weight", ("layers.{i}.mixer_norm.weight",)),
            rule("in_proj.weight", *(f"{name}.weight" for name in inputs)),
            rule("in_proj.bias", *(f"{name}.bias" for name in inputs)),
            rule("conv1d.weight", "conv.weight"),
            rule("conv1d.bias", "conv.bias"),
            rule("dt_bias", "dt_bias"),
            rule("A_log", "a_log"),
            rule("D", "skip"),
            rule("norm.weight", "norm"),
            rule("out_proj.weight", "o.weight"),
            rule("out_proj.bias", "o.bias"),
            Rule("backbone.norm_f.weight", ("norm.weight",)),
            Rule("lm_head.weight", ("head.weight",)),
        ),
        prefix="backbone.",
        constants=(),
        tied=("lm_head.weight", "backbone.embeddings.weight"),
    )


def _read_steps(reader: Reader) -> tuple[float, float | None]:
    """time_step_limit; infinity is spelled in three ways."""
    given = reader.raw("time_step_limit")
    if given is None:
        return 0.0, None
    if isinstance(given, (list, tuple)) and len(given) == 2:
        least, largest = given
        if largest in ("Infinity", "inf") or largest == {"__float__": "Infinity"} or largest is None:
            largest = math.inf
        numbers = [each for each in (least, largest) if isinstance(each, (int, float)) and not isinstance(each, bool)]
        if len(numbers) == 2 and 0 <= least <= largest:
            return float(least), None if math.isinf(largest) else float(largest)
    raise reader.wrong("time_step_limit", given, "the least and the largest time step")
