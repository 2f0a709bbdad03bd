"""MiniMax-01: lightning attention with a softmax attention layer after every few, experts, and a residual path that
goes through the norms, each side with a factor of its own.

Semantics: transformers' modeling_minimax. Its files hold tables of decays, made anew from the config.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dougong.hub.families.fields import Given, Keys, Parts, activation, change, integer, share, window
from dougong.hub.families.layers import in_turn, linear_layers, outer, quotient
from dougong.hub.families.names import LLAMA_NORMS, both, mixed_keys, named, spelled
from dougong.hub.families.reader import Reader
from dougong.hub.families.rope import turns
from dougong.hub.families.sparse import ALL_SPARSE, NUMBERED, expert_names
from dougong.hub.families.table import Table
from dougong.hub.keymap import KeyMap, Rule
from dougong.hub.layouts import Groups
from dougong.model.spec import ModelSpec
from dougong.parts.attention import Attention
from dougong.parts.decay import FixedDecay
from dougong.parts.linear_attention import LinearAttention
from dougong.parts.norm import Norm

FAMILY = "minimax"
SIDES = {"mixer": "full_attn", "lightning": "linear_attn"}  # the beginnings of keys for factors of the residual path


def _ask(config: Reader, given: Given) -> None:
    """What each layer has of its own: its factors, and the decay of lightning attention."""
    factors = {
        name: (config.number(f"{name}_alpha_factor", 1.0), config.number(f"{name}_beta_factor", 1.0))
        for name in (*SIDES.values(), "mlp")
    }
    given["layer"] = {"wiring": "through", "ffn_scale": factors["mlp"]}
    depth, heads = given["layers"]["depth"], given["lightning"]["heads"]
    for index, kind in enumerate(given["layers"]["mixers"]):
        change(given, index, "layer.mixer_scale", factors[SIDES[kind]])
        if kind == "lightning":
            change(given, index, "mixer.decay", FixedDecay.slopes(heads, part_of_slopes(index, depth)))


def _tell(parts: Parts) -> dict[str, Any]:
    layers = parts.spec.layers
    factors = {SIDES[parts.kind_of(layer.mixer, SIDES) or "mixer"]: layer.mixer_scale for layer in layers}
    factors["mlp"] = layers[0].ffn_scale
    pairs = ({f"{name}_alpha_factor": kept, f"{name}_beta_factor": added} for name, (kept, added) in factors.items())
    return {key: value for pair in pairs for key, value in pair.items()}


def part_of_slopes(index: int, depth: int) -> float:
    """Of ALiBi's slopes that layer `index` has: 1 at first, next to nothing at last."""
    return 1 - index / (depth - 1 + 1e-5) + 1e-5


TABLE = Table(
    FAMILY,
    "MiniMaxForCausalLM",
    {**ALL_SPARSE, "lightning": LinearAttention},
    (
        *outer(depth=32, context=131072, eps=1e-5),
        integer("num_attention_heads", "mixer.heads lightning.heads", 32),
        integer("num_key_value_heads", "mixer.kv_heads", 8),
        integer("head_dim", "mixer.head_size lightning.key_size lightning.value_size", quotient("mixer")),
        window("sliding_window", "mixer.window"),
        share("attention_dropout", "mixer.dropout"),
        turns(theta=1000000.0),
        activation("hidden_act", "experts.activation lightning.feature lightning.value_feature", "silu"),
        integer("block_size", "lightning.chunk", 256),
        integer("num_local_experts", "experts.experts", 8),
        integer("num_experts_per_tok", "experts.top_k", 2),
        integer("intermediate_size", "experts.hidden", 14336),
        linear_layers("lightning", lambda config, given: in_turn(given["layers"]["depth"], 2, 0, *SIDES)),
        Keys(_ask, _tell),
    ),
    always={"lightning.norm": Norm(), "lightning.norm_over": "all", "lightning.gate": "sigmoid"},
    silent="router_aux_loss_coef",  # training's business
)
from_config, to_config = TABLE.from_config, TABLE.to_config


def _lightning(mixer: LinearAttention) -> tuple[Rule, ...]:
    sizes = Groups((mixer.key_size, mixer.key_size, mixer.value_size))
    alone = spelled({"output_gate": "gate", "norm": "norm", "out_proj": "o"})
    return (*both("qkv_proj", "q", "k", "v", layout=sizes), *alone)


def keys(spec: ModelSpec) -> KeyMap:
    layer, softmax = spelled({**LLAMA_NORMS, **expert_names("block_sparse_moe", NUMBERED)}), named("q", "k", "v", "o")
    kinds = {Attention: ("self_attn", lambda mixer: spelled(softmax)), LinearAttention: ("self_attn", _lightning)}
    return replace(mixed_keys(spec, layer, kinds), derived=dict(_derived(spec)))


def _derived(spec: ModelSpec) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    for index, layer in enumerate(spec.layers):
        if isinstance(mixer := layer.mixer, LinearAttention):
            for name, make in TABLES.items():
                build = partial(_table, make, mixer.heads, mixer.chunk, part_of_slopes(index, len(spec.layers)))
                yield f"model.layers.{index}.self_attn.{name}", build


def _table(make: Callable[[Tensor, Tensor], Tensor], heads: int, block: int, part: float) -> Tensor:
    """In transformers' order of operations, so that not even rounding differs."""
    slope = ((1 / (2 ** (8 / heads))) ** (torch.arange(heads) + 1) * part)[:, None, None]
    return make(slope, torch.arange(block)[:, None] + 1)


def _diagonal(slope: Tensor, place: Tensor) -> Tensor:
    distance = slope * (place - place.mT)[None, None]
    return torch.exp(torch.where(distance >= 0, -distance, float("-inf")))


# The decays of a lightning layer, of its slopes and the places in a block: within the block and across blocks.
TABLES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "slope_rate": lambda slope, place: slope,
    "query_decay": lambda slope, place: torch.exp(-slope * place),
    "key_decay": lambda slope, place: torch.exp(-slope * (len(place) - place)),
    "diagonal_decay": _diagonal,
}
