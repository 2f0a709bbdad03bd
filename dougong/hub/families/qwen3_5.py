"""Qwen3.5's text model, dense or with experts: Qwen3-Next's layers with projections of their own for queries, gate,
beta and step. Its rotation has three axes (M-RoPE), always interleaved; text has one position on all of them.

Semantics: transformers' modeling_qwen3_5 and modeling_qwen3_5_moe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dougong.hub.families.common import exact, read_activation
from dougong.hub.families.qwen3_next import hybrid_keys, read_experts, read_hybrid, write_hybrid
from dougong.hub.families.reader import Reader
from dougong.hub.keymap import KeyMap, Rule
from dougong.hub.predicting import without
from dougong.model.spec import FeedForward, ModelSpec
from dougong.parts.delta import DeltaNet
from dougong.parts.experts import MoE
from dougong.parts.feedforward import GatedMLP
from dougong.parts.rope import Axes

DENSE, SPARSE = "qwen3_5_text", "qwen3_5_moe_text"
ARCHITECTURES = {DENSE: "Qwen3_5ForCausalLM", SPARSE: "Qwen3_5MoeForCausalLM"}


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    sparse = config.get("model_type") == SPARSE
    reader = Reader(SPARSE if sparse else DENSE, config)
    if sparse:
        ffn: FeedForward = read_experts(reader, reader.integer("num_experts", 256), top_k=8)
    else:
        hidden = reader.integer("intermediate_size", 12288)
        ffn = GatedMLP(hidden, read_activation(reader, "hidden_act", "silu"))
    depth = reader.integer("num_hidden_layers", 40 if sparse else 32)
    return read_hybrid(reader, [ffn] * depth, kv_heads=2 if sparse else 4, axes=Axes((11, 11, 10), interleaved=True))


def to_config(spec: ModelSpec) -> dict[str, Any]:
    family = SPARSE if spec.layers and isinstance(spec.layers[0].ffn, MoE) else DENSE
    config = write_hybrid(family, spec)
    config.pop("norm_topk_prob", None)  # always; `exact` sees to a spec that has it otherwise
    return exact(family, ARCHITECTURES[family], without(family, spec), config, from_config)


def keys(spec: ModelSpec) -> KeyMap:
    def projections(mixer: DeltaNet) -> Iterator[Rule]:
        yield Rule("in_proj_qkv.weight", ("q.weight", "k.weight", "v.weight"))
        yield from (
            Rule(f"in_proj_{foreign}.weight", (f"{own}.weight",))
            for foreign, own in (("z", "gate"), ("b", "beta"), ("a", "decay.step"))
        )

    return hybrid_keys(spec, projections)
