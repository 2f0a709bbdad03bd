"""MiniMax-01: lightning attention with a softmax attention layer after every few, experts, and a residual path that
goes through the norms, each side with a factor of its own.

Semantics: transformers' modeling_minimax. Its files hold tables of decays, made anew from the config.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.hub.families.common import (
    check_window,
    exact,
    expect,
    first_layer,
    read_activation,
    write_activation,
)
from dougong.hub.families.qwen3_next import read_kinds
from dougong.hub.families.reader import Reader
from dougong.hub.families.rope import read_rope, write_rope
from dougong.hub.keymap import KeyMap, Rule
from dougong.hub.layouts import Groups
from dougong.model.spec import LayerSpec, ModelSpec
from dougong.parts.attention import Attention
from dougong.parts.decay import FixedDecay
from dougong.parts.embedding import Head
from dougong.parts.experts import MoE
from dougong.parts.linear_attention import LinearAttention
from dougong.parts.norm import Norm
from dougong.parts.router import TopK

FAMILY = "minimax"
ARCHITECTURE = "MiniMaxForCausalLM"
TABLES = ("slope_rate", "query_decay", "key_decay", "diagonal_decay")
ATTENTION, LIGHTNING = "full_attention", "linear_attention"


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = Reader(FAMILY, config)
    width, depth = reader.integer("hidden_size"), reader.integer("num_hidden_layers", 32)
    heads, limit = reader.integer("num_attention_heads", 32), reader.integer("max_position_embeddings", 131072)
    size, activation = reader.integer("head_dim", width // heads), read_activation(reader, "hidden_act", "silu")
    norm = Norm("rms", reader.number("rms_norm_eps", 1e-5))
    for key in ("router_aux_loss_coef", "output_router_logits", "router_jitter_noise"):  # training's business
        reader.raw(key)
    attention = Attention(
        heads,
        reader.integer("num_key_value_heads", 8),
        size,
        position=read_rope(reader, size, limit, theta=1000000.0),
        window=check_window(reader, reader.raw("sliding_window")),
        dropout=reader.share("attention_dropout"),
    )
    chunk = reader.integer("block_size", 256)
    ffn = MoE(
        reader.integer("num_local_experts", 8),
        reader.integer("num_experts_per_tok", 2),
        reader.integer("intermediate_size", 14336),
        TopK(),
        activation,
    )

    def lightning(index: int) -> LinearAttention:
        decay = FixedDecay.slopes(heads, share(index, depth))
        return LinearAttention(
            heads, size, size, activation, activation, decay=decay, norm=Norm(), norm_over="all", gate="sigmoid",
            chunk=chunk,
        )  # fmt: skip

    def layer(index: int, kind: str) -> LayerSpec:
        mixer = attention if kind == ATTENTION else lightning(index)
        scales = (_factors(reader, "full_attn" if kind == ATTENTION else "linear_attn"), _factors(reader, "mlp"))
        return LayerSpec(mixer, ffn, norm, "through", mixer_scale=scales[0], ffn_scale=scales[1])

    usual = [LIGHTNING if index % 2 else ATTENTION for index in range(depth)]
    kinds = read_kinds(reader, "layer_types", (ATTENTION, LIGHTNING), usual)
    for name in ("full_attn", "linear_attn", "mlp"):
        _factors(reader, name)
    layers = tuple(layer(index, kind) for index, kind in enumerate(kinds))
    vocab, head = reader.integer("vocab_size"), Head(tied=reader.flag("tie_word_embeddings", False))
    reader.refuse_rest()
    return ModelSpec(vocab, width, limit, layers, norm=norm, head=head)


def share(index: int, depth: int) -> float:
    """Of ALiBi's slopes that layer `index` has: 1 at first, next to nothing at last."""
    return 1 - index / (depth - 1 + 1e-5) + 1e-5


def _factors(config: Reader, name: str) -> tuple[float, float]:
    return config.number(f"{name}_alpha_factor", 1.0), config.number(f"{name}_beta_factor", 1.0)


