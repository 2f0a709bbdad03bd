"""BLOOM (BigScience 2022): ALiBi, a norm on the embeddings, q, k and v of each head together in one matrix.

Semantics: transformers' modeling_bloom. Its formula of the tanh approximation of GELU rounds sqrt(2 / pi) to 8 digits.
"""

from __future__ import annotations

from dougong.hub.families.fields import Given, Keys, choice, share
from dougong.hub.families.layers import PLAIN, sizes
from dougong.hub.families.names import key_map, megatron
from dougong.hub.families.reader import Reader
from dougong.hub.families.table import BIASES, LAYER_NORM, Table, the_norm
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec
from dougong.parts.position import Alibi

FAMILY = "bloom"


def _ask_inner(config: Reader, given: Given) -> None:
    inner = 4 * given["model"]["width"]
    given["ffn"] = {"hidden": inner}
    if config.integer("n_inner", inner) != inner:
        raise config.wrong("n_inner", config.raw("n_inner"), f"four times hidden_size, {inner}")


TABLE = Table(
    FAMILY,
    "BloomForCausalLM",
    {**PLAIN, "mixer.position": Alibi},
    (
        *sizes("hidden_size n_embed", "n_layer num_hidden_layers", "n_head num_attention_heads", "seq_length"),
        share("attention_dropout", "mixer.dropout"),
        share("hidden_dropout", "layer.dropout"),
        Keys(_ask_inner),
        choice("apply_residual_connection_post_layernorm", "layer.wiring", False, {True: "through", False: "pre"}),
    ),
    always={**LAYER_NORM, **BIASES, "embedding.norm": the_norm, "ffn.activation": "gelu_tanh"},
    # Options of the program that trained it, some of which say how to round.
    silent="""slow_but_exact attention_softmax_in_fp32 masked_softmax_fusion bias_dropout_fusion skip_bias_add
              skip_bias_add_qkv offset_alibi unk_token_id""",
)
from_config, to_config = TABLE.from_config, TABLE.to_config


def keys(spec: ModelSpec) -> KeyMap:
    layer = megatron("self_attention", spec)
    outside = {"word_embeddings": "embedding", "word_embeddings_layernorm": "embedding.norm", "ln_f": "norm"}
    return key_map("transformer.", "h.{i}", layer, outside)
