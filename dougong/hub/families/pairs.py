"""What encoder-decoders share: two tables that make one model, its names, and the keys of T5 and its kin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

from dougong.hub.families.common import exact, expect
from dougong.hub.families.fields import Entry, Given, integer, number, share
from dougong.hub.families.names import below, named, spelled
from dougong.hub.families.reader import Reader
from dougong.hub.families.table import Table
from dougong.hub.families.tasks import BARE, read_architecture
from dougong.hub.keymap import KeyMap, Rule
from dougong.model.spec import LayerSpec, ModelSpec
from dougong.parts.attention import Attention
from dougong.parts.position import Relative

SEQUENCES, ALONE = "ForConditionalGeneration", "EncoderModel"
UNREAD = "is_encoder_decoder is_decoder"
"""Keys that say what the class is."""
SOURCE = {"model.head": None, "model.causal": False}
"""What no key says of an encoder."""


@final
@dataclass(frozen=True)
class Pair:
    """An encoder and a decoder, whose layers attend to the source without a position, each told by a table. Keys that
    both have say the same of both.

    name   of the family in `architectures`
    alone  it has models that are an encoder alone
    apart  a head that is not tied means tables of tokens of their own for encoder and decoder, too
    """

    name: str
    source: Table
    target: Table
    alone: bool = False
    apart: bool = True

    def from_config(self, config: Mapping[str, Any]) -> ModelSpec:
        reader = Reader(self.source.family, config)
        source, spec = self.source.model(reader), self.target.model(reader)
        kind = read_architecture(reader, self.name, (SEQUENCES, BARE, *[ALONE][: self.alone]), SEQUENCES)
        reader.refuse_rest()
        if kind == ALONE:
            return source
        shared = not self.apart or (spec.head is not None and spec.head.tied)
        layers, head = tuple(map(self._attending, spec.layers)), spec.head if kind == SEQUENCES else None
        return replace(spec, layers=layers, head=head, encoder=source, shared_embedding=shared)

    def _attending(self, layer: LayerSpec) -> LayerSpec:
        mixer = expect(self.source.family, "mixer", layer.mixer, Attention)
        return replace(layer, cross=replace(mixer, position=None))

    def to_config(self, spec: ModelSpec) -> dict[str, Any]:
        family, alone = self.source.family, self.alone and spec.encoder is None
        source = spec if alone else expect(family, "encoder", spec.encoder, ModelSpec)
        config = {**({} if alone else self.target.write(spec)), **self.source.write(source)}
        config |= {"is_encoder_decoder": not alone}
        config |= {"tie_word_embeddings": spec.shared_embedding} if self.apart else {}
        kind = ALONE if alone else SEQUENCES if spec.head else BARE
        return exact(family, self.name + kind, spec, config, self.from_config)


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


def pair_keys(
    spec: ModelSpec,
    place: str,
    encoder: Mapping[str, str],
    decoder: Mapping[str, str],
    outside: Mapping[str, str],
    *more: Rule,
    prefix: str = "",
    unread: tuple[str, ...] = (),
) -> KeyMap:
    """The names of both sides: in an encoder's and in a decoder's layer, at `place`; and outside the layers of each.

    unread: names of tensors in old files that hold no weights (`KeyMap.constants`).
    """
    tokens, others = tables(spec, prefix)
    sides = [("encoder", "encoder.", encoder), ("decoder", "", decoder)]
    names: dict[str, str] = {}
    for side, own, layer in [("encoder", "", encoder)] if spec.encoder is None else sides:
        names |= below(f"{prefix}{side}.{place}.", f"{own}layers.{{i}}.", layer)
        names |= below(f"{prefix}{side}.", own, outside)
    tied, constants = ("lm_head.weight", f"{prefix}shared.weight"), tuple(f"{prefix}{name}" for name in unread)
    return KeyMap((*tokens, *spelled(names), *more), prefix, constants, tied, **others)


KINDS = {"mixer": Attention, "mixer.position": Relative}
"""Of T5 and its kin, as all that follows."""


UNGATED = {"wi": "up", "wo": "down"}
"""The names of a feed-forward without a gate."""


def _scale(given: Given) -> float:
    """A tied head scales the hidden states before it by width^-1/2."""
    return given["model"]["width"] ** -0.5 if given["head"]["tied"] else 1.0


ENCODER = {**SOURCE, "mixer.scale": 1.0, "mixer.position.both_ways": True}
DECODER = {"mixer.scale": 1.0, "head.scale": _scale}


DEPTH = integer("num_decoder_layers", "layers.depth", lambda given: given["layers"]["depth"])


def t5(width: int | None, depth: int, heads: int | None, hidden: str) -> tuple[Entry, ...]:
    """The keys of either side. The numbers are the family's for keys that the config leaves out; hidden: places of
    "d_ff"."""
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


def t5_keys(spec: ModelSpec, ffn: Mapping[str, str]) -> KeyMap:
    """All names, given those of a feed-forward in its sublayer, which comes last."""
    products, ffn = named("q", "k", "v", "o", suffix=""), {"layer_norm": "ffn_norm", **ffn}
    mixer = {**below("0.SelfAttention.", "mixer.", products), "0.layer_norm": "mixer_norm"}
    cross = {**below("1.EncDecAttention.", "cross.", products), "1.layer_norm": "cross_norm"}
    relative = "block.0.layer.0.SelfAttention.relative_attention_bias"
    return pair_keys(
        spec,
        "block.{i}.layer",
        {**mixer, **below("1.", "", ffn)},
        {**mixer, **cross, **below("2.", "", ffn)},
        {relative: "relative", "final_layer_norm": "norm"},
        *spelled({"lm_head": "head"}),
        # The first files hold a table for cross-attention that nothing reads.
        unread=("decoder.block.{i}.layer.{i}.EncDecAttention.relative_attention_bias.weight",),
    )
