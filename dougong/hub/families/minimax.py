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

from dougong.base import DougongError
from dougong.hub.families.fields import Given, Keys, Parts, activation, change, integer, share, window
from dougong.hub.families.layers import FULL, LINEAR, outer, pattern, quotient
from dougong.hub.families.names import LLAMA_NORMS, both, by_mixer, key_map, named, spelled
from dougong.hub.families.reader import Reader
from dougong.hub.families.rope import turns
from dougong.hub.families.sparse import ALL_SPARSE, NUMBERED, expert_names
from dougong.hub.families.table import Table
from dougong.hub.keymap import KeyMap
from dougong.hub.layouts import Groups
from dougong.model.spec import ModelSpec
from dougong.parts.attention import Attention
from dougong.parts.decay import FixedDecay
from dougong.parts.linear_attention import LinearAttention
from dougong.parts.norm import Norm

FAMILY = "minimax"
SIDES = {"mixer": "full_attn", "lightning": "linear_attn"}  # the beginnings of keys for factors of the residual path


def _in_turn(config: Reader, given: Given) -> list[str]:
    return [[*SIDES][index % 2] for index in range(given["layers"]["depth"])]


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
    factors = {SIDES[parts.kind_of(layer.mixer, SIDES) or "mixer"]: layer.mixer_scale for layer in parts.spec.layers}
    factors["mlp"] = parts.spec.layers[0].ffn_scale
    pairs = (zip(("alpha", "beta"), each, strict=True) for each in factors.values())
    return {f"{name}_{side}_factor": value for name, pair in zip(factors, pairs, strict=True) for side, value in pair}


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
        pattern("layer_types", "mixers", {FULL: "mixer", LINEAR: "lightning"}, _in_turn),
        Keys(_ask, _tell),
    ),
    always={"lightning.norm": Norm(), "lightning.norm_over": "all", "lightning.gate": "sigmoid"},
    silent="router_aux_loss_coef",  # training's business
)
from_config, to_config = TABLE.from_config, TABLE.to_config


def keys(spec: ModelSpec) -> KeyMap:
    mixers = (layer.mixer for layer in spec.layers if isinstance(layer.mixer, LinearAttention))
    sizes = next(((each.key_size, each.key_size, each.value_size) for each in mixers), (1, 1, 1))
    names = spelled({"output_gate": "gate", "norm": "norm", "out_proj": "o"})
    lightning = (*both("qkv_proj", "q", "k", "v", layout=Groups(sizes)), *names)
    kinds = {
        LinearAttention: ("self_attn", lightning),
        Attention: ("self_attn", spelled(named("q", "k", "v", "o"))),
    }
    layer = spelled({**LLAMA_NORMS, **expert_names("block_sparse_moe", NUMBERED)})
    outside, more = {"embed_tokens": "embedding", "norm": "norm"}, by_mixer(spec, "model.layers.{i}", kinds)
    return replace(key_map("model.", "layers.{i}", layer, outside, *more), derived=dict(_tables(spec)))


def _tables(spec: ModelSpec) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """The decays of a lightning layer: its slopes s, and exp(-s distance) within and across blocks."""
    for index, layer in enumerate(spec.layers):
        if isinstance(layer.mixer, LinearAttention):
            part = part_of_slopes(index, len(spec.layers))
            for name in ("slope_rate", "query_decay", "key_decay", "diagonal_decay"):
                make = partial(_table, name, layer.mixer.heads, layer.mixer.chunk, part)
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
