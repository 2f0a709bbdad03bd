"""Mamba-2 (Dao & Gu 2024): nothing but state space dual layers (Codestral-Mamba too).

Semantics: transformers' modeling_mamba2, which multiplies with the gate before the norm whatever norm_before_gate says,
and normalises each group alone.
"""

from __future__ import annotations

from dougong.hub.families.fields import Given, Keys, activation, flag, integer, limits, repeated, usually
from dougong.hub.families.names import bare, spelled
from dougong.hub.families.reader import Reader
from dougong.hub.families.ssm import OUTSIDE, STEP, WITHOUT_EFFECT, backbone, expand
from dougong.hub.families.table import Table
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec
from dougong.parts.ssd import Mamba2

FAMILY = "mamba2"


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
        limits("time_step_limit", "mixer.steps"),
    ),
    always={"mixer.eps": lambda given: given["norm"]["eps"]},
    said={"rms_norm": True},
    silent=f"norm_before_gate time_step_rank {WITHOUT_EFFECT}",
)
from_config, to_config = TABLE.from_config, TABLE.to_config


def keys(spec: ModelSpec) -> KeyMap:
    names = spelled({"in_proj": "gate up b c dt", "conv1d": "conv", "out_proj": "o"})
    return backbone((*names, *bare({**STEP, "dt_bias": "dt_bias", "norm.weight": "norm"})))
