"""DeepSeek-V3, R1 and the models of their form (Moonlight): latent attention, experts by sigmoid with a correction.

Semantics: transformers' modeling_deepseek_v3. Files may hold layers for multi-token prediction besides, which
transformers leaves out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dougong.hub.families.deepseek import ABSENT, KINDS, UNUSED, deepseek, deepseek_keys
from dougong.hub.families.fields import Given, Keys, Parts
from dougong.hub.families.names import with_predicting_layers
from dougong.hub.families.reader import Reader
from dougong.hub.families.sparse import PREDICTING, SIGMOID, first_dense, grouped
from dougong.hub.families.table import Table
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec

FAMILY = "deepseek_v3"
SAID = {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1}
EXPERTS = (*grouped(256, 8, 2048, scale=2.5, groups=8, top=4), PREDICTING)


def _ask(config: Reader, given: Given) -> None:
    """In this family alone transformers lets the sizes of heads that follow from others be given."""
    nope, rope = given["mixer"]["nope_size"], given["mixer"]["rope_size"]
    for key, size in (("head_dim", rope), ("qk_head_dim", nope + rope)):
        if (value := config.raw(key, size)) != size and (value is not None or key == "head_dim"):
            raise config.wrong(key, value, f"{size}, as qk_nope_head_dim and qk_rope_head_dim say")
    turning = config.flag("rope_interleave", config.raw("rope_interleave", True) is not None)
    given["mixer"]["position"] = replace(given["mixer"]["position"], interleaved=turning)


def _tell(parts: Parts) -> dict[str, Any]:
    return {"rope_interleave": parts.find("mixer.position.interleaved") is True}


TABLE = Table(
    FAMILY,
    "DeepseekV3ForCausalLM",
    KINDS,
    deepseek(4096, 18432, *EXPERTS, Keys(_ask, _tell), first_dense(3)),
    always=SIGMOID,
    said=SAID,
    silent=UNUSED,
    absent=ABSENT,
    predicts=True,
)
from_config, to_config = TABLE.from_config, TABLE.to_config


def keys(spec: ModelSpec) -> KeyMap:
    return with_predicting_layers(deepseek_keys(spec), spec)
