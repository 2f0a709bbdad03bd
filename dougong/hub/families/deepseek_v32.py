"""DeepSeek-V3.2: V3 with sparse attention, whose indexer chooses the keys of every query.

Semantics: transformers' modeling_deepseek_v32. The indexer's rotary pairs are (i, i + d/2) where attention has
(2i, 2i + 1).
"""

from __future__ import annotations

from dataclasses import replace

from dougong.hub.families.deepseek import ABSENT, KINDS, UNUSED, deepseek, deepseek_keys
from dougong.hub.families.deepseek_v3 import EXPERTS, SAID
from dougong.hub.families.fields import Given, Keys, integer
from dougong.hub.families.names import with_predicting_layers
from dougong.hub.families.reader import Reader
from dougong.hub.families.sparse import SIGMOID, dense_or_sparse
from dougong.hub.families.table import Table
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec
from dougong.parts.indexer import Indexer
from dougong.parts.rope import Rope

FAMILY = "deepseek_v32"


def _check(config: Reader, given: Given) -> None:
    config.kinds("layer_types", ("indexed_attention",), ["indexed_attention"] * given["layers"]["depth"])
    if given["mixer"]["q_rank"] is None:
        raise config.wrong("q_lora_rank", None, "a number, for the indexer reads the queries' latent")


def _turned(given: Given) -> Rope:
    return replace(given["mixer"]["position"], interleaved=False)


TABLE = Table(
    FAMILY,
    "DeepseekV32ForCausalLM",
    {**KINDS, "mixer.indexer": Indexer},
    deepseek(
        163840,
        18432,
        *EXPERTS,
        integer("index_n_heads", "mixer.indexer.heads", 64),
        integer("index_head_dim", "mixer.indexer.size", 128),
        integer("index_topk", "mixer.indexer.top_k", 2048),
        Keys(_check),
        *dense_or_sparse(3),
    ),
    always={**SIGMOID, "mixer.indexer.position": _turned},
    said=SAID,
    silent=f"mlp_bias {UNUSED}",  # the former of no layer that the model has
    absent=ABSENT,
    predicts=True,
)
from_config, to_config = TABLE.from_config, TABLE.to_config


def keys(spec: ModelSpec) -> KeyMap:
    return with_predicting_layers(deepseek_keys(spec), spec)
