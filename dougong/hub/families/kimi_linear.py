"""Kimi-Linear: Kimi Delta Attention with a latent attention layer after every few, no positions at all, and experts as
DeepSeek-V3 has them.

Semantics: transformers' modeling_kimi_linear; the config is read as published (`linear_attn_config`, whose layers count
from 1) and as transformers writes it (`layer_types`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dougong.base import DougongError
from dougong.hub.families.common import exact, expect, first_layer, read_activation, write_activation
from dougong.hub.families.qwen3_next import read_kinds
from dougong.hub.families.reader import Reader
from dougong.hub.keymap import KeyMap, Rule
from dougong.hub.layouts import Viewed
from dougong.model.spec import LayerSpec, ModelSpec
from dougong.parts.decay import SoftplusDecay
from dougong.parts.delta import DeltaNet
from dougong.parts.embedding import Head
from dougong.parts.experts import MoE
from dougong.parts.feedforward import GatedMLP
from dougong.parts.latent import LatentAttention
from dougong.parts.norm import Norm
from dougong.parts.router import TopK

FAMILY = "kimi_linear"
ARCHITECTURE = "KimiLinearForCausalLM"
ATTENTION, DELTA = "full_attention", "linear_attention"
DENSE, SPARSE = "dense", "sparse"


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = Reader(FAMILY, config)
    # head_dim and the keys of rotary positions are there for other programs: nothing reads them.
    for key in ("head_dim", "qk_head_dim", "rope_theta", "rope_scaling", "rope_parameters", "output_router_logits"):
        reader.raw(key)
    for key, value in (("mla_use_nope", True), ("moe_router_activation_func", "sigmoid"), ("moe_layer_freq", 1)):
        if reader.raw(key, value) != value:
            raise reader.wrong(key, reader.raw(key), repr(value))
    reader.raw("use_grouped_topk")  # with one group the same, with more always so
    width, depth = reader.integer("hidden_size", 2304), reader.integer("num_hidden_layers", 27)
    norm = Norm("rms", reader.number("rms_norm_eps", 1e-5))
    kinds, delta = _read_delta(reader, depth, norm)
    attention = _read_attention(reader)
    usual = [DENSE if index < reader.integer("first_k_dense_replace", 1, least=0) else SPARSE for index in range(depth)]
    dense, sparse = _read_ffns(reader)
    layers = tuple(
        LayerSpec(attention if kind == ATTENTION else delta, dense if ffn == DENSE else sparse, norm)
        for kind, ffn in zip(kinds, read_kinds(reader, "mlp_layer_types", (DENSE, SPARSE), usual), strict=True)
    )
    vocab, head = reader.integer("vocab_size", 163840), Head(tied=reader.flag("tie_word_embeddings", False))
    limit = reader.integer("model_max_length", reader.integer("max_position_embeddings", 1048576))
    reader.refuse_rest()
    return ModelSpec(vocab, width, limit, layers, norm=norm, head=head)


def _read_delta(config: Reader, depth: int, norm: Norm) -> tuple[list[str], DeltaNet]:
    """Which layers are of which kind, and the one with the delta rule."""
    given = config.raw("linear_attn_config") or {}
    if not isinstance(given, dict):
        raise config.wrong("linear_attn_config", given, "a mapping")
    inner = Reader(FAMILY, given, "linear_attn_config.")
    usual = [ATTENTION if index and index % 4 == 0 else DELTA for index in range(depth)]
    full, delta = inner.raw("full_attn_layers"), inner.raw("kda_layers")
    if isinstance(full, list) and isinstance(delta, list):
        if sorted([*full, *delta]) != list(range(1, depth + 1)):
            raise inner.wrong("kda_layers", delta, f"with full_attn_layers every number from 1 to {depth} once")
        usual = [ATTENTION if index + 1 in full else DELTA for index in range(depth)]
    kinds = read_kinds(config, "layer_types", (ATTENTION, DELTA), usual)
    heads = inner.integer("num_heads", config.integer("linear_num_heads", 32))
    size = inner.integer("head_dim", config.integer("linear_head_dim", 128))
    seen = inner.integer("short_conv_kernel_size", config.integer("linear_conv_kernel_dim", 4))
    activation = read_activation(config, "hidden_act", "silu")
    inner.refuse_rest()
    decay = SoftplusDecay(rank=size)
    layer = DeltaNet(
        heads, heads, size, size, seen, activation, decay=decay, norm=norm, gate="sigmoid", gate_rank=size
    )  # fmt: skip
    return kinds, layer


def _read_attention(config: Reader) -> LatentAttention:
    heads = config.integer("num_attention_heads", 32)
    if config.integer("num_key_value_heads", heads) != heads:
        raise config.wrong("num_key_value_heads", config.raw("num_key_value_heads"), f"as many as heads, {heads}")
    bias = config.flag("attention_bias", False)
    return LatentAttention(
        heads,
        config.integer("kv_lora_rank", 512),
        config.integer("qk_nope_head_dim", 128),
        config.integer("qk_rope_head_dim", 64),
        config.integer("v_head_dim", 128),
        config.integer("q_lora_rank", 0, least=0) or None,
        norm=Norm("rms", 1e-6),
        bias=bias,
        out_bias=bias,
        dropout=config.share("attention_dropout"),
    )


def _read_ffns(config: Reader) -> tuple[GatedMLP, MoE]:
    activation = read_activation(config, "hidden_act", "silu")
    experts, groups = config.integer("num_experts", 256), config.integer("num_expert_group", 1)
    hidden = config.integer("moe_intermediate_size", 1024)
    router = TopK(
        "sigmoid",
        config.flag("moe_renormalize", True),
        config.number("routed_scaling_factor", 2.446),
        correction=True,
        groups=groups,
        top_groups=config.integer("topk_group", 1),
        group_best=min(2, experts // groups),
    )
    shared = GatedMLP(hidden * config.integer("num_shared_experts", 1), activation)
    sparse = MoE(experts, config.integer("num_experts_per_token", 8), hidden, router, activation, shared=shared)
    return GatedMLP(config.integer("intermediate_size", 9216), activation), sparse


def to_config(spec: ModelSpec) -> dict[str, Any]:
    first = first_layer(FAMILY, spec)
    numbered = [(index + 1, isinstance(layer.mixer, DeltaNet)) for index, layer in enumerate(spec.layers)]
    lists = {
        "full_attn_layers": [number for number, delta in numbered if not delta],
        "kda_layers": [number for number, delta in numbered if delta],
    }
    config: dict[str, Any] = {
        "vocab_size": spec.vocab,
        "hidden_size": spec.width,
        "num_hidden_layers": len(spec.layers),
        "model_max_length": spec.context,
        "rms_norm_eps": first.norm.eps,
        "tie_word_embeddings": spec.head is not None and spec.head.tied,
        "layer_types": [DELTA if delta else ATTENTION for _, delta in numbered],
        "mlp_layer_types": [SPARSE if isinstance(layer.ffn, MoE) else DENSE for layer in spec.layers],
        "linear_attn_config": lists,
    }
    for layer in spec.layers:
        if isinstance(layer.mixer, DeltaNet):
            sizes = {"num_heads": layer.mixer.value_heads, "head_dim": layer.mixer.value_size}
            config["linear_attn_config"] = {**lists, **sizes, "short_conv_kernel_size": layer.mixer.convolution}
            config["hidden_act"] = write_activation(layer.mixer.activation)
        else:
            config |= _write_attention(expect(FAMILY, "mixer", layer.mixer, LatentAttention))
        if isinstance(layer.ffn, GatedMLP):
            config |= {"intermediate_size": layer.ffn.hidden, "hidden_act": write_activation(layer.ffn.activation)}
        else:
            config |= _write_experts(expect(FAMILY, "ffn", layer.ffn, MoE))
    return exact(FAMILY, ARCHITECTURE, spec, config, from_config)


def _write_attention(mixer: LatentAttention) -> dict[str, Any]:
    return {
        "num_attention_heads": mixer.heads,
        "num_key_value_heads": mixer.heads,
        "kv_lora_rank": mixer.kv_rank,
        "q_lora_rank": mixer.q_rank,
        "qk_nope_head_dim": mixer.nope_size,
        "qk_rope_head_dim": mixer.rope_size,
        "v_head_dim": mixer.value_size,
        "attention_bias": mixer.bias,
        "attention_dropout": mixer.dropout,
        "mla_use_nope": True,
    }


def _write_experts(ffn: MoE) -> dict[str, Any]:
    router = ffn.router
    if not isinstance(router, TopK) or not isinstance(ffn.activation, str) or ffn.shared is None:
        raise DougongError(
            f"{FAMILY} cannot express experts with {router!r}, {ffn.activation!r}, shared {ffn.shared!r}"
        )
    return {
        "hidden_act": write_activation(ffn.activation),
        "num_experts": ffn.experts,
        "num_experts_per_token": ffn.top_k,
        "moe_intermediate_size": ffn.hidden,
        "num_shared_experts": ffn.shared.hidden // ffn.hidden,
        "moe_renormalize": router.normalise,
        "moe_router_activation_func": router.score,
        "routed_scaling_factor": router.scale,
        "num_expert_group": router.groups,
        "topk_group": router.top_groups,
    }


_FFN = (
    Rule("gate.weight", ("router.logits.weight",)),
    Rule("gate.e_score_correction_bias", ("router.correction",)),
    *(Rule(f"{name}_proj.weight", (f"{name}.weight",)) for name in ("gate", "up", "down")),
    *(Rule(f"shared_experts.{name}_proj.weight", (f"shared.{name}.weight",)) for name in ("gate", "up", "down")),
    *(
        Rule(f"experts.{{e}}.{foreign}.weight", (f"experts.{own}.weight",))
        for foreign, own in (("w1", "gate"), ("w2", "down"), ("w3", "up"))
    ),
)
_DELTA = (
    *(Rule(f"{name}_proj.weight", (f"{name}.weight",)) for name in "qkvo"),
    *(Rule(f"{name}_conv1d.weight", (f"convolutions.{name}.weight",)) for name in "qkv"),
    *(Rule(f"f_{name}_proj.weight", (f"decay.step.{name}.weight",)) for name in "ab"),
    *(Rule(f"g_{name}_proj.weight", (f"gate.{name}.weight",)) for name in "ab"),
    Rule("dt_bias", ("decay.bias",)),
    Rule("A_log", ("decay.log_rate",), layout=Viewed((1, 1, -1, 1))),
    Rule("b_proj.weight", ("beta.weight",)),
    Rule("o_norm.weight", ("norm.weight",)),
)


def _attention(mixer: LatentAttention) -> tuple[Rule, ...]:
    query = "q_b_proj" if mixer.q_rank else "q_proj"
    names = (
        (query, "q"), ("q_a_proj", "q_down"), ("q_a_layernorm", "q_norm"), ("kv_a_proj_with_mqa", "kv_down"),
        ("kv_a_layernorm", "kv_norm"), ("kv_b_proj", "kv_up"), ("o_proj", "o"),
    )  # fmt: skip
    return tuple(Rule(f"{foreign}.{kind}", (f"{own}.{kind}",)) for foreign, own in names for kind in ("weight", "bias"))


def keys(spec: ModelSpec) -> KeyMap:
    rules = [
        Rule("model.embed_tokens.weight", ("embedding.weight",)),
        Rule("model.norm.weight", ("norm.weight",)),
        Rule("lm_head.weight", ("head.weight",)),
    ]
    for index, layer in enumerate(spec.layers):
        foreign, own = f"model.layers.{index}", f"layers.{index}"
        rules.append(Rule(f"{foreign}.input_layernorm.weight", (f"{own}.mixer_norm.weight",)))
        rules.append(Rule(f"{foreign}.post_attention_layernorm.weight", (f"{own}.ffn_norm.weight",)))
        mixer = _attention(layer.mixer) if isinstance(layer.mixer, LatentAttention) else _DELTA
        for place, part, within in (("self_attn", "mixer", mixer), ("block_sparse_moe", "ffn", _FFN)):
            rules += [
                Rule(f"{foreign}.{place}.{rule.foreign}", (f"{own}.{part}.{rule.own[0]}",), layout=rule.layout)
                for rule in within
            ]
    return KeyMap(
        rules=tuple(rules),
        prefix="model.",
        constants=(),
        tied=("lm_head.weight", "model.embed_tokens.weight"),
        # The publisher's name where a layer's feed-forward is dense; transformers writes the other for both.
        spellings=((".mlp.", ".block_sparse_moe."),),
    )
