"""Jamba (Lieber et al. 2024): Mamba with attention in one of so many layers and experts in others; no positions.

Semantics: transformers' modeling_jamba.
"""

from __future__ import annotations

from typing import Any

from dougong.hub.families.fields import Given, Keys, Parts, activation, flag, integer, share
from dougong.hub.families.layers import heads, key_heads, outer, quotient
from dougong.hub.families.names import ATTENTION, FFN, below, by_mixer, key_map, spelled
from dougong.hub.families.reader import Reader
from dougong.hub.families.sparse import KINDS
from dougong.hub.families.ssm import MIXER, expand, rank
from dougong.hub.families.table import Table, the_norm
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec
from dougong.parts.attention import Attention
from dougong.parts.experts import MoE
from dougong.parts.ssm import Mamba

FAMILY = "jamba"


def turn(name: str, period: int, offset: int, slot: str, those: str, others: str) -> Keys:
    """Layers with index % period == offset are of one kind, the rest of another."""

    def ask(config: Reader, given: Given) -> None:
        step, first = config.integer(f"{name}_period", period), config.integer(f"{name}_offset", offset, least=0)
        if first >= step:
            raise config.wrong(f"{name}_offset", first, f"less than {name}_period, {step}")
        depth = given["layers"]["depth"]
        given["layers"][slot] = [those if index % step == first else others for index in range(depth)]

    def tell(parts: Parts) -> dict[str, Any]:
        layers = [parts.kind_of(getattr(layer, slot[:-1]), [those]) for layer in parts.spec.layers]
        places = [index for index, kind in enumerate(layers) if kind]
        first = places[0] if places else len(layers)
        step = places[1] - first if len(places) > 1 else len(layers) + 1
        return {f"{name}_period": step, f"{name}_offset": min(first, step - 1)}

    return Keys(ask, tell)


def _ask_one(config: Reader, given: Given) -> None:
    """A single expert is no mixture."""
    if given["experts"]["experts"] == 1:
        given["layers"]["ffns"] = ["dense"] * given["layers"]["depth"]


TABLE = Table(
    FAMILY,
    "JambaForCausalLM",
    {**KINDS, "mamba": Mamba},
    (
        *outer(65536, 4096, 32, 262144),
        heads("mixer.heads", 32),
        key_heads("mixer", 8),
        integer("head_dim", "mixer.head_size", quotient("mixer")),
        share("attention_dropout", "mixer.dropout"),
        expand("mamba_expand", "mamba"),
        integer("mamba_d_state", "mamba.state", 16),
        rank("mamba_dt_rank", "mamba.rank"),
        integer("mamba_d_conv", "mamba.kernel", 4),
        flag("mamba_proj_bias", "mamba.bias", False),
        flag("mamba_conv_bias", "mamba.conv_bias", True),
        integer("intermediate_size", "dense.hidden experts.hidden", 14336),
        activation("hidden_act", "dense.activation experts.activation mamba.activation", "silu"),
        integer("num_experts_per_tok", "experts.top_k", 2),
        integer("num_experts", "experts.experts", 16),
        turn("attn_layer", 8, 4, "mixers", "mixer", "mamba"),
        turn("expert_layer", 2, 1, "ffns", "experts", "dense"),
        Keys(_ask_one),
    ),
    always={"mamba.inner_norm": the_norm, "experts.router.normalise": False},
    silent="use_mamba_kernels use_mambapy use_associative_scan num_logits_to_keep router_aux_loss_coef",
    # What no layer has may be written as anything.
    absent={
        "mixer": lambda found: Attention(1, 1, found["model"].width),
        "mamba": lambda found: Mamba(found["model"].width, 1, 1),
        "experts": lambda found: MoE(1, 1, 1),
    },
)
from_config, to_config = TABLE.from_config, TABLE.to_config


NAMES = {
    "input_layernorm": "mixer_norm",
    "pre_ff_layernorm": "ffn_norm",
    "feed_forward.router": "ffn.router.logits",
    **below("feed_forward.", "ffn.", FFN),
    **below("feed_forward.experts.{e}.", "ffn.experts.", FFN),
}


def keys(spec: ModelSpec) -> KeyMap:
    kinds = {Attention: ("self_attn", spelled(ATTENTION)), Mamba: ("mamba", MIXER)}
    outside = {"embed_tokens": "embedding", "final_layernorm": "norm"}
    return key_map("model.", "layers.{i}", spelled(NAMES), outside, *by_mixer(spec, "model.layers.{i}", kinds))
