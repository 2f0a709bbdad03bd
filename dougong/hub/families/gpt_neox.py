"""GPT-NeoX (Black et al. 2022) and Pythia: attention and feed-forward side by side, a quarter of each head turns, q, k
and v of each head lie together in one matrix.

Semantics: transformers' modeling_gpt_neox.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from dougong.hub.families.rope import read_rope, rope_share, write_rope
from dougong.hub.keymap import KeyMap, Rule
from dougong.hub.layouts import Groups
from dougong.model.spec import LayerSpec, ModelSpec
from dougong.parts.attention import Attention
from dougong.parts.embedding import Embedding, Head
from dougong.parts.feedforward import MLP
from dougong.parts.norm import Norm

FAMILY = "gpt_neox"
ARCHITECTURE = "GPTNeoXForCausalLM"


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = Reader(FAMILY, respelled(config, rotary_emb_base="rope_theta", rotary_pct="partial_rotary_factor"))
    pass_over(reader, "classifier_dropout is_decoder")
    width, heads = reader.integer("hidden_size"), reader.integer("num_attention_heads")
    if width % heads:
        raise reader.wrong("num_attention_heads", heads, f"a divisor of hidden_size, {width}")
    context, size = reader.integer("max_position_embeddings", 2048), width // heads
    bias = reader.flag("attention_bias", True)
    rope, seen = read_rope(reader, size, context, partial=0.25), reader.share("attention_dropout")
    mixer = Attention(heads, heads, size, bias, bias, rope, dropout=seen)
    ffn = MLP(reader.integer("intermediate_size"), read_activation(reader, "hidden_act", "gelu"), bias=True)
    norm = Norm("layer", reader.number("layer_norm_eps", 1e-5), bias=True)
    wiring = "parallel_norms" if reader.flag("use_parallel_residual", True) else "pre"
    dropout = reader.share("hidden_dropout")
    apart = (dropout or None) if wiring == "parallel_norms" else None  # each output by itself, before they are added
    layer = LayerSpec(mixer, ffn, norm, wiring, dropout=dropout, ffn_dropout=apart)
    layers = (layer,) * reader.integer("num_hidden_layers")
    head = Head(tied=reader.flag("tie_word_embeddings", False))
    vocab = reader.integer("vocab_size")
    reader.refuse_rest()
    return ModelSpec(vocab, width, context, layers, Embedding(dropout=dropout), norm, head)


def to_config(spec: ModelSpec) -> dict[str, Any]:
    first, mixer = first_layer(FAMILY, spec), attention_of(FAMILY, spec)
    ffn, rope = expect(FAMILY, "ffn", first.ffn, MLP), write_rope(FAMILY, mixer.position)
    config = {
        "vocab_size": spec.vocab,
        "hidden_size": spec.width,
        "intermediate_size": ffn.hidden,
        "num_hidden_layers": len(spec.layers),
        "num_attention_heads": mixer.heads,
        "hidden_act": write_activation(ffn.activation, tanh="gelu_new"),
        "max_position_embeddings": spec.context,
        "layer_norm_eps": first.norm.eps,
        "rotary_emb_base": rope["rope_theta"],
        "rotary_pct": rope_share(mixer),
        "rope_scaling": rope["rope_scaling"],
        "attention_bias": mixer.bias,
        "attention_dropout": mixer.dropout,
        "hidden_dropout": first.dropout,
        "use_parallel_residual": first.wiring == "parallel_norms",
        "tie_word_embeddings": expect(FAMILY, "head", spec.head, Head).tied,
    }
    return exact(FAMILY, ARCHITECTURE, spec, config, from_config)


def keys(spec: ModelSpec) -> KeyMap:
    theirs, ours, size = "gpt_neox.layers.{i}", "layers.{i}", attention_of(FAMILY, spec).head_size
    qkv = tuple(f"{ours}.mixer.{name}" for name in "qkv")
    return KeyMap(
        rules=(
            Rule("gpt_neox.embed_in.weight", ("embedding.weight",)),
            *both(f"{theirs}.input_layernorm", f"{ours}.mixer_norm"),
            *both(f"{theirs}.post_attention_layernorm", f"{ours}.ffn_norm"),
            *both(f"{theirs}.attention.query_key_value", *qkv, layout=Groups((size,) * 3)),
            *both(f"{theirs}.attention.dense", f"{ours}.mixer.o"),
            *both(f"{theirs}.mlp.dense_h_to_4h", f"{ours}.ffn.up"),
            *both(f"{theirs}.mlp.dense_4h_to_h", f"{ours}.ffn.down"),
            *both("gpt_neox.final_layer_norm", "norm"),
            Rule("embed_out.weight", ("head.weight",)),
        ),
        prefix="gpt_neox.",
        constants=tuple(f"{theirs}.attention.{name}" for name in ("bias", "masked_bias", "rotary_emb.inv_freq")),
        tied=("embed_out.weight", "gpt_neox.embed_in.weight"),
    )
