"""Baichuan 1 and 2 (Baichuan 2023; Yang et al. 2023): Llama's form with q, k and v in one matrix.

There is no class in transformers; semantics: the papers and the modeling files published with the weights. Their
config.json does not name the differences within the family, which show in other keys:
- 7B models turn queries and keys (RoPE) and have `max_position_embeddings`; 13B models have ALiBi, and only
  `model_max_length`;
- Baichuan 2, told by its vocabulary of 125696, brings the rows of its head to length 1 (NormHead).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dougong.hub.families.fields import Given, Keys, Parts, activation, integer, search
from dougong.hub.families.layers import GATED, outer, plain_heads
from dougong.hub.families.names import llama_keys, named
from dougong.hub.families.reader import Reader
from dougong.hub.families.table import Table
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec
from dougong.parts.position import Alibi
from dougong.parts.rope import Rope

FAMILY = "baichuan"
SECOND = 125696  # tokens in the vocabulary of Baichuan 2


def _ask(config: Reader, given: Given) -> None:
    turns = "max_position_embeddings" in config
    context = config.integer("max_position_embeddings" if turns else "model_max_length", 4096)
    given["model"]["context"] = context
    given["mixer"]["position"] = Rope(given["mixer"]["head_size"]) if turns else Alibi()


def _ways(parts: Parts) -> Iterable[dict[str, Any]]:
    names = ("model_max_length", "max_position_embeddings")  # 13B has the first alone
    return (dict.fromkeys(names[:count], parts.spec.context) for count in (1, 2))


TABLE = Table(
    FAMILY,
    "BaichuanForCausalLM",
    GATED,
    (
        *outer(context=Keys()),
        *plain_heads("num_attention_heads"),
        search(_ask, _ways),
        integer("intermediate_size", "ffn.hidden"),
        activation("hidden_act", "ffn.activation", "silu"),
    ),
    always={"head.normalised": lambda given: given["model"]["vocab"] == SECOND},
    silent="model_max_length _from_model_config z_loss_weight user_token_id assistant_token_id",
)
from_config, to_config = TABLE.from_config, TABLE.to_config


def keys(spec: ModelSpec) -> KeyMap:
    return llama_keys(attention={"W_pack": "q k v", **named("o")})
