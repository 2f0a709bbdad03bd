"""Falcon (Almazrouei et al. 2023): attention and feed-forward side by side, from one norm or from one each.

Semantics: transformers' modeling_falcon. q, k and v lie together, a group of heads a key head: all query heads with one
key head in the first architecture (`multi_query`), any number with each in the new one. `attention_dropout` acts on
the weights with ALiBi only, and on the output of attention where the feed-forward comes after it. ALiBi (Falcon-RW)
is rounded to bfloat16, as in the code published with the model. transformers' usual attention adds it once, and so does
this; its "eager" one adds it twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dougong.hub.families.common import attention_of
from dougong.hub.families.fields import Given, Keys, Parts, activation, flag, integer, search
from dougong.hub.families.layers import PLAIN, sizes
from dougong.hub.families.names import LLAMA_NORMS, MEGATRON, both, key_map, spelled
from dougong.hub.families.reader import Reader
from dougong.hub.families.rope import turns
from dougong.hub.families.table import LAYER_NORM, Table
from dougong.hub.keymap import KeyMap
from dougong.hub.layouts import Groups
from dougong.model.spec import ModelSpec
from dougong.parts.position import Alibi

FAMILY = "falcon"
TURNS = turns()


def _ask_position(config: Reader, given: Given) -> None:
    mixer = given["mixer"]
    if config.flag("alibi", False):  # scores are scaled after ALiBi has been added, so it is scaled with them
        mixer["position"] = Alibi(factor=mixer["head_size"] ** -0.5, rounded=True)
        config.pass_over("rope_parameters rope_theta rope_scaling")
    else:
        TURNS.read(config, given)


def _tell_position(parts: Parts) -> dict[str, Any]:
    alibi = isinstance(parts.find("mixer.position"), Alibi)
    return {"alibi": alibi, **({} if alibi else TURNS.write(parts))}


# (new_decoder_architecture, parallel_attn, num_ln_in_parallel_attn): where norms stand.
WIRINGS = {
    (False, True, 1): "parallel",
    (False, False, 1): "pre",
    (True, True, 1): "parallel",
    (True, True, 2): "parallel_norms",
}


def _ask_wiring(config: Reader, given: Given) -> None:
    """And how many key heads: one, or one for each head, in the first architecture."""
    mixer, new, one = given["mixer"], config.flag("new_decoder_architecture", False), config.flag("multi_query", True)
    heads, shared = mixer["heads"], mixer["kv_heads"]
    if not new and not one and shared != heads:
        raise config.wrong("num_kv_heads", shared, f"{heads}, one for each head, without multi_query")
    mixer["kv_heads"] = shared if new else 1 if one else heads
    parallel, norms = config.flag("parallel_attn", True), config.integer("num_ln_in_parallel_attn", 2 if new else 1)
    if (new, parallel, norms) not in WIRINGS:
        found = f"parallel_attn is {parallel} and num_ln_in_parallel_attn {norms}"
        raise config.wrong("new_decoder_architecture", new, f"another value, for {found}")
    given["layer"] = {"wiring": WIRINGS[new, parallel, norms]}


def _ways(parts: Parts) -> Iterable[dict[str, Any]]:
    names = ("new_decoder_architecture", "parallel_attn", "num_ln_in_parallel_attn")
    return ({**dict(zip(names, each, strict=True)), "multi_query": one} for each in WIRINGS for one in (True, False))


def _ask_dropout(config: Reader, given: Given) -> None:
    mixer, layer = given["mixer"], given["layer"]
    seen, layer["dropout"] = config.share("attention_dropout"), config.share("hidden_dropout")
    mixer["dropout"] = seen if isinstance(mixer["position"], Alibi) else 0.0
    if layer["wiring"] == "pre" and seen != layer["dropout"]:
        layer |= {"dropout": seen, "ffn_dropout": layer["dropout"]}


def _tell_dropout(parts: Parts) -> dict[str, Any]:
    layer = parts.held["layer"]
    return {
        "attention_dropout": layer.dropout if layer.wiring == "pre" else parts.find("mixer.dropout"),
        "hidden_dropout": layer.dropout if layer.ffn_dropout is None else layer.ffn_dropout,
    }


TABLE = Table(
    FAMILY,
    "FalconForCausalLM",
    PLAIN,
    (
        *sizes(
            "hidden_size n_embed", "num_hidden_layers n_layer", "num_attention_heads n_head", "max_position_embeddings"
        ),
        integer("num_kv_heads", "mixer.kv_heads", lambda given: given["mixer"]["heads"], also="n_head_kv"),
        flag("bias", "mixer.bias mixer.out_bias ffn.bias", False),
        integer("ffn_hidden_size", "ffn.hidden", lambda given: 4 * given["model"]["width"]),
        activation("activation", "ffn.activation", "gelu", tanh="gelu_new"),
        Keys(_ask_position, _tell_position),
        search(_ask_wiring, _ways),
        Keys(_ask_dropout, _tell_dropout),
    ),
    always=LAYER_NORM,
    silent="apply_residual_connection_post_layernorm",  # read by nothing
)
from_config, to_config = TABLE.from_config, TABLE.to_config


def keys(spec: ModelSpec) -> KeyMap:
    mixer, apart = attention_of(FAMILY, spec), spec.layers[0].wiring == "parallel_norms"
    norms = {"ln_attn": "mixer_norm", "ln_mlp": "ffn_norm"} if apart else LLAMA_NORMS
    group = Groups((mixer.heads // mixer.kv_heads * mixer.head_size, mixer.head_size, mixer.head_size))
    qkv = both("self_attention.query_key_value", "mixer.q", "mixer.k", "mixer.v", layout=group)
    names = {**norms, "self_attention.dense": "mixer.o", **MEGATRON}
    return key_map(
        "transformer.",
        "h.{i}",
        (*spelled(names), *qkv),
        {"word_embeddings": "embedding", "ln_f": "norm"},
        tables=("self_attention.rotary_emb.inv_freq",),
    )
