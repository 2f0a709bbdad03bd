"""Falcon (Almazrouei et al. 2023): attention and feed-forward side by side, from one norm or from one each.

Semantics: transformers' modeling_falcon. q, k and v lie together, a group of heads a key head: all query heads with one
key head in the first architecture (`multi_query`), any number with each in the new one. `attention_dropout` acts on
the weights with ALiBi only, and on the output of attention where the feed-forward comes after it. Where
transformers strays from the model with ALiBi (Falcon-RW) it is not followed: its slopes and their products with
positions are rounded to bfloat16, and its "eager" attention adds ALiBi twice, its usual one once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dougong.hub.families.common import (
    attention_of,
    exact,
    expect,
    first_layer,
    pass_over,
    read_activation,
    respelled,
    write_activation,
)
from dougong.hub.families.names import both
from dougong.hub.families.reader import Reader
from dougong.hub.families.rope import read_rope, write_rope
from dougong.hub.keymap import KeyMap, Rule
from dougong.hub.layouts import Groups
from dougong.model.spec import LayerSpec, ModelSpec, Wiring
from dougong.parts.attention import Attention
from dougong.parts.embedding import Embedding, Head
from dougong.parts.feedforward import MLP
from dougong.parts.norm import Norm
from dougong.parts.position import Alibi

FAMILY = "falcon"
ARCHITECTURE = "FalconForCausalLM"
OLD = {
    "n_embed": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_head_kv": "num_kv_heads",
}


def _heads(reader: Reader, heads: int, new: bool) -> int:
    """Key heads."""
    shared = reader.integer("num_kv_heads", heads)
    one = reader.flag("multi_query", True)
    if new:
        return shared
    if not one and shared != heads:
        raise reader.wrong("num_kv_heads", shared, f"{heads}, one for each head, without multi_query")
    return 1 if one else heads


def _wiring(reader: Reader, new: bool) -> Wiring:
    parallel, norms = reader.flag("parallel_attn", True), reader.integer("num_ln_in_parallel_attn", 2 if new else 1)
    if new and not parallel:
        raise reader.wrong("parallel_attn", parallel, "true in the new_decoder_architecture")
    if norms > (2 if new else 1):
        raise reader.wrong("num_ln_in_parallel_attn", norms, "1, or 2 in the new_decoder_architecture")
    return "pre" if not parallel else "parallel" if norms == 1 else "parallel_norms"


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = Reader(FAMILY, respelled(config, **OLD))
    pass_over(reader, "apply_residual_connection_post_layernorm")  # read by nothing
    width, heads = reader.integer("hidden_size"), reader.integer("num_attention_heads")
    if width % heads:
        raise reader.wrong("num_attention_heads", heads, f"a divisor of hidden_size, {width}")
    size, context = width // heads, reader.integer("max_position_embeddings", 2048)
    bias, new = reader.flag("bias", False), reader.flag("new_decoder_architecture", False)
    if reader.flag("alibi", False):
        position = Alibi(factor=size**-0.5)  # scores are scaled after ALiBi has been added, so it is scaled with them
        pass_over(reader, "rope_parameters rope_theta rope_scaling")
    else:
        position = read_rope(reader, size, context)
    mixer = Attention(heads, _heads(reader, heads, new), size, bias, bias, position)
    hidden = reader.integer("ffn_hidden_size", 4 * width)
    ffn = MLP(hidden, read_activation(reader, "activation", "gelu"), bias)
    norm = Norm("layer", reader.number("layer_norm_epsilon", 1e-5), bias=True)
    layers = (_with_dropout(reader, LayerSpec(mixer, ffn, norm, _wiring(reader, new))),) * reader.integer(
        "num_hidden_layers"
    )
    head = Head(tied=reader.flag("tie_word_embeddings", True))
    vocab = reader.integer("vocab_size")
    reader.refuse_rest()
    return ModelSpec(vocab, width, context, layers, Embedding(), norm, head)


def _with_dropout(reader: Reader, layer: LayerSpec) -> LayerSpec:
    seen, hidden = reader.share("attention_dropout"), reader.share("hidden_dropout")
    mixer = expect(FAMILY, "mixer", layer.mixer, Attention)
    layer = replace(layer, mixer=replace(mixer, dropout=seen)) if isinstance(mixer.position, Alibi) else layer
    if layer.wiring == "pre":
        return replace(layer, dropout=seen, ffn_dropout=None if hidden == seen else hidden)
    return replace(layer, dropout=hidden)


def to_config(spec: ModelSpec) -> dict[str, Any]:
    first, mixer = first_layer(FAMILY, spec), attention_of(FAMILY, spec)
    ffn = expect(FAMILY, "ffn", first.ffn, MLP)
    new = first.wiring == "parallel_norms" or mixer.kv_heads not in (1, mixer.heads)
    config = {
        "vocab_size": spec.vocab,
        "hidden_size": spec.width,
        "ffn_hidden_size": ffn.hidden,
        "num_hidden_layers": len(spec.layers),
        "num_attention_heads": mixer.heads,
        "num_kv_heads": mixer.kv_heads,
        "activation": write_activation(ffn.activation, tanh="gelu_new"),
        "max_position_embeddings": spec.context,
        "layer_norm_epsilon": first.norm.eps,
        "attention_dropout": first.dropout if first.wiring == "pre" else mixer.dropout,
        "hidden_dropout": first.dropout if first.ffn_dropout is None else first.ffn_dropout,
        "bias": mixer.bias,
        "new_decoder_architecture": new,
        "multi_query": mixer.kv_heads == 1,
        "parallel_attn": first.wiring != "pre",
        "num_ln_in_parallel_attn": 2 if first.wiring == "parallel_norms" else 1,
        "alibi": isinstance(mixer.position, Alibi),
        **({} if isinstance(mixer.position, Alibi) else write_rope(FAMILY, mixer.position)),
        "tie_word_embeddings": expect(FAMILY, "head", spec.head, Head).tied,
    }
    return exact(FAMILY, ARCHITECTURE, spec, config, from_config)


def keys(spec: ModelSpec) -> KeyMap:
    theirs, ours, mixer = "transformer.h.{i}", "layers.{i}", attention_of(FAMILY, spec)
    group = (mixer.heads // mixer.kv_heads * mixer.head_size, mixer.head_size, mixer.head_size)
    apart = first_layer(FAMILY, spec).wiring == "parallel_norms"
    norms = ("ln_attn", "ln_mlp") if apart else ("input_layernorm", "post_attention_layernorm")
    return KeyMap(
        rules=(
            Rule("transformer.word_embeddings.weight", ("embedding.weight",)),
            *both(f"{theirs}.{norms[0]}", f"{ours}.mixer_norm"),
            *both(f"{theirs}.{norms[1]}", f"{ours}.ffn_norm"),
            *both(
                f"{theirs}.self_attention.query_key_value",
                *(f"{ours}.mixer.{name}" for name in "qkv"),
                layout=Groups(group),
            ),
            *both(f"{theirs}.self_attention.dense", f"{ours}.mixer.o"),
            *both(f"{theirs}.mlp.dense_h_to_4h", f"{ours}.ffn.up"),
            *both(f"{theirs}.mlp.dense_4h_to_h", f"{ours}.ffn.down"),
            *both("transformer.ln_f", "norm"),
            Rule("lm_head.weight", ("head.weight",)),
        ),
        prefix="transformer.",
        constants=(f"{theirs}.self_attention.rotary_emb.inv_freq",),
        tied=("lm_head.weight", "transformer.word_embeddings.weight"),
    )
