"""MPT (MosaicML 2023): ALiBi, LayerNorms without biases, q, k and v in one matrix, which may be clamped.

Semantics: transformers' modeling_mpt, but for `alibi_bias_max`, which it passes over, and MosaicML's own files heed
(MPT-7B-StoryWriter has 16). `attn_pdrop` is the dropout of everything; nothing reads `emb_pdrop` and `resid_pdrop`.
What transformers does not compute is refused: learned positions instead of ALiBi, multi-query attention, normalised
queries and keys, prefixes, biases, scaled logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dougong.hub.families.common import attention_of, exact, expect, first_layer, pass_over, respelled
from dougong.hub.families.gemma2 import read_cap
from dougong.hub.families.names import both
from dougong.hub.families.reader import Reader
from dougong.hub.keymap import KeyMap, Rule
from dougong.model.spec import LayerSpec, ModelSpec
from dougong.parts.attention import Attention
from dougong.parts.embedding import Embedding, Head
from dougong.parts.feedforward import MLP
from dougong.parts.norm import Norm
from dougong.parts.position import Alibi

FAMILY = "mpt"
ARCHITECTURE = "MptForCausalLM"


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    old = {"hidden_size": "d_model", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"}
    reader = Reader(FAMILY, respelled(config, **old))
    # With ALiBi no positions are learned, whatever learned_pos_emb says.
    pass_over(reader, "learned_pos_emb init_config init_device tokenizer_name verbose emb_pdrop resid_pdrop")
    given = reader.raw("attn_config") or {}
    if not isinstance(given, dict):
        raise reader.wrong("attn_config", given, "a mapping")
    inner = Reader(FAMILY, given, "attn_config.")
    pass_over(inner, "attn_impl")
    dropout = inner.share("attn_pdrop")
    width, heads = reader.integer("d_model"), reader.integer("n_heads")
    if width % heads:
        raise reader.wrong("n_heads", heads, f"a divisor of d_model, {width}")
    for place, key, wanted in (
        (reader, "no_bias", True),
        (reader, "expansion_ratio", 4),
        (reader, "embedding_fraction", 1.0),
        (inner, "alibi", True),
        (inner, "attn_type", "multihead_attention"),
    ):
        if place.raw(key, wanted) != wanted:
            raise place.wrong(key, place.raw(key), repr(wanted))
    if (kind := reader.raw("norm_type", "low_precision_layernorm")) not in ("low_precision_layernorm", "layernorm"):
        raise reader.wrong("norm_type", kind, "layernorm or low_precision_layernorm")
    position = Alibi(inner.positive("alibi_bias_max", 8))
    scale, clip = read_cap(inner, "softmax_scale", None), inner.number("clip_qkv", 0.0) or None
    inner.refuse_rest()
    norm = Norm("layer", reader.number("layer_norm_epsilon", 1e-5))
    mixer = Attention(heads, heads, width // heads, position=position, scale=scale, clip=clip, dropout=dropout)
    layers = (LayerSpec(mixer, MLP(4 * width, "gelu"), norm, dropout=dropout),) * reader.integer("n_layers")
    head, context = Head(tied=reader.flag("tie_word_embeddings", True)), reader.integer("max_seq_len", 2048)
    vocab = reader.integer("vocab_size")
    reader.refuse_rest()
    return ModelSpec(vocab, width, context, layers, Embedding(), norm, head)


def to_config(spec: ModelSpec) -> dict[str, Any]:
    mixer = attention_of(FAMILY, spec)
    position = expect(FAMILY, "mixer.position", mixer.position, Alibi)
    config = {
        "vocab_size": spec.vocab,
        "d_model": spec.width,
        "n_layers": len(spec.layers),
        "n_heads": mixer.heads,
        "max_seq_len": spec.context,
        "layer_norm_epsilon": first_layer(FAMILY, spec).norm.eps,
        "no_bias": True,
        "expansion_ratio": 4,
        "attn_config": {
            "attn_type": "multihead_attention",
            "attn_pdrop": mixer.dropout or 0,  # which transformers holds for an integer
            "alibi": True,
            "alibi_bias_max": round(position.strongest),  # an integer; `exact` refuses another
            "clip_qkv": mixer.clip,
            "softmax_scale": mixer.scale,
        },
        "tie_word_embeddings": expect(FAMILY, "head", spec.head, Head).tied,
    }
    return exact(FAMILY, ARCHITECTURE, spec, config, from_config)


def keys(spec: ModelSpec) -> KeyMap:
    theirs, ours = "transformer.blocks.{i}", "layers.{i}"
    return KeyMap(
        rules=(
            Rule("transformer.wte.weight", ("embedding.weight",)),
            *both(f"{theirs}.norm_1", f"{ours}.mixer_norm"),
            *both(f"{theirs}.attn.Wqkv", *(f"{ours}.mixer.{name}" for name in "qkv")),
            *both(f"{theirs}.attn.out_proj", f"{ours}.mixer.o"),
            *both(f"{theirs}.norm_2", f"{ours}.ffn_norm"),
            *both(f"{theirs}.ffn.up_proj", f"{ours}.ffn.up"),
            *both(f"{theirs}.ffn.down_proj", f"{ours}.ffn.down"),
            *both("transformer.norm_f", "norm"),
            Rule("lm_head.weight", ("head.weight",)),
        ),
        prefix="transformer.",
        constants=(),
        tied=("lm_head.weight", "transformer.wte.weight"),
    )
