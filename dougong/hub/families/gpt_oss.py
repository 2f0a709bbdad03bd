"""gpt-oss (2025): attention with sinks, every second layer in a window, experts with biases and a clamped SwiGLU.

Semantics: transformers' modeling_gpt_oss. A file keeps all experts of a layer in one tensor, transposed, gate and up in
turn. The released files hold the experts in mxfp4, which is refused by name; their bfloat16 form loads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dougong.hub.families.common import (
    LLAMA_KEYS,
    attention_of,
    exact,
    expect,
    pass_over,
    read_decoder,
    read_layer_types,
    respelled,
    windows_of,
    write_layer_types,
)
from dougong.hub.families.reader import Reader
from dougong.hub.families.sparse import (
    experts_of,
    read_balance,
    read_count,
    turning,
    with_experts,
    write_sparse_decoder,
)
from dougong.hub.keymap import KeyMap, Rule
from dougong.hub.layouts import Groups
from dougong.model.spec import ModelSpec
from dougong.parts.experts import ClampedSwiGLU, MoE
from dougong.parts.norm import Norm
from dougong.parts.router import TopK

FAMILY = "gpt_oss"
ARCHITECTURE = "GptOssForCausalLM"
YARN = {"rope_type": "yarn", "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096}


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    usual = {} if config.get("rope_scaling") or config.get("rope_parameters") else {"rope_scaling": YARN}
    reader = Reader(FAMILY, respelled({**config, **usual}, experts_per_token="num_experts_per_tok"))
    experts = MoE(
        read_count(reader, 128),
        reader.integer("num_experts_per_tok", 4),
        reader.integer("intermediate_size"),
        TopK(bias=True, balance=read_balance(reader)),
        ClampedSwiGLU(reader.number("swiglu_alpha", 1.702), reader.number("swiglu_limit", 7.0)),
        bias=True,
    )
    bias = reader.flag("attention_bias", True)
    pass_over(reader, "initial_context_length")  # again the original length of the scaling
    dense = read_decoder(
        reader,
        context=131072,
        kv_heads=8,
        head_size=64,
        bias=bias,
        out_bias=bias,
        norm=Norm("rms", 1e-5),
        ropes=turning(reader, 150000.0),
        windows=read_layer_types(reader, 128, full=lambda index: index % 2 == 1),
        mixer={"sinks": True},
    )
    return with_experts(dense, experts)


def to_config(spec: ModelSpec) -> dict[str, Any]:
    experts, router = experts_of(FAMILY, spec)
    glu = expect(FAMILY, "activation", experts.activation, ClampedSwiGLU)
    config = {
        **write_sparse_decoder(FAMILY, spec),
        **write_layer_types(spec),
        "attention_bias": attention_of(FAMILY, spec).bias,
        "num_local_experts": experts.experts,
        "num_experts_per_tok": experts.top_k,
        "router_aux_loss_coef": router.balance,
        "swiglu_alpha": glu.alpha,
        "swiglu_limit": glu.limit,
        "sliding_window": next((window for window in windows_of(spec) if window is not None), 128),
    }
    if config["rope_scaling"] is None:  # a config without any would mean the family's own
        config["rope_scaling"] = {"rope_type": "default"}
    return exact(FAMILY, ARCHITECTURE, spec, config, from_config)


def keys(spec: ModelSpec) -> KeyMap:
    theirs, ours = "model.layers.{i}.mlp.", "layers.{i}.ffn."
    fused, in_turn = ("experts.gate", "experts.up"), Groups((1, 1), dim=1)
    rules = (
        Rule("model.layers.{i}.self_attn.sinks", ("layers.{i}.mixer.sinks",)),
        Rule(f"{theirs}router.weight", (f"{ours}router.logits.weight",)),
        Rule(f"{theirs}router.bias", (f"{ours}router.logits.bias",)),
        Rule(f"{theirs}experts.gate_up_proj", tuple(f"{ours}{name}.weight" for name in fused), True, in_turn),
        Rule(f"{theirs}experts.gate_up_proj_bias", tuple(f"{ours}{name}.bias" for name in fused), layout=in_turn),
        Rule(f"{theirs}experts.down_proj", (f"{ours}experts.down.weight",), transpose=True),
        Rule(f"{theirs}experts.down_proj_bias", (f"{ours}experts.down.bias",)),
    )
    return replace(LLAMA_KEYS, rules=(*LLAMA_KEYS.rules, *rules))
