"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm, biases everywhere, q, k and v in one transposed matrix.

Semantics: transformers' modeling_gpt2. Its `reorder_and_upcast_attn` changes rounding only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

from dougong.hub.families.common import exact, expect, first_layer, read_activation, write_activation
from dougong.hub.families.names import both
from dougong.hub.families.reader import Reader
from dougong.hub.keymap import KeyMap, Rule
from dougong.model.spec import LayerSpec, ModelSpec
from dougong.parts.attention import Attention
from dougong.parts.embedding import Embedding, Head
from dougong.parts.feedforward import MLP
from dougong.parts.norm import Norm
from dougong.parts.position import Learned

FAMILY = "gpt2"
ARCHITECTURE = "GPT2LMHeadModel"


def _scale(size: int, index: int, by_size: bool, by_layer: bool) -> float | None:
    """What scores of layer `index` are multiplied by; None is the usual size^-1/2."""
    if by_size and not by_layer:
        return None
    return (size**-0.5 if by_size else 1.0) / (index + 1 if by_layer else 1)


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = Reader(FAMILY, config)
    width, heads, context = reader.integer("n_embd"), reader.integer("n_head"), reader.integer("n_positions", 1024)
    if heads < 1 or width % heads:
        raise reader.wrong("n_head", heads, f"a divisor of n_embd, {width}")
    size = width // heads
    by_size = reader.flag("scale_attn_weights", True)
    by_layer = reader.flag("scale_attn_by_inverse_layer_idx", False)
    norm = Norm("layer", reader.number("layer_norm_epsilon", 1e-5), bias=True)
    activation = read_activation(reader, "activation_function", "gelu_new")
    ffn = MLP(reader.integer("n_inner", 4 * width), activation, bias=True)
    mixer = Attention(heads, heads, size, True, True, dropout=reader.share("attn_pdrop", 0.1))
    scales = (_scale(size, i, by_size, by_layer) for i in range(reader.integer("n_layer")))
    dropout = reader.share("resid_pdrop", 0.1)
    layers = tuple(LayerSpec(replace(mixer, scale=scale), ffn, norm, dropout=dropout) for scale in scales)
    embedding = Embedding(Learned(context), dropout=reader.share("embd_pdrop", 0.1))
    head = Head(tied=reader.flag("tie_word_embeddings", True))
    vocab = reader.integer("vocab_size")
    reader.refuse_rest()
    return ModelSpec(vocab, width, context, layers, embedding, norm, head)


def to_config(spec: ModelSpec) -> dict[str, Any]:
    first = first_layer(FAMILY, spec)
    mixer, ffn = expect(FAMILY, "mixer", first.mixer, Attention), expect(FAMILY, "ffn", first.ffn, MLP)
    scales = [expect(FAMILY, "mixer", layer.mixer, Attention).scale for layer in spec.layers]
    by_size, by_layer = True, False
    for by_size, by_layer in product((True, False), (False, True)):
        if scales == [_scale(mixer.head_size, i, by_size, by_layer) for i in range(len(scales))]:
            break
    config = {
        "vocab_size": spec.vocab,
        "n_positions": spec.context,
        "n_embd": spec.width,
        "n_layer": len(spec.layers),
        "n_head": mixer.heads,
        "n_inner": ffn.hidden,
        "activation_function": write_activation(ffn.activation, tanh="gelu_new"),
        "layer_norm_epsilon": first.norm.eps,
        "attn_pdrop": mixer.dropout,
        "resid_pdrop": first.dropout,
        "embd_pdrop": spec.embedding.dropout,
        "scale_attn_weights": by_size,
        "scale_attn_by_inverse_layer_idx": by_layer,
        "tie_word_embeddings": expect(FAMILY, "head", spec.head, Head).tied,
    }
    return exact(FAMILY, ARCHITECTURE, spec, config, from_config)


def keys(spec: ModelSpec) -> KeyMap:
    # Conv1D keeps its weight as (in, out).
    qkv = tuple(f"layers.{{i}}.mixer.{name}" for name in "qkv")
    return KeyMap(
        rules=(
            Rule("transformer.wte.weight", ("embedding.weight",)),
            Rule("transformer.wpe.weight", ("embedding.position.weight",)),
            *both("transformer.h.{i}.ln_1", "layers.{i}.mixer_norm"),
            *both("transformer.h.{i}.attn.c_attn", *qkv, transpose=True),
            *both("transformer.h.{i}.attn.c_proj", "layers.{i}.mixer.o", transpose=True),
            *both("transformer.h.{i}.ln_2", "layers.{i}.ffn_norm"),
            *both("transformer.h.{i}.mlp.c_fc", "layers.{i}.ffn.up", transpose=True),
            *both("transformer.h.{i}.mlp.c_proj", "layers.{i}.ffn.down", transpose=True),
            *both("transformer.ln_f", "norm"),
            Rule("lm_head.weight", ("head.weight",)),
        ),
        prefix="transformer.",
        constants=("transformer.h.{i}.attn.bias", "transformer.h.{i}.attn.masked_bias"),
        tied=("lm_head.weight", "transformer.wte.weight"),
    )
