"""Baichuan 1 and 2 (Baichuan 2023; Yang et al. 2023): Llama's form with q, k and v in one matrix.

There is no class in transformers; semantics: the papers and the modeling files published with the weights. Their
config.json does not name the differences within the family, which show in other keys:
- 7B models turn queries and keys (RoPE) and have `max_position_embeddings`; 13B models have ALiBi, and only
  `model_max_length`;
- Baichuan 2, told by its vocabulary of 125696, brings the rows of its head to length 1 (NormHead).
"""

from __future__ import annotations

from typing import Any

from dougong.hub.families.fields import Given, Keys, Parts, activation, integer
from dougong.hub.families.layers import GATED, heads, outer
from dougong.hub.families.names import llama_keys, named
from dougong.hub.families.reader import Reader
from dougong.hub.families.table import Table
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec
from dougong.parts.position import Alibi
from dougong.parts.rope import Rope

FAMILY = "baichuan"
SECOND = 125696
"""Tokens in the vocabulary of Baichuan 2."""
UNREAD = ("rope_theta", "rope_scaling", "rope_parameters", "num_key_value_heads", "head_dim", "partial_rotary_factor")
"""Keys of Llama that change nothing here. Nor does attention_dropout: the published models drop nothing."""


def _ask(config: Reader, given: Given) -> None:
    turns = "max_position_embeddings" in config
    context = config.integer("max_position_embeddings" if turns else "model_max_length", 4096)
    size = given["model"]["width"] // given["mixer"]["heads"]
    given["model"]["context"] = context
    given["mixer"] |= {"head_size": size, "position": Rope(size) if turns else Alibi()}
    for key in UNREAD:
        if key in config:
            raise config.wrong(key, config.raw(key), "no such key: the published models do not read it")


def _tell(parts: Parts) -> dict[str, Any]:
    turns = isinstance(parts.find("mixer.position"), Rope)
    return dict.fromkeys(("model_max_length", "max_position_embeddings")[: 1 + turns], parts.spec.context)


TABLE = Table(
    FAMILY,
    "BaichuanForCausalLM",
    GATED,
    (
        *outer(context=Keys()),
        heads("mixer.heads mixer.kv_heads"),
        Keys(_ask, _tell),
        integer("intermediate_size", "ffn.hidden"),
        activation("hidden_act", "ffn.activation", "silu"),
    ),
    always={"head.normalised": lambda given: given["model"]["vocab"] == SECOND},
    silent="model_max_length _from_model_config z_loss_weight user_token_id assistant_token_id",
)
from_config, to_config = TABLE.from_config, TABLE.to_config


def keys(spec: ModelSpec) -> KeyMap:
    return llama_keys(attention={"W_pack": "q k v", **named("o")})
