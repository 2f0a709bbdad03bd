"""Kimi-Linear: Kimi Delta Attention, latent attention every few layers, no positions, and experts as in DeepSeek-V3.

Semantics: transformers' modeling_kimi_linear. The config is read as published (`linear_attn_config`, whose layers count
from 1) and as transformers writes it (`layer_types`). Keys of rotary positions are there for other programs.
"""

from __future__ import annotations

from dougong.hub.families import sparse
from dougong.hub.families.deepseek import LATENT, latent_rules
from dougong.hub.families.fields import inside, integer, usually
from dougong.hub.families.layers import linear_layers, numbered, outer
from dougong.hub.families.names import bare, factors, mixed_keys, named, spelled
from dougong.hub.families.table import Table, the_norm
from dougong.hub.keymap import KeyMap
from dougong.hub.layouts import Viewed
from dougong.model.spec import ModelSpec
from dougong.parts.delta import DeltaNet
from dougong.parts.latent import LatentAttention

FAMILY = "kimi_linear"
CONTEXT = integer("model_max_length", "model.context", 1048576, also="max_position_embeddings")
EXPERTS = "num_experts num_experts_per_token num_shared_experts num_expert_group moe_renormalize"
LAYERS = {"full_attn_layers": "mixer", "kda_layers": "delta"}
SIZES = "delta.value_size delta.key_size delta.gate_rank delta.decay.rank"
NAMES = spelled({**named("q", "k", "v", "o"), **named("q", "k", "v", within="convolutions.", suffix="_conv1d")})
NAMES += spelled({**factors(f="decay.step", g="gate"), "b_proj": "beta", "o_norm": "norm"})
NAMES += bare({"dt_bias": "decay.bias"}) + bare({"A_log": "decay.log_rate"}, Viewed((1, 1, -1, 1)))
BLOCK = "block_sparse_moe"  # in files of the publisher only where it has experts, else mlp
TABLE = Table(
    FAMILY,
    "KimiLinearForCausalLM",
    {**sparse.HYBRID, "mixer": LatentAttention},
    (
        *outer(163840, 2304, 27, CONTEXT, eps=1e-5),
        *usually(LATENT, {"mixer.heads": 32, "mixer.q_rank": lambda given: None}),
        sparse.DELTA_ACTIVATION,
        inside(
            "linear_attn_config",
            integer("num_heads", "delta.value_heads delta.key_heads", 32, also="linear_num_heads"),
            integer("head_dim", SIZES, 128, also="linear_head_dim"),
            integer("short_conv_kernel_size", "delta.convolution", 4, also="linear_conv_kernel_dim"),
            numbered("mixers", LAYERS, lambda index: "mixer" if index and index % 4 == 0 else "delta"),
        ),
        linear_layers("delta", lambda config, given: given["layers"]["mixers"]),
        integer("intermediate_size", "dense.hidden", 9216),
        *sparse.grouped(256, 8, 1024, 2.446, names=EXPERTS),
        *sparse.dense_or_sparse(1),
    ),
    always={**sparse.SIGMOID, "delta.norm": the_norm, "delta.gate": "sigmoid"},
    said={"mla_use_nope": True, "moe_router_activation_func": "sigmoid", "moe_layer_freq": 1},
    silent="head_dim qk_head_dim rope_theta rope_scaling rope_parameters use_grouped_topk",
)
from_config, to_config = TABLE.from_config, TABLE.to_config


def keys(spec: ModelSpec) -> KeyMap:
    layer = sparse.layer_rules(BLOCK, sparse.NUMBERED, "shared_experts")
    kinds = {LatentAttention: ("self_attn", latent_rules), DeltaNet: ("self_attn", NAMES)}
    return mixed_keys(spec, layer, kinds, spellings=((".mlp.", f".{BLOCK}."),))
