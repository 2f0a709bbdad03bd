"""BLOOM (BigScience 2022): ALiBi, a norm on the embeddings, q, k and v of each head together in one matrix.

Semantics: transformers' modeling_bloom. Its formula of the tanh approximation of GELU rounds sqrt(2 / pi) to 8 digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dougong.hub.families.common import attention_of, exact, expect, first_layer, pass_over, respelled
from dougong.hub.families.names import both
from dougong.hub.families.reader import Reader
from dougong.hub.keymap import KeyMap, Rule
from dougong.hub.layouts import Groups
from dougong.model.spec import LayerSpec, ModelSpec
from dougong.parts.attention import Attention
from dougong.parts.embedding import Embedding, Head
from dougong.parts.feedforward import MLP
from dougong.parts.norm import Norm
from dougong.parts.position import Alibi

FAMILY = "bloom"
ARCHITECTURE = "BloomForCausalLM"
# Options of the program that trained it, some of which say how to round.
SILENT = """slow_but_exact attention_softmax_in_fp32 masked_softmax_fusion bias_dropout_fusion skip_bias_add
            skip_bias_add_qkv offset_alibi unk_token_id"""


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    old = {"n_embed": "hidden_size", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
    reader = Reader(FAMILY, respelled(config, **old))
    pass_over(reader, SILENT)
    width, heads = reader.integer("hidden_size"), reader.integer("n_head")
    if width % heads:
        raise reader.wrong("n_head", heads, f"a divisor of hidden_size, {width}")
    if reader.integer("n_inner", 4 * width) != 4 * width:
        raise reader.wrong("n_inner", reader.raw("n_inner"), f"four times hidden_size, {4 * width}")
    norm = Norm("layer", reader.number("layer_norm_epsilon", 1e-5), bias=True)
    seen, dropout = reader.share("attention_dropout"), reader.share("hidden_dropout")
    mixer = Attention(heads, heads, width // heads, True, True, Alibi(), dropout=seen)
    wiring = "through" if reader.flag("apply_residual_connection_post_layernorm", False) else "pre"
    layer = LayerSpec(mixer, MLP(4 * width, "gelu_tanh", bias=True), norm, wiring, dropout=dropout)
    layers = (layer,) * reader.integer("n_layer")
    head, context = Head(tied=reader.flag("tie_word_embeddings", True)), reader.integer("seq_length", 2048)
    vocab = reader.integer("vocab_size")
    reader.refuse_rest()
    return ModelSpec(vocab, width, context, layers, Embedding(norm=norm), norm, head)


def to_config(spec: ModelSpec) -> dict[str, Any]:
    first, mixer = first_layer(FAMILY, spec), attention_of(FAMILY, spec)
    config = {
        "vocab_size": spec.vocab,
        "hidden_size": spec.width,
        "n_layer": len(spec.layers),
        "n_head": mixer.heads,
        "layer_norm_epsilon": first.norm.eps,
        "seq_length": spec.context,
        "attention_dropout": mixer.dropout,
        "hidden_dropout": first.dropout,
        "apply_residual_connection_post_layernorm": first.wiring == "through",
        "tie_word_embeddings": expect(FAMILY, "head", spec.head, Head).tied,
    }
    return exact(FAMILY, ARCHITECTURE, spec, config, from_config)


def keys(spec: ModelSpec) -> KeyMap:
    theirs, ours, size = "transformer.h.{i}", "layers.{i}", attention_of(FAMILY, spec).head_size
    qkv = tuple(f"{ours}.mixer.{name}" for name in "qkv")
    return KeyMap(
        rules=(
            Rule("transformer.word_embeddings.weight", ("embedding.weight",)),
            *both("transformer.word_embeddings_layernorm", "embedding.norm"),
            *both(f"{theirs}.input_layernorm", f"{ours}.mixer_norm"),
            *both(f"{theirs}.self_attention.query_key_value", *qkv, layout=Groups((size,) * 3)),
            *both(f"{theirs}.self_attention.dense", f"{ours}.mixer.o"),
            *both(f"{theirs}.post_attention_layernorm", f"{ours}.ffn_norm"),
            *both(f"{theirs}.mlp.dense_h_to_4h", f"{ours}.ffn.up"),
            *both(f"{theirs}.mlp.dense_4h_to_h", f"{ours}.ffn.down"),
            *both("transformer.ln_f", "norm"),
            Rule("lm_head.weight", ("head.weight",)),
        ),
        prefix="transformer.",
        constants=(),
        tied=("lm_head.weight", "transformer.word_embeddings.weight"),
    )
