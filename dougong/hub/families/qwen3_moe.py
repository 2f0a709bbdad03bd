"""Qwen 3 with experts (2025): Qwen 3's attention over many small experts, none of them shared.

Semantics: transformers' modeling_qwen3_moe.
"""

from __future__ import annotations

from typing import Any

from dougong.hub.families.fields import Given, Keys, Parts, flag, integer, put
from dougong.hub.families.layers import bias, decoder
from dougong.hub.families.reader import Reader
from dougong.hub.families.rope import turns
from dougong.hub.families.sparse import ACTIVATION, KINDS, PLAIN, STEPS, expert_keys, experts
from dougong.hub.families.table import Table, the_norm
from dougong.hub.families.tasks import decoder_task_keys
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec

FAMILY = "qwen3_moe"
EXPERTS = experts(
    128,
    8,
    integer("moe_intermediate_size", "experts.hidden", 768),
    flag("norm_topk_prob", "experts.router.normalise", False),
    own="num_experts",
)


def _ask_window(config: Reader, given: Given) -> None:
    size = config.window(default=4096)
    put(given, "mixer.window", size if config.flag("use_sliding_window", False) else None)


def _tell_window(parts: Parts) -> dict[str, Any]:
    window = parts.find("mixer.window")
    return {"use_sliding_window": window is not None, "sliding_window": window}


TABLE = Table(
    FAMILY,
    "Qwen3MoeForCausalLM",
    KINDS,
    (
        *decoder(32768, kv_heads=4, ffn="dense.hidden", act=ACTIVATION),
        *EXPERTS,
        bias(),
        STEPS,
        Keys(_ask_window, _tell_window),
        turns(),
    ),
    always={"mixer.qk_norm": the_norm},
    silent="max_window_layers",  # in released configs, and read by no version
    absent=PLAIN,
)
from_config, to_config = TABLE.from_config, TABLE.to_config


def keys(spec: ModelSpec) -> KeyMap:
    return decoder_task_keys(spec, expert_keys("mlp"), "transformer.")
