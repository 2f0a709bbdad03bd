"""BART (Lewis et al. 2019): encoder and decoder with LayerNorm after each sublayer, learned positions from row 2 on, a
norm on the embeddings, and a bias of its own on the logits.

The dropping of whole layers (`encoder_layerdrop`, `decoder_layerdrop`; training only) is not kept. Semantics:
transformers' modeling_bart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dougong.hub.families.common import exact, expect, first_layer, read_activation, write_activation
from dougong.hub.families.names import both
from dougong.hub.families.reader import Reader
from dougong.hub.families.tasks import BARE, read_architecture
from dougong.hub.keymap import KeyMap, Rule
from dougong.hub.layouts import Viewed
from dougong.model.spec import LayerSpec, ModelSpec
from dougong.parts.attention import Attention
from dougong.parts.embedding import Embedding, Head
from dougong.parts.feedforward import MLP
from dougong.parts.norm import Norm
from dougong.parts.position import Learned

FAMILY = "bart"
NAME = "Bart"
SEQUENCES = "ForConditionalGeneration"
OFFSET = 2
NORM = Norm("layer", 1e-5, bias=True)
# Keys of old files that say how to generate or train.
_RUN = (
    "encoder_layerdrop decoder_layerdrop classifier_dropout init_std is_encoder_decoder is_decoder "
    "num_hidden_layers add_bias_logits add_final_layer_norm classif_dropout normalize_before normalize_embedding "
    "static_position_embeddings extra_pos_embeddings force_bos_token_to_be_generated"
)
_USUAL = {"add_final_layer_norm": False, "normalize_before": False, "normalize_embedding": True}


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = Reader(FAMILY, config)
    for key, usual in _USUAL.items():  # BART's code once had mBART and others in it
        if reader.flag(key, usual) != usual:
            raise reader.wrong(key, not usual, f"{str(usual).lower()}, as BART has it")
    tied = reader.flag("tie_word_embeddings", True)
    width, context = reader.integer("d_model", 1024), reader.integer("max_position_embeddings", 1024)
    encoder, decoder = (_layer(reader, side, width) for side in ("encoder", "decoder"))
    factor = math.sqrt(width) if reader.flag("scale_embedding", False) else 1.0
    embedding = Embedding(Learned(context, OFFSET), norm=NORM, factor=factor, dropout=encoder.dropout)
    kind = read_architecture(reader, NAME, (SEQUENCES, BARE), SEQUENCES)
    head = Head(tied, bias=True) if kind == SEQUENCES else None
    vocab = reader.integer("vocab_size", 50265)
    depths = [reader.integer(f"{side}_layers", 12) for side in ("encoder", "decoder")]
    for key in _RUN.split():
        reader.raw(key)
    reader.refuse_rest()
    source = ModelSpec(vocab, width, context, (encoder,) * depths[0], embedding, None, None, causal=False)
    return ModelSpec(
        vocab, width, context, (decoder,) * depths[1], embedding, None, head, source, shared_embedding=tied
    )


def _layer(reader: Reader, side: str, width: int) -> LayerSpec:
    heads = reader.integer(f"{side}_attention_heads", 16)
    if width % heads:
        raise reader.wrong(f"{side}_attention_heads", heads, f"a divisor of d_model, {width}")
    seen, inner = reader.share("attention_dropout"), reader.share("activation_dropout")
    mixer = Attention(heads, heads, width // heads, True, True, dropout=seen)
    activation = read_activation(reader, "activation_function", "gelu")
    ffn = MLP(reader.integer(f"{side}_ffn_dim", 4096), activation, True, inner)
    cross = mixer if side == "decoder" else None
    return LayerSpec(mixer, ffn, NORM, "post", cross, dropout=reader.share("dropout", 0.1))


def to_config(spec: ModelSpec) -> dict[str, Any]:
    source = expect(FAMILY, "encoder", spec.encoder, ModelSpec)
    first = first_layer(FAMILY, source)
    mixer, ffn = expect(FAMILY, "mixer", first.mixer, Attention), expect(FAMILY, "ffn", first.ffn, MLP)
    config: dict[str, Any] = {
        "vocab_size": spec.vocab,
        "d_model": spec.width,
        "max_position_embeddings": spec.context,
        "activation_function": write_activation(ffn.activation, tanh="gelu_new"),
        "scale_embedding": spec.embedding.factor != 1,
        "dropout": first.dropout,
        "attention_dropout": mixer.dropout,
        "activation_dropout": ffn.dropout,
        "is_encoder_decoder": True,
        "tie_word_embeddings": spec.shared_embedding,
    }
    for side, each in (("encoder", source), ("decoder", spec)):
        layer = first_layer(FAMILY, each)
        heads = expect(FAMILY, "mixer", layer.mixer, Attention).heads
        hidden = expect(FAMILY, "ffn", layer.ffn, MLP).hidden
        config |= {f"{side}_layers": len(each.layers), f"{side}_attention_heads": heads, f"{side}_ffn_dim": hidden}
    return exact(FAMILY, NAME + (SEQUENCES if spec.head else BARE), spec, config, from_config)


def keys(spec: ModelSpec) -> KeyMap:
    prefix = "model." if spec.head else ""
    sides, (tokens, others) = (("encoder", "encoder."), ("decoder", "")), tables(spec, prefix)
    return KeyMap(
        rules=(
            *tokens,
            *(rule for side, own in sides for rule in _side_rules(f"{prefix}{side}", own)),
            Rule("lm_head.weight", ("head.weight",)),
            Rule("final_logits_bias", ("head.bias",), layout=Viewed((1, -1))),
        ),
        prefix=prefix,
        constants=(f"{prefix}encoder.version", f"{prefix}decoder.version"),
        tied=("lm_head.weight", f"{prefix}shared.weight"),
        **others,
    )


def tables(spec: ModelSpec, prefix: str = "") -> tuple[tuple[Rule, ...], dict[str, Any]]:
    """Names of the tables of tokens, and of their copies (`KeyMap.copies`) or what nothing reads (`KeyMap.idle`).

    One table serves the encoder, the decoder and the head, or all three are apart, as transformers has it.
    """
    shared, sides = f"{prefix}shared.weight", {"decoder": "embedding.weight", "encoder": "encoder.embedding.weight"}
    pairs = tuple((f"{prefix}{side}.embed_tokens.weight", shared) for side in sides)
    if spec.shared_embedding:
        return (Rule(shared, ("embedding.weight",)),), {"copies": pairs}
    rules = (Rule(name, (own,)) for (name, _), own in zip(pairs, sides.values(), strict=True))
    return tuple(rules), {"idle": pairs}


def _side_rules(side: str, own: str) -> tuple[Rule, ...]:
    layer, ours = f"{side}.layers.{{i}}", f"{own}layers.{{i}}"
    names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}
    return (
        Rule(f"{side}.embed_positions.weight", (f"{own}embedding.position.weight",)),
        *both(f"{side}.layernorm_embedding", f"{own}embedding.norm"),
        *(rule for short, name in names.items() for rule in both(f"{layer}.self_attn.{name}", f"{ours}.mixer.{short}")),
        *both(f"{layer}.self_attn_layer_norm", f"{ours}.mixer_norm"),
        *(
            rule
            for short, name in names.items()
            for rule in both(f"{layer}.encoder_attn.{name}", f"{ours}.cross.{short}")
        ),
        *both(f"{layer}.encoder_attn_layer_norm", f"{ours}.cross_norm"),
        *both(f"{layer}.fc1", f"{ours}.ffn.up"),
        *both(f"{layer}.fc2", f"{ours}.ffn.down"),
        *both(f"{layer}.final_layer_norm", f"{ours}.ffn_norm"),
    )
