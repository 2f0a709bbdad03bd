"""What encoder-decoders share: T5's two sides, and the names of their tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dougong.hub.families.common import expect
from dougong.hub.families.fields import Entry, integer, number, share
from dougong.hub.families.names import below, named, spelled, within
from dougong.hub.families.table import Table
from dougong.hub.keymap import KeyMap, Rule
from dougong.model.spec import FeedForward, ModelSpec
from dougong.parts.attention import Attention
from dougong.parts.embedding import Head
from dougong.parts.position import Relative

SEQUENCES = "ForConditionalGeneration"
KINDS = {"mixer": Attention, "mixer.position": Relative}
ALWAYS = {"mixer.position.both_ways": True, "mixer.scale": 1.0, "model.head": None, "model.causal": False}


def encoder(width: int | None, depth: int, heads: int | None, hidden: str) -> tuple[Entry, ...]:
    """T5's keys, told by the encoder. The numbers are the family's for keys that the config leaves out; hidden: places
    of "d_ff"."""
    dropouts = f"{hidden.replace('.hidden', '.dropout')} layer.dropout mixer.dropout embedding.dropout model.dropout"
    return (
        integer("vocab_size", "model.vocab", 32128),
        integer("d_model", "model.width", width),
        integer("n_positions", "model.context", 512),
        integer("num_layers", "layers.depth", depth),
        integer("num_heads", "mixer.heads mixer.kv_heads", heads),
        integer("d_kv", "mixer.head_size", 64),
        integer("relative_attention_num_buckets", "mixer.position.buckets", 32),
        integer("relative_attention_max_distance", "mixer.position.reach", 128),
        number("layer_norm_epsilon", "norm.eps", 1e-6),
        share("dropout_rate", dropouts, 0.1),
        integer("d_ff", hidden, 2048),
    )


def with_decoder(source: ModelSpec, ffns: Sequence[FeedForward | None], head: Head | None) -> ModelSpec:
    """T5's decoder has its encoder's layers, looks back alone, and attends to the source without a position."""
    first = source.layers[0]
    mixer = expect("t5", "mixer", first.mixer, Attention)
    past = replace(mixer, position=replace(expect("t5", "position", mixer.position, Relative), both_ways=False))
    layer = replace(first, mixer=past, cross=replace(mixer, position=None))
    layers = tuple(replace(layer, ffn=ffn) for ffn in ffns)
    return replace(source, layers=layers, head=head, encoder=source, causal=True)


def head_of(source: ModelSpec, tied: bool) -> Head:
    """The first T5 ties its head to the embedding, and scales the hidden states before it by width^-1/2."""
    return Head(tied, scale=source.width**-0.5 if tied else 1.0)


def write_pair(table: Table, spec: ModelSpec) -> dict[str, Any]:
    config = table.write(spec.encoder or spec)
    return {**config, "num_decoder_layers": len(spec.layers), "is_encoder_decoder": spec.encoder is not None}


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


def sides(spec: ModelSpec, encoder: Mapping[str, str], last: Mapping[str, str]) -> tuple[Rule, ...]:
    """Names of both sides: of the encoder's sublayers, and of the feed-forward, which comes last."""
    found: list[Rule] = []
    for side, own in (("encoder", ""),) if spec.encoder is None else (("encoder", "encoder."), ("decoder", "")):
        cross = {} if side == "encoder" else CROSS
        names = {**encoder, **cross, **below("1." if side == "encoder" else "2.", "", last)}
        relative = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        found += within(f"{side}.block.{{i}}.layer", f"{own}layers.{{i}}", spelled(names))
        found += (Rule(relative, (f"{own}relative.weight",)), *spelled({f"{side}.final_layer_norm": f"{own}norm"}))
    return tuple(found)


PRODUCTS = named("q", "k", "v", "o", suffix="")
SELF = {**below("0.SelfAttention.", "mixer.", PRODUCTS), "0.layer_norm": "mixer_norm"}
CROSS = {**below("1.EncDecAttention.", "cross.", PRODUCTS), "1.layer_norm": "cross_norm"}


def model_keys(spec: ModelSpec, ffn: Mapping[str, str]) -> KeyMap:
    """All names, given those of a feed-forward in its sublayer."""
    tokens, others = tables(spec)
    rules = (*tokens, *sides(spec, SELF, {"layer_norm": "ffn_norm", **ffn}), *spelled({"lm_head": "head"}))
    # The first files hold a table for cross-attention that nothing reads.
    idle = "decoder.block.{i}.layer.{i}.EncDecAttention.relative_attention_bias.weight"
    return KeyMap(rules=rules, prefix="", constants=(idle,), tied=("lm_head.weight", "shared.weight"), **others)
