"""DeepSeek-V3.2: V3 with sparse attention, whose indexer chooses the keys of every query.

Semantics: transformers' modeling_deepseek_v32. The indexer's rotary pairs are (i, i + d/2) where attention has
(2i, 2i + 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dougong.base import DougongError
from dougong.hub.families.common import exact
from dougong.hub.families.deepseek import deepseek_keys, read_deepseek, write_deepseek
from dougong.hub.families.deepseek_v3 import USUAL, read_router
from dougong.hub.families.names import with_predicting_layers
from dougong.hub.families.reader import Reader
from dougong.hub.keymap import KeyMap
from dougong.hub.predicting import without
from dougong.model.spec import ModelSpec
from dougong.parts.experts import MoE
from dougong.parts.indexer import Indexer

FAMILY = "deepseek_v32"
ARCHITECTURE = "DeepseekV32ForCausalLM"


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = Reader(FAMILY, config)
    reader.raw("mlp_bias")  # of no layer that the model has
    if reader.raw("q_lora_rank", 1536) is None:
        raise reader.wrong("q_lora_rank", None, "a number, for the indexer reads the queries' latent")
    heads, size, kept = (
        reader.integer(key, usual)
        for key, usual in (("index_n_heads", 64), ("index_head_dim", 128), ("index_topk", 2048))
    )
    types, attention = reader.raw("mlp_layer_types"), reader.raw("layer_types")

    def dense(depth: int) -> Sequence[bool]:
        if attention not in (None, ["indexed_attention"] * depth):
            raise reader.wrong("layer_types", attention, f"{depth} of 'indexed_attention'")
        if types is None:
            first = reader.integer("first_k_dense_replace", 3, least=0)
            return [index < first for index in range(depth)]
        if not isinstance(types, list) or len(types) != depth or not {*types} <= {"dense", "sparse"}:
            raise reader.wrong("mlp_layer_types", types, f"{depth} of 'dense' or 'sparse'")
        return [kind == "dense" for kind in types]

    return read_deepseek(
        reader,
        {**USUAL, "context": 163840},
        read_router(reader),
        dense=dense,
        indexer=lambda rope: Indexer(heads, size, kept, replace(rope, interleaved=False)),
    )


def to_config(spec: ModelSpec) -> dict[str, Any]:
    config, mixer, router = write_deepseek(FAMILY, spec)
    if (indexer := mixer.indexer) is None:
        raise DougongError(f"{FAMILY} cannot express attention without an indexer")
    config |= {
        "norm_topk_prob": router.normalise,
        "num_nextn_predict_layers": spec.mtp.depth if spec.mtp else 0,
        "index_n_heads": indexer.heads,
        "index_head_dim": indexer.size,
        "index_topk": indexer.top_k,
        "mlp_layer_types": ["sparse" if isinstance(layer.ffn, MoE) else "dense" for layer in spec.layers],
    }
    return exact(FAMILY, ARCHITECTURE, without(FAMILY, spec), config, from_config)


def keys(spec: ModelSpec) -> KeyMap:
    return with_predicting_layers(deepseek_keys(spec), spec)
