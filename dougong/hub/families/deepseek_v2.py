"""DeepSeek-V2 and V2-Lite: latent attention, and experts chosen by softmax, in groups or freely.

Semantics: transformers' modeling_deepseek_v2, which never renormalises the weights of the chosen experts and so gives
`norm_topk_prob` no meaning (it is false in all published configs).
"""

from __future__ import annotations

from typing import Any

from dougong.hub.families.deepseek import ABSENT, KINDS, UNUSED, deepseek, deepseek_keys
from dougong.hub.families.fields import Given, Keys, Parts, flag
from dougong.hub.families.reader import Reader
from dougong.hub.families.sparse import first_dense, grouped
from dougong.hub.families.table import Table
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec

FAMILY = "deepseek_v2"
METHODS = GREEDY, GROUPED = ("greedy", "group_limited_greedy")


def _ask(config: Reader, given: Given) -> None:
    if (method := config.raw("topk_method", GREEDY)) not in METHODS:
        raise config.wrong("topk_method", method, "'greedy' or 'group_limited_greedy'")
    if method == GREEDY:
        given["experts.router"] |= {"groups": 1, "top_groups": 1}


def _tell(parts: Parts) -> dict[str, Any]:
    return {"topk_method": GREEDY if parts.find("experts.router.groups") == 1 else GROUPED}


TABLE = Table(
    FAMILY,
    "DeepseekV2ForCausalLM",
    KINDS,
    deepseek(
        2048,
        11008,
        *grouped(64, 0, 1407, common=2, names="n_routed_experts num_experts_per_tok n_shared_experts n_group"),
        Keys(_ask, _tell),
        flag("mlp_bias", "dense.bias experts.shared.bias", False),
        first_dense(0),
    ),
    always={"experts.router.normalise": False},
    said={"scoring_func": "softmax", "moe_layer_freq": 1},
    silent=f"norm_topk_prob {UNUSED}",
    absent=ABSENT,
    divides=True,
)
from_config, to_config = TABLE.from_config, TABLE.to_config


def keys(spec: ModelSpec) -> KeyMap:
    return deepseek_keys(spec)
