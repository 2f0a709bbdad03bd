"""Qwen1.5-MoE and Qwen2-MoE (2024): Qwen 2 with many small experts and a gated feed-forward that all tokens share.

Semantics: transformers' modeling_qwen2_moe.
"""

from __future__ import annotations

from dougong.hub.families.fields import flag, integer
from dougong.hub.families.layers import decoder, qwen_windows
from dougong.hub.families.names import both
from dougong.hub.families.rope import turns
from dougong.hub.families.sparse import ACTIVATION, PLAIN, SHARED, STEPS, expert_keys, experts
from dougong.hub.families.table import Table
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec

FAMILY = "qwen2_moe"
EXPERTS = experts(
    60,
    4,
    integer("moe_intermediate_size", "experts.hidden", 1408),
    integer("shared_expert_intermediate_size", "experts.shared.hidden", 5632),
    flag("norm_topk_prob", "experts.router.normalise", False),
    flag("qkv_bias", "mixer.bias", True),
    own="num_experts",
)
# Unlike in dense Qwen, the window is that of every second layer below max_window_layers.
WINDOWS = qwen_windows(full=lambda index, first: index >= first or index % 2 == 1)
TABLE = Table(
    FAMILY,
    "Qwen2MoeForCausalLM",
    SHARED,
    (*decoder(32768, kv_heads=16, ffn="dense.hidden", act=ACTIVATION), *EXPERTS, STEPS, WINDOWS, turns()),
    always={"experts.shared_gate": True},
    absent=PLAIN,
)
from_config, to_config = TABLE.from_config, TABLE.to_config


def keys(spec: ModelSpec) -> KeyMap:
    return expert_keys("mlp", shared="shared_expert", more=both("mlp.shared_expert_gate", "ffn.shared_gate"))
