"""T5 (Raffel et al. 2020), T5 v1.1 and FLAN-T5: encoder and decoder with RMSNorm before each sublayer, scores that are
not scaled, and a bias by distance that all layers of a side share.

The first T5 ties its head to the embedding and scales the hidden states before it by width^-1/2; v1.1 does neither and
has a gated feed-forward, and may yet be tied, as its tensors tell. `dropout_rate` is the dropout of everything.
Semantics: transformers' modeling_t5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dougong.hub.families.bart import tables
from dougong.hub.families.common import ACTIVATIONS, exact, expect, first_layer
from dougong.hub.families.reader import Reader
from dougong.hub.families.tasks import BARE, read_architecture
from dougong.hub.keymap import KeyMap, Rule
from dougong.model.spec import LayerSpec, ModelSpec
from dougong.parts.attention import Attention
from dougong.parts.embedding import Embedding, Head
from dougong.parts.feedforward import MLP, GatedMLP
from dougong.parts.norm import Norm
from dougong.parts.position import Relative

FAMILY = "t5"
NAME = "T5"
SEQUENCES, ENCODER = "ForConditionalGeneration", "EncoderModel"


def read_layer(config: Reader, ffn: MLP | GatedMLP) -> LayerSpec:
    """A layer of the encoder, whose form Switch shares."""
    heads, size = config.integer("num_heads"), config.integer("d_kv", 64)
    buckets = config.integer("relative_attention_num_buckets", 32)
    reach = config.integer("relative_attention_max_distance", 128)
    dropout = config.share("dropout_rate", 0.1)
    position = Relative(buckets, reach, both_ways=True)
    mixer = Attention(heads, heads, size, position=position, scale=1.0, dropout=dropout)
    norm = Norm("rms", config.number("layer_norm_epsilon", 1e-6))
    return LayerSpec(mixer, replace(ffn, dropout=dropout), norm, dropout=dropout)


def in_decoder(layer: LayerSpec) -> LayerSpec:
    """The decoder's layer that belongs to one of the encoder."""
    mixer = expect(FAMILY, "mixer", layer.mixer, Attention)
    position = expect(FAMILY, "position", mixer.position, Relative)
    past = replace(mixer, position=replace(position, both_ways=False))
    return replace(layer, mixer=past, cross=replace(mixer, position=None))


def read_model(
    config: Reader, encoder: tuple[LayerSpec, ...], decoder: tuple[LayerSpec, ...], head: Head | None
) -> ModelSpec:
    """Both sides around one table of tokens."""
    first = encoder[0]
    vocab, width = config.integer("vocab_size", 32128), config.integer("d_model")
    context = config.integer("n_positions", 512)
    embedding = Embedding(dropout=first.dropout)
    source = ModelSpec(vocab, width, context, encoder, embedding, first.norm, None, causal=False, dropout=first.dropout)
    return replace(source, layers=decoder, head=head, encoder=source, causal=True)


def write_model(family: str, spec: ModelSpec) -> dict[str, Any]:
    """The keys that both `read_layer` and `read_model` read."""
    source = spec.encoder or spec
    first = first_layer(family, source)
    mixer = expect(family, "mixer", first.mixer, Attention)
    position = expect(family, "position", mixer.position, Relative)
    return {
        "vocab_size": spec.vocab,
        "d_model": spec.width,
        "n_positions": spec.context,
        "num_heads": mixer.heads,
        "d_kv": mixer.head_size,
        "num_layers": len(source.layers),
        "num_decoder_layers": len(spec.layers),
        "relative_attention_num_buckets": position.buckets,
        "relative_attention_max_distance": position.reach,
        "layer_norm_epsilon": first.norm.eps,
        "dropout_rate": first.dropout,
        "is_encoder_decoder": spec.encoder is not None,
    }


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = Reader(FAMILY, config)
    layer = read_layer(reader, _ffn(reader))
    kind = read_architecture(reader, NAME, (SEQUENCES, BARE, ENCODER), SEQUENCES)
    depth, width = reader.integer("num_layers", 6), reader.integer("d_model")
    decoder = (in_decoder(layer),) * reader.integer("num_decoder_layers", depth)
    # transformers 5 says that every T5 is tied, and whether it is one of the first kind in `scale_decoder_outputs`.
    tied = reader.flag("tie_word_embeddings", True) and reader.flag("scale_decoder_outputs", True)
    head = Head(tied=tied, scale=width**-0.5 if tied else 1.0) if kind == SEQUENCES else None
    spec = read_model(reader, (layer,) * depth, decoder, head)
    for key in ("is_encoder_decoder", "is_decoder", "initializer_factor", "classifier_dropout"):
        reader.raw(key)
    reader.refuse_rest()
    assert spec.encoder is not None
    return spec.encoder if kind == ENCODER else spec