def to_config(spec: ModelSpec) -> dict[str, Any]:
    first = first_layer(FAMILY, spec)
    ffn = expect(FAMILY, "ffn", first.ffn, MoE)
    kinds = [ATTENTION if isinstance(layer.mixer, Attention) else LIGHTNING for layer in spec.layers]
    config = {
        "vocab_size": spec.vocab,
        "hidden_size": spec.width,
        "num_hidden_layers": len(spec.layers),
        "max_position_embeddings": spec.context,
        "rms_norm_eps": first.norm.eps,
        "hidden_act": write_activation(ffn.activation) if isinstance(ffn.activation, str) else None,
        "intermediate_size": ffn.hidden,
        "num_local_experts": ffn.experts,
        "num_experts_per_tok": ffn.top_k,
        "layer_types": kinds,
        "mlp_alpha_factor": first.ffn_scale[0],
        "mlp_beta_factor": first.ffn_scale[1],
        "tie_word_embeddings": spec.head is not None and spec.head.tied,
    }
    for layer in spec.layers:
        mixer = layer.mixer
        if isinstance(mixer, Attention):
            name, config["num_key_value_heads"], size = "full_attn", mixer.kv_heads, mixer.head_size
            config |= {"sliding_window": mixer.window, "attention_dropout": mixer.dropout}
            config |= write_rope(FAMILY, mixer.position)
        else:
            mixer = expect(FAMILY, "mixer", mixer, LinearAttention)
            name, config["block_size"], size = "linear_attn", mixer.chunk, mixer.key_size
        config |= {"num_attention_heads": mixer.heads, "head_dim": size}
        config |= {f"{name}_alpha_factor": layer.mixer_scale[0], f"{name}_beta_factor": layer.mixer_scale[1]}
    return exact(FAMILY, ARCHITECTURE, spec, config, from_config)


def keys(spec: ModelSpec) -> KeyMap:
    rules = [
        Rule("model.embed_tokens.weight", ("embedding.weight",)),
        Rule("model.norm.weight", ("norm.weight",)),
        Rule("lm_head.weight", ("head.weight",)),
        Rule("model.layers.{i}.input_layernorm.weight", ("layers.{i}.mixer_norm.weight",)),
        Rule("model.layers.{i}.post_attention_layernorm.weight", ("layers.{i}.ffn_norm.weight",)),
        Rule("model.layers.{i}.block_sparse_moe.gate.weight", ("layers.{i}.ffn.router.logits.weight",)),
        *(
            Rule(
                f"model.layers.{{i}}.block_sparse_moe.experts.{{e}}.{foreign}.weight",
                (f"layers.{{i}}.ffn.experts.{own}.weight",),
            )
            for foreign, own in (("w1", "gate"), ("w2", "down"), ("w3", "up"))
        ),
    ]
    for index, layer in enumerate(spec.layers):
        foreign, own = f"model.layers.{index}.self_attn", f"layers.{index}.mixer"
        if isinstance(layer.mixer, LinearAttention):
            sizes = (layer.mixer.key_size, layer.mixer.key_size, layer.mixer.value_size)
            three = tuple(f"{own}.{name}.weight" for name in "qkv")
            rules.append(Rule(f"{foreign}.qkv_proj.weight", three, layout=Groups(sizes)))
            names = (("output_gate", "gate"), ("norm", "norm"), ("out_proj", "o"))
        else:
            names = tuple((f"{name}_proj", name) for name in "qkvo")
        rules += [Rule(f"{foreign}.{theirs}.weight", (f"{own}.{ours}.weight",)) for theirs, ours in names]
    return KeyMap(
        rules=tuple(rules),
        prefix="model.",
        constants=(),
        tied=("lm_head.weight", "model.embed_tokens.weight"),
        derived=dict(_tables(spec)),
    )


def _tables(spec: ModelSpec) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """The decays of a lightning layer: its slopes s, and exp(-s distance) within and across blocks."""
    for index, layer in enumerate(spec.layers):
        if isinstance(layer.mixer, LinearAttention):
            for name in TABLES:
                make = partial(_table, name, layer.mixer.heads, layer.mixer.chunk, share(index, len(spec.layers)))
                yield f"model.layers.{index}.self_attn.{name}", make


def _table(name: str, heads: int, block: int, part: float) -> Tensor:
    """In transformers' order of operations, so that not even rounding differs."""
    slope = ((1 / (2 ** (8 / heads))) ** (torch.arange(heads) + 1) * part)[:, None, None]
    place = torch.arange(block) + 1
    match name:
        case "slope_rate":
            return slope
        case "query_decay":
            return torch.exp(-slope * place[:, None])
        case "key_decay":
            return torch.exp(-slope * (block - place[:, None]))
        case "diagonal_decay":
            distance = slope * (place[:, None] - place[None, :])[None, None]
            return torch.exp(torch.where(distance >= 0, -distance, float("-inf")))
        case _:
            raise DougongError(f"{FAMILY} has no table {name!r}")
