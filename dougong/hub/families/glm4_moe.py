"""GLM-4.5 and 4.6 (2025): a few dense layers, then experts chosen in groups by sigmoid scores and a correction, as in
DeepSeek-V3, with a shared feed-forward; half of each head turned.

Semantics: transformers' modeling_glm4_moe.
"""

from __future__ import annotations

from dougong.hub.families.fields import Key, flag
from dougong.hub.families.layers import decoder
from dougong.hub.families.names import with_predicting_layers
from dougong.hub.families.reader import Reader
from dougong.hub.families.rope import turns
from dougong.hub.families.sparse import (
    ACTIVATION,
    PLAIN,
    PREDICTING,
    SHARED,
    SIGMOID,
    correction,
    expert_keys,
    first_dense,
    grouped,
)
from dougong.hub.families.table import Table, the_norm
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec

FAMILY = "glm4_moe"
QK_NORM = Key("use_qk_norm", "mixer.qk_norm", Reader.flag, False, tell=lambda norm: norm is not None)
TABLE = Table(
    FAMILY,
    "Glm4MoeForCausalLM",
    SHARED,
    (
        *decoder(131072, kv_heads=8, eps=1e-5, ffn="dense.hidden", act=ACTIVATION),
        *grouped(128, 8, 1408),
        first_dense(1),
        flag("attention_bias", "mixer.bias", False),
        QK_NORM,
        PREDICTING,
        turns(partial=0.5),
    ),
    always={**SIGMOID, "mixer.qk_norm": lambda given: the_norm(given) if given["mixer"]["qk_norm"] else None},
    absent=PLAIN,
    predicts=True,
)
from_config, to_config = TABLE.from_config, TABLE.to_config


def keys(spec: ModelSpec) -> KeyMap:
    return with_predicting_layers(expert_keys("mlp", shared="shared_experts", more=correction("mlp.gate")), spec)
