"""Jamba (Lieber et al. 2024): Mamba with attention in one of so many layers and experts in others; no positions.

Semantics: transformers' modeling_jamba.
"""

from __future__ import annotations

from dougong.hub.families.fields import activation, integer
from dougong.hub.families.layers import attention, outer, turn
from dougong.hub.families.names import ATTENTION, FFN, below, mixed_keys, spelled
from dougong.hub.families.sparse import KINDS, unless_fewer
from dougong.hub.families.ssm import MIXER, selective
from dougong.hub.families.table import Table, the_norm
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec
from dougong.parts.attention import Attention
from dougong.parts.ssm import Mamba

FAMILY = "jamba"
MAMBA = "mamba_expand mamba_d_state mamba_dt_rank mamba_d_conv mamba_proj_bias mamba_conv_bias"
TABLE = Table(
    FAMILY,
    "JambaForCausalLM",
    {**KINDS, "mamba": Mamba},
    (
        *outer(65536, 4096, 32, 262144),
        *attention(32, 8),
        *selective("mamba", MAMBA),
        integer("intermediate_size", "dense.hidden experts.hidden", 14336),
        activation("hidden_act", "dense.activation experts.activation mamba.activation", "silu"),
        integer("num_experts_per_tok", "experts.top_k", 2),
        integer("num_experts", "experts.experts", 16),
        turn("attn_layer", 8, 4, "mixers", "mixer", "mamba"),
        turn("expert_layer", 2, 1, "ffns", "experts", "dense"),
        unless_fewer(2),
    ),
    always={"mamba.inner_norm": the_norm, "experts.router.normalise": False},
    silent="use_mamba_kernels use_mambapy use_associative_scan num_logits_to_keep router_aux_loss_coef",
    # What no layer has may be written as anything.
    absent={
        "mixer": lambda found: Attention(1, 1, found["model"].width),
        "mamba": lambda found: Mamba(found["model"].width, 1, 1),
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
    return mixed_keys(spec, spelled(NAMES), kinds, norm="final_layernorm")
