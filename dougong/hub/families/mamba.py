"""Mamba (Gu & Dao 2023): nothing but selective state space layers.

Semantics: transformers' modeling_mamba. Its time_step_* keys (but the rank) set initial values only, and
residual_in_fp32 changes rounding only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dougong.base import DougongError
from dougong.hub.families.common import exact, expect, first_layer, read_activation, write_activation
from dougong.hub.families.reader import Reader
from dougong.hub.keymap import KeyMap, Rule
from dougong.model.spec import LayerSpec, ModelSpec
from dougong.parts.carry import ENDLESS
from dougong.parts.embedding import Embedding, Head
from dougong.parts.norm import Norm
from dougong.parts.ssm import Mamba

FAMILY = "mamba"
ARCHITECTURE = "MambaForCausalLM"

WITHOUT_EFFECT = """
    time_step_min time_step_max time_step_floor time_step_scale time_step_init_scheme rescale_prenorm_residual
    residual_in_fp32 use_mambapy use_associative_scan fused_add_norm pad_vocab_size_multiple chunk_size
""".split()  # noqa: SIM905
"""Keys for initial values, for kernels and for rounding."""


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = Reader(FAMILY, config)
    width, depth = reader.integer("hidden_size", 768), reader.integer("num_hidden_layers", 32)
    inner = reader.integer("expand", 2) * width
    check_repeated(reader, {"intermediate_size": inner, "d_inner": inner, "d_model": width, "n_layer": depth})
    mixer = Mamba(
        inner,
        reader.integer("state_size", 16),
        read_rank(reader, "time_step_rank", width),
        reader.integer("conv_kernel", 4),
        reader.flag("use_bias", False),
        reader.flag("use_conv_bias", True),
        read_activation(reader, "hidden_act", "silu"),
    )
    return read_model(reader, width, (LayerSpec(mixer, None, read_norm(reader)),) * depth, vocab=50280, tied=True)


def to_config(spec: ModelSpec) -> dict[str, Any]:
    mixer = expect(FAMILY, "mixer", first_layer(FAMILY, spec).mixer, Mamba)
    config = {
        **write_model(FAMILY, spec),
        "expand": max(1, mixer.inner // spec.width),
        "state_size": mixer.state,
        "time_step_rank": mixer.rank,
        "conv_kernel": mixer.kernel,
        "use_bias": mixer.bias,
        "use_conv_bias": mixer.conv_bias,
        "hidden_act": write_activation(mixer.activation),
    }
    return exact(FAMILY, ARCHITECTURE, spec, config, from_config)


def keys(spec: ModelSpec) -> KeyMap:
    return KeyMap(
        rules=(
            Rule("backbone.embeddings.weight", ("embedding.weight",)),
            Rule("backbone.layers.{i}.norm.weight", ("layers.{i}.mixer_norm.weight",)),
            *mixer_rules("backbone.layers.{i}.mixer"),
            Rule("backbone.norm_f.weight", ("norm.weight",)),
            Rule("lm_head.weight", ("head.weight",)),
        ),
        prefix="backbone.",
        constants=(),
        tied=("lm_head.weight", "backbone.embeddings.weight"),
    )


def mixer_rules(place: str, layer: str = "{i}") -> list[Rule]:
    """Names of a Mamba mixer's weights, with the norms that Jamba puts into it."""

    def rule(foreign: str, *own: str) -> Rule:
        return Rule(f"{place}.{foreign}", tuple(f"layers.{layer}.mixer.{name}" for name in own))

    return [
        rule("in_proj.weight", "up.weight", "gate.weight"),
        rule("in_proj.bias", "up.bias", "gate.bias"),
        rule("conv1d.weight", "conv.weight"),
        rule("conv1d.bias", "conv.bias"),
        rule("x_proj.weight", "dt_down.weight", "b.weight", "c.weight"),
        rule("dt_layernorm.weight", "dt_norm.weight"),
        rule("b_layernorm.weight", "b_norm.weight"),
        rule("c_layernorm.weight", "c_norm.weight"),
        rule("dt_proj.weight", "dt_up.weight"),
        rule("dt_proj.bias", "dt_bias"),
        rule("A_log", "a_log"),
        rule("D", "skip"),
        rule("out_proj.weight", "o.weight"),
        rule("out_proj.bias", "o.bias"),
    ]


def read_rank(reader: Reader, key: str, width: int) -> int:
    """The rank of the time step's projection; "auto" is a sixteenth of the width, rounded up."""
    return math.ceil(width / 16) if reader.raw(key, "auto") == "auto" else reader.integer(key)


def read_norm(reader: Reader) -> Norm:
    if reader.raw("rms_norm", True) is not True:
        raise reader.wrong("rms_norm", reader.raw("rms_norm"), "true")
    return Norm("rms", reader.number("layer_norm_epsilon", 1e-5))


def read_model(reader: Reader, width: int, layers: tuple[LayerSpec, ...], vocab: int, tied: bool) -> ModelSpec:
    """What is around the layers of Mamba and Mamba-2."""
    for key in WITHOUT_EFFECT:
        reader.raw(key)
    head = Head(tied=reader.flag("tie_word_embeddings", tied))
    vocab, context = reader.integer("vocab_size", vocab), reader.integer("max_position_embeddings", ENDLESS)
    reader.refuse_rest()
    return ModelSpec(vocab, width, context, layers, norm=layers[0].norm, head=head)


def write_model(family: str, spec: ModelSpec) -> dict[str, Any]:
    """The keys that `read_model` and `read_norm` read."""
    if spec.head is None or spec.embedding != Embedding():
        raise DougongError(f"{family} cannot express a model without a head, or with more than tokens embedded")
    return {
        "vocab_size": spec.vocab,
        "hidden_size": spec.width,
        "num_hidden_layers": len(spec.layers),
        "layer_norm_epsilon": first_layer(family, spec).norm.eps,
        "tie_word_embeddings": spec.head.tied,
        # Not a key of transformers, which lets it pass: the texts it was trained on were no longer.
        **({} if spec.context == ENDLESS else {"max_position_embeddings": spec.context}),
    }


def check_repeated(reader: Reader, expected: Mapping[str, int]) -> None:
    """Raise DougongError where a key that repeats what others say says something else."""
    for key, value in expected.items():
        if key in reader and reader.integer(key) != value:
            raise reader.wrong(key, reader.raw(key), f"{value}, as the other keys say")
