"""Kimi-Linear: Kimi Delta Attention with a latent attention layer after every few, no positions at all, and experts as
DeepSeek-V3 has them.

Semantics: transformers' modeling_kimi_linear; the config is read as published (`linear_attn_config`, whose layers count
from 1) and as transformers writes it (`layer_types`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dougong.hub.families.deepseek import LATENT, latent_names
from dougong.hub.families.fields import Given, Keys, Parts, flag, inside, integer, usually
from dougong.hub.families.layers import linear_layers, outer
from dougong.hub.families.names import FFN, LLAMA_NORMS, below, mixed_keys, named, spelled
from dougong.hub.families.reader import Reader
from dougong.hub.families.sparse import (
    DELTA_ACTIVATION,
    NUMBERED,
    SHARED,
    SIGMOID,
    dense_or_sparse,
    expert_names,
    grouped,
    shared,
)
from dougong.hub.families.table import Table, the_norm
from dougong.hub.keymap import KeyMap, Rule
from dougong.hub.layouts import Viewed
from dougong.model.spec import ModelSpec
from dougong.parts.decay import SoftplusDecay
from dougong.parts.delta import DeltaNet
from dougong.parts.latent import LatentAttention

FAMILY = "kimi_linear"
CONTEXT = integer("model_max_length", "model.context", 1048576, also="max_position_embeddings")


def _ask_layers(config: Reader, given: Given) -> None:
    full, delta, depth = config.raw("full_attn_layers"), config.raw("kda_layers"), given["layers"]["depth"]
    if isinstance(full, list) and isinstance(delta, list):
        if sorted([*full, *delta]) != list(range(1, depth + 1)):
            raise config.wrong("kda_layers", delta, f"with full_attn_layers every number from 1 to {depth} once")
        given["layers"]["mixers"] = ["mixer" if index + 1 in full else "delta" for index in range(depth)]
    else:
        given["layers"]["mixers"] = ["mixer" if index and index % 4 == 0 else "delta" for index in range(depth)]


def _tell_layers(parts: Parts) -> dict[str, Any]:
    delta = [isinstance(layer.mixer, DeltaNet) for layer in parts.spec.layers]
    numbers = ([index + 1 for index, each in enumerate(delta) if each == wanted] for wanted in (False, True))
    return dict(zip(("full_attn_layers", "kda_layers"), numbers, strict=True))


DELTA = inside(
    "linear_attn_config",
    integer("num_heads", "delta.value_heads delta.key_heads", 32),
    integer("head_dim", "delta.value_size delta.key_size delta.gate_rank delta.decay.rank", 128),
    integer("short_conv_kernel_size", "delta.convolution", 4),
    Keys(_ask_layers, _tell_layers),
    # As transformers writes them.
    beside={
        "num_heads": "linear_num_heads",
        "head_dim": "linear_head_dim",
        "short_conv_kernel_size": "linear_conv_kernel_dim",
    },
)


def _best(given: Given) -> int:
    return min(2, given["experts"]["experts"] // given["experts.router"]["groups"])


TABLE = Table(
    FAMILY,
    "KimiLinearForCausalLM",
    {**SHARED, "mixer": LatentAttention, "delta": DeltaNet, "delta.decay": SoftplusDecay},
    (
        *outer(163840, 2304, 27, CONTEXT, eps=1e-5),
        *usually(LATENT, {"mixer.heads": 32, "mixer.q_rank": lambda given: None}),
        DELTA_ACTIVATION,
        DELTA,
        linear_layers("delta", lambda config, given: given["layers"]["mixers"]),
        integer("intermediate_size", "dense.hidden", 9216),
        *grouped(256, 8, 2.446, names="num_experts num_experts_per_token num_expert_group"),
        integer("moe_intermediate_size", "experts.hidden", 1024),
        flag("moe_renormalize", "experts.router.normalise", True),
        shared(1, "num_shared_experts"),
        *dense_or_sparse(1),
    ),
    always={**SIGMOID, "experts.router.group_best": _best, "delta.norm": the_norm, "delta.gate": "sigmoid"},
    said={"mla_use_nope": True, "moe_router_activation_func": "sigmoid", "moe_layer_freq": 1},
    # Keys of rotary positions are there for other programs. With one group use_grouped_topk says nothing.
    silent="head_dim qk_head_dim rope_theta rope_scaling rope_parameters use_grouped_topk",
)
from_config, to_config = TABLE.from_config, TABLE.to_config


DELTA_NAMES = (
    *spelled(named("q", "k", "v", "o")),
    *spelled(named("q", "k", "v", within="convolutions.", suffix="_conv1d")),
    *spelled({"f_a_proj": "decay.step.a", "f_b_proj": "decay.step.b", "g_a_proj": "gate.a", "g_b_proj": "gate.b"}),
    *spelled({"b_proj": "beta", "o_norm": "norm"}),
    Rule("dt_bias", ("decay.bias",)),
    Rule("A_log", ("decay.log_rate",), layout=Viewed((1, 1, -1, 1))),
)
# The publisher's name where a layer's feed-forward is dense is mlp; transformers writes this one for both.
FFN_BLOCK = "block_sparse_moe"
FEED_FORWARD = {**below(f"{FFN_BLOCK}.", "ffn.", FFN), **expert_names(FFN_BLOCK, NUMBERED, "shared_experts")}
CORRECTION = Rule(f"{FFN_BLOCK}.gate.e_score_correction_bias", ("ffn.router.correction",))
LAYER = (*spelled({**LLAMA_NORMS, **FEED_FORWARD}), CORRECTION)


def keys(spec: ModelSpec) -> KeyMap:
    kinds = {
        LatentAttention: ("self_attn", lambda mixer: spelled(latent_names(mixer))),
        DeltaNet: ("self_attn", lambda mixer: DELTA_NAMES),
    }
    return replace(mixed_keys(spec, LAYER, kinds), spellings=((".mlp.", f".{FFN_BLOCK}."),))
