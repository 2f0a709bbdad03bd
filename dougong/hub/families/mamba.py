"""Mamba (Gu & Dao 2023): nothing but selective state space layers.

Semantics: transformers' modeling_mamba. Its time_step_* keys (but the rank) set initial values only, and
residual_in_fp32 changes rounding only.
"""

from __future__ import annotations

from dougong.hub.families.fields import activation, repeated, usually
from dougong.hub.families.ssm import MIXER, OUTSIDE, WITHOUT_EFFECT, backbone, selective
from dougong.hub.families.table import Table
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec
from dougong.parts.ssm import Mamba

FAMILY = "mamba"
TABLE = Table(
    FAMILY,
    "MambaForCausalLM",
    {"mixer": Mamba},
    (
        *usually(OUTSIDE, {"model.vocab": 50280, "model.width": 768, "layers.depth": 32}),
        *selective("mixer", "expand state_size time_step_rank conv_kernel use_bias use_conv_bias"),
        repeated(intermediate_size="mixer.inner", d_inner="mixer.inner", d_model="model.width", n_layer="layers.depth"),
        activation("hidden_act", "mixer.activation", "silu"),
    ),
    said={"rms_norm": True},
    silent=WITHOUT_EFFECT,
)
from_config, to_config = TABLE.from_config, TABLE.to_config


def keys(spec: ModelSpec) -> KeyMap:
    return backbone(MIXER)
