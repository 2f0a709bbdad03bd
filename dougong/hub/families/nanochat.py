"""nanochat (Karpathy 2025): norms without weights, also on the embeddings and on queries and keys once turned; squared
ReLU; capped logits.

Semantics: transformers' modeling_nanochat. It turns the other way round, (a, b) -> (a cos + b sin, b cos - a sin),
which is the usual turn of (b, a): the two halves of each head of q and k change places between file and model, and
scores, which do not mind the order of coordinates, stay what they are.
"""

from __future__ import annotations

from dougong.hub.families.common import attention_of
from dougong.hub.families.fields import activation, cap
from dougong.hub.families.layers import PLAIN, bias, decoder
from dougong.hub.families.names import both, llama_keys, named
from dougong.hub.families.rope import turns
from dougong.hub.families.table import Table, the_norm
from dougong.hub.keymap import KeyMap
from dougong.hub.layouts import Permuted
from dougong.model.spec import ModelSpec

FAMILY = "nanochat"
TABLE = Table(
    FAMILY,
    "NanoChatForCausalLM",
    PLAIN,
    (
        *decoder(2048, act=activation("hidden_act", "ffn.activation", "relu2")),
        bias(),
        cap("final_logit_softcapping", "head.softcap", 15.0),
        turns(),
    ),
    always={
        "norm.weight": False,
        "embedding.norm": the_norm,
        "mixer.qk_norm": the_norm,
        "mixer.qk_norm_after_turn": True,
    },
)
from_config, to_config = TABLE.from_config, TABLE.to_config


def keys(spec: ModelSpec) -> KeyMap:
    size = attention_of(FAMILY, spec).head_size
    swapped = Permuted((*range(size // 2, size), *range(size // 2)))
    turned = (rule for name in "qk" for rule in both(f"self_attn.{name}_proj", f"mixer.{name}", layout=swapped))
    return llama_keys({}, named("v", "o"), {"fc1": "up", "fc2": "down"}, more=turned)
