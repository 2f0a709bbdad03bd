"""Qwen3.5's text model, dense or with experts: Qwen3-Next's layers with projections of their own for queries, gate,
beta and step. Its rotation has three axes (M-RoPE), always interleaved; text has one position on all of them.

Semantics: transformers' modeling_qwen3_5 and modeling_qwen3_5_moe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dougong.hub.families.hybrid import ALWAYS, TRAINING, experts, hybrid, hybrid_keys
from dougong.hub.families.names import spelled
from dougong.hub.families.qwen3_next import MLP
from dougong.hub.families.sparse import HYBRID
from dougong.hub.families.table import Table
from dougong.hub.keymap import KeyMap, Rule
from dougong.hub.layouts import Concat
from dougong.model.spec import ModelSpec
from dougong.parts.experts import MoE
from dougong.parts.rope import Axes

AXES = Axes((11, 11, 10), interleaved=True)
ONLY_DENSE = {name: kind for name, kind in HYBRID.items() if not name.startswith("experts")}
DENSE = Table(
    "qwen3_5_text",
    "Qwen3_5ForCausalLM",
    ONLY_DENSE,
    (*hybrid(32, 4, AXES), replace(MLP, usual=12288)),
    always=ALWAYS,
    silent=TRAINING,
    predicts=True,
)
SPARSE = replace(
    DENSE,
    family="qwen3_5_moe_text",
    architecture="Qwen3_5MoeForCausalLM",
    kinds={name: kind for name, kind in HYBRID.items() if name != "dense"},
    keys=(*hybrid(40, 2, AXES), *experts(256, 8)),
)
# The released files keep all experts of a layer in one tensor; transformers writes one for each, and reads both.
STACKED = (
    Rule("mlp.experts.gate_up_proj", ("ffn.experts.gate.weight", "ffn.experts.up.weight"), layout=Concat(1)),
    Rule("mlp.experts.down_proj", ("ffn.experts.down.weight",)),
)
PROJECTIONS = spelled({"in_proj_qkv": "q k v", "in_proj_z": "gate", "in_proj_b": "beta", "in_proj_a": "decay.step"})


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    return (SPARSE if config.get("model_type") == SPARSE.family else DENSE).from_config(config)


def to_config(spec: ModelSpec) -> dict[str, Any]:
    return (SPARSE if spec.layers and isinstance(spec.layers[0].ffn, MoE) else DENSE).to_config(spec)


def keys(spec: ModelSpec) -> KeyMap:
    return hybrid_keys(spec, lambda mixer: PROJECTIONS, STACKED)