def _ffn(reader: Reader) -> MLP | GatedMLP:
    """`feed_forward_proj` is "relu", "gated-gelu" (which means the tanh approximation), or another activation."""
    name = reader.raw("feed_forward_proj", "relu")
    gated, activation = str(name).startswith("gated-"), str(name).removeprefix("gated-")
    activation = "gelu_new" if name == "gated-gelu" else activation
    if activation not in ACTIVATIONS:
        raise reader.wrong("feed_forward_proj", name, "an activation, after gated- where it has a gate")
    if reader.raw("dense_act_fn", activation) != activation or reader.raw("is_gated_act", gated) != gated:
        raise reader.wrong("feed_forward_proj", name, "the same as dense_act_fn and is_gated_act say")
    return (GatedMLP if gated else MLP)(reader.integer("d_ff", 2048), ACTIVATIONS[activation])


def to_config(spec: ModelSpec) -> dict[str, Any]:
    ffn = first_layer(FAMILY, spec).ffn
    gated = isinstance(ffn, GatedMLP)
    if not gated:
        ffn = expect(FAMILY, "ffn", ffn, MLP)
    activation = {"gelu_tanh": "gelu" if gated else "gelu_new"}.get(ffn.activation, ffn.activation)
    if gated and ffn.activation == "gelu":
        activation = "gelu_python"  # for "gated-gelu" means the tanh approximation
    head = spec.head or Head(scale=spec.width**-0.5)
    if head.tied and head.scale == 1:  # tied to the embedding, but for that like v1.1, which the tensors tell
        spec = replace(spec, head=replace(head, tied=False))
    config = {
        **write_model(FAMILY, spec),
        "d_ff": ffn.hidden,
        "feed_forward_proj": f"gated-{activation}" if gated else activation,
        "tie_word_embeddings": head.tied,
        **({"scale_decoder_outputs": False} if head.scale == 1 else {}),
    }
    kind = ENCODER if spec.encoder is None else SEQUENCES if spec.head else BARE
    return exact(FAMILY, NAME + kind, spec, config, from_config)


def side_rules(side: str, own: str) -> tuple[Rule, ...]:
    """Names of the attention and the norms of one side; `own` stands before our names."""
    block, layer = f"{side}.block.{{i}}.layer", f"{own}layers.{{i}}"
    ffn = 1 if side == "encoder" else 2
    relative = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return (
        Rule(relative, (f"{own}relative.weight",)),
        *(Rule(f"{block}.0.SelfAttention.{name}.weight", (f"{layer}.mixer.{name}.weight",)) for name in "qkvo"),
        Rule(f"{block}.0.layer_norm.weight", (f"{layer}.mixer_norm.weight",)),
        *(Rule(f"{block}.1.EncDecAttention.{name}.weight", (f"{layer}.cross.{name}.weight",)) for name in "qkvo"),
        Rule(f"{block}.1.layer_norm.weight", (f"{layer}.cross_norm.weight",)),
        Rule(f"{block}.{ffn}.layer_norm.weight", (f"{layer}.ffn_norm.weight",)),
        Rule(f"{side}.final_layer_norm.weight", (f"{own}norm.weight",)),
    )


def model_keys(spec: ModelSpec, ffn: tuple[Rule, ...]) -> KeyMap:
    """All names, given those of the feed-forwards."""
    sides = (("encoder", ""),) if spec.encoder is None else (("encoder", "encoder."), ("decoder", ""))
    tokens, others = tables(spec)
    return KeyMap(
        rules=(
            *tokens,
            *(rule for side, own in sides for rule in side_rules(side, own)),
            *ffn,
            Rule("lm_head.weight", ("head.weight",)),
        ),
        prefix="",
        # The first files hold a table for cross-attention that nothing reads.
        constants=("decoder.block.{i}.layer.{i}.EncDecAttention.relative_attention_bias.weight",),
        tied=("lm_head.weight", "shared.weight"),
        **others,
    )


def keys(spec: ModelSpec) -> KeyMap:
    gated = isinstance(first_layer(FAMILY, spec).ffn, GatedMLP)
    names = {"gate": "wi_0", "up": "wi_1", "down": "wo"} if gated else {"up": "wi", "down": "wo"}
    sides = (("encoder", 1, ""),) if spec.encoder is None else (("encoder", 1, "encoder."), ("decoder", 2, ""))
    rules = (
        Rule(
            f"{side}.block.{{i}}.layer.{place}.DenseReluDense.{name}.weight", (f"{own}layers.{{i}}.ffn.{ours}.weight",)
        )
        for side, place, own in sides
        for ours, name in names.items()
    )
    return replace(model_keys(spec, tuple(rules)), may_tie=True)
