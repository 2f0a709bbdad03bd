"""Kimi-Linear: Kimi Delta Attention with a latent attention layer after every few, no positions at all, and experts as
DeepSeek-V3 has them.

Semantics: transformers' modeling_kimi_linear; the config is read as published (`linear_attn_config`, whose layers count
from 1) and as transformers writes it (`layer_types`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dougong.hub.families.deepseek import LATENT, latent_names
from dougong.hub.families.fields import Given, Keys, Parts, activation, flag, integer, number, usually
from dougong.hub.families.layers import FULL, LINEAR, outer, pattern
from dougong.hub.families.names import FFN, LLAMA_NORMS, below, by_mixer, key_map, named, spelled
from dougong.hub.families.reader import Reader
from dougong.hub.families.sparse import NUMBERED, SHARED, SIGMOID, dense_or_sparse, expert_names, shared
from dougong.hub.families.table import Table, the_norm
from dougong.hub.keymap import KeyMap, Rule
from dougong.hub.layouts import Viewed
from dougong.model.spec import ModelSpec
from dougong.parts.decay import SoftplusDecay
from dougong.parts.delta import DeltaNet
from dougong.parts.latent import LatentAttention

FAMILY = "kimi_linear"
# Of DeltaNet: a field, the key under linear_attn_config, transformers' own, which stands beside the others, and what a
# missing key means.
DELTA = {
    "delta.value_heads": ("num_heads", "linear_num_heads", 32),
    "delta.value_size": ("head_dim", "linear_head_dim", 128),
    "delta.convolution": ("short_conv_kernel_size", "linear_conv_kernel_dim", 4),
}
CONTEXT = integer("model_max_length", "model.context", 1048576, also="max_position_embeddings")


def _ask_delta(config: Reader, given: Given) -> None:
    inner, depth = config.inside("linear_attn_config"), given["layers"]["depth"]
    heads, size, seen = (inner.integer(own, config.integer(other, usual)) for own, other, usual in DELTA.values())
    given["delta"] |= {"key_heads": heads, "value_heads": heads, "convolution": seen, "gate_rank": size}
    given["delta"] |= {"key_size": size, "value_size": size, "decay": SoftplusDecay(rank=size)}
    full, delta = inner.raw("full_attn_layers"), inner.raw("kda_layers")
    inner.refuse_rest()
    given["layers"]["mixers"] = ["mixer" if index and index % 4 == 0 else "delta" for index in range(depth)]
    if isinstance(full, list) and isinstance(delta, list):
        if sorted([*full, *delta]) != list(range(1, depth + 1)):
            raise inner.wrong("kda_layers", delta, f"with full_attn_layers every number from 1 to {depth} once")
        given["layers"]["mixers"] = ["mixer" if index + 1 in full else "delta" for index in range(depth)]


def _tell_delta(parts: Parts) -> dict[str, Any]:
    delta = [isinstance(layer.mixer, DeltaNet) for layer in parts.spec.layers]
    layers = {
        "full_attn_layers": [index + 1 for index, each in enumerate(delta) if not each],
        "kda_layers": [index + 1 for index, each in enumerate(delta) if each],
    }
    sizes = {own: parts.find(place) for place, (own, _, _) in DELTA.items()} if any(delta) else {}
    return {"linear_attn_config": {**layers, **sizes}}


def _best(given: Given) -> int:
    return min(2, given["experts"]["experts"] // given["experts.router"]["groups"])


TABLE = Table(
    FAMILY,
    "KimiLinearForCausalLM",
    {**SHARED, "mixer": LatentAttention, "delta": DeltaNet},
    (
        *outer(163840, 2304, 27, CONTEXT, eps=1e-5),
        *usually(LATENT, {"mixer.heads": 32, "mixer.q_rank": lambda given: None}),
        activation(
            "hidden_act", "delta.activation dense.activation experts.activation experts.shared.activation", "silu"
        ),
        Keys(_ask_delta, _tell_delta),
        pattern(
            "layer_types", "mixers", {FULL: "mixer", LINEAR: "delta"}, lambda config, given: given["layers"]["mixers"]
        ),
        integer("intermediate_size", "dense.hidden", 9216),
        integer("num_experts", "experts.experts", 256),
        integer("num_experts_per_token", "experts.top_k", 8),
        integer("moe_intermediate_size", "experts.hidden", 1024),
        flag("moe_renormalize", "experts.router.normalise", True),
        number("routed_scaling_factor", "experts.router.scale", 2.446),
        integer("num_expert_group", "experts.router.groups", 1),
        integer("topk_group", "experts.router.top_groups", 1),
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
LAYER = (
    *spelled(
        {
            **LLAMA_NORMS,
            **below(f"{FFN_BLOCK}.", "ffn.", FFN),
            **expert_names(FFN_BLOCK, NUMBERED, "shared_experts"),
        }
    ),
    Rule(f"{FFN_BLOCK}.gate.e_score_correction_bias", ("ffn.router.correction",)),
)


def keys(spec: ModelSpec) -> KeyMap:
    mixers = (layer.mixer for layer in spec.layers if isinstance(layer.mixer, LatentAttention))
    latent = spelled(latent_names(next(mixers, None)))
    kinds = {LatentAttention: ("self_attn", latent), DeltaNet: ("self_attn", DELTA_NAMES)}
    outside, more = {"embed_tokens": "embedding", "norm": "norm"}, by_mixer(spec, "model.layers.{i}", kinds)
    names = key_map("model.", "layers.{i}", LAYER, outside, *more)
    return replace(names, spellings=((".mlp.", f".{FFN_BLOCK}."),))
