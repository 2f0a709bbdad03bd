"""Qwen3-Next: gated DeltaNet layers with a gated attention layer after every few, and a mixture of experts with a
shared one. Norms keep their factor as its distance from 1.

Semantics: transformers' modeling_qwen3_next. Files may hold a layer for predicting a further token (mtp.*), which
transformers leaves out.
"""

from __future__ import annotations

from dougong.hub.families.fields import flag, integer
from dougong.hub.families.hybrid import ALWAYS, TRAINING, experts, hybrid, hybrid_keys
from dougong.hub.families.names import both
from dougong.hub.families.sparse import HYBRID, STEPS, unless_fewer
from dougong.hub.families.table import Table
from dougong.hub.families.tasks import decoder_task_keys
from dougong.hub.keymap import KeyMap, Rule
from dougong.hub.layouts import Groups
from dougong.model.spec import ModelSpec
from dougong.parts.delta import DeltaNet

FAMILY = "qwen3_next"
MLP = integer("intermediate_size", "dense.hidden", 5632)
NORMALISE = flag("norm_topk_prob", "experts.router.normalise", True)
TABLE = Table(
    FAMILY,
    "Qwen3NextForCausalLM",
    HYBRID,
    (*hybrid(48, 2), MLP, *experts(512, 10), NORMALISE, STEPS, unless_fewer(1)),
    always=ALWAYS,
    silent=TRAINING,
    predicts=True,
)
from_config, to_config = TABLE.from_config, TABLE.to_config


def keys(spec: ModelSpec) -> KeyMap:
    def fused(mixer: DeltaNet) -> tuple[Rule, ...]:
        """Queries, keys, values and gates in turn, a key head with its value heads at a time; so beta and step."""
        group = mixer.value_heads // mixer.key_heads
        values = group * mixer.value_size
        sizes = Groups((mixer.key_size, mixer.key_size, values, values))
        return (
            *both("in_proj_qkvz", "q", "k", "v", "gate", layout=sizes),
            *both("in_proj_ba", "beta", "decay.step", layout=Groups((group, group))),
        )

    return decoder_task_keys(spec, hybrid_keys(spec, fused), "transformer.")
