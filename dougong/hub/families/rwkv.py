"""RWKV-4 (Peng et al. 2023).

Semantics: transformers' modeling_rwkv, whose last norm keeps an eps of 1e-5 whatever the config says. In evaluation it
halves what is on the residual path after every `rescale_every` layers, and the outputs of the layers with it. All that
this changes is how large eps is beside it: four times larger, for each halving, in the norms that follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dougong.base import DougongError
from dougong.hub.families.common import exact, expect, first_layer
from dougong.hub.families.reader import Reader
from dougong.hub.keymap import KeyMap, Rule
from dougong.hub.layouts import Viewed
from dougong.model.spec import LayerSpec, ModelSpec
from dougong.parts.embedding import Embedding, Head
from dougong.parts.norm import Norm
from dougong.parts.wkv import WKV4, ChannelMix

FAMILY = "rwkv"
ARCHITECTURE = "RwkvForCausalLM"


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = Reader(FAMILY, config)
    width, depth = reader.integer("hidden_size", 4096), reader.integer("num_hidden_layers", 32)
    norm = Norm("layer", reader.number("layer_norm_epsilon", 1e-5), bias=True)
    last = Norm("layer", 1e-5, bias=True)
    every = reader.integer("rescale_every", 6, least=-(1 << 30))
    mixer = WKV4(width, reader.integer("attention_hidden_size", width))
    ffn = ChannelMix(width, reader.integer("intermediate_size", 4 * width))
    layers = tuple(LayerSpec(mixer, ffn, _halved(norm, i, every)) for i in range(depth))
    head = Head(tied=reader.flag("tie_word_embeddings", False))
    vocab, context = reader.integer("vocab_size", 50277), reader.integer("context_length", 1024)
    reader.refuse_rest()
    return ModelSpec(vocab, width, context, layers, Embedding(norm=norm), _halved(last, depth, every), head)


def _halved(norm: Norm, layers: int, every: int) -> Norm:
    """The norm after `layers` layers."""
    return norm if every <= 0 else replace(norm, eps=norm.eps * 4.0 ** (layers // every))


def to_config(spec: ModelSpec) -> dict[str, Any]:
    first = first_layer(FAMILY, spec)
    mixer, ffn = expect(FAMILY, "mixer", first.mixer, WKV4), expect(FAMILY, "ffn", first.ffn, ChannelMix)
    if spec.head is None or spec.norm is None:
        raise DougongError(f"{FAMILY} cannot express a model without a head or a last norm")
    epsilons = [layer.norm.eps for layer in spec.layers]
    # The first norm that differs stands behind the first halving; the last norm tells of one after all layers.
    changed = [i for i, eps in enumerate(epsilons) if eps != epsilons[0]]
    depth = len(epsilons)
    every = changed[0] if changed else depth if spec.norm.eps != 1e-5 else 0
    config = {
        "vocab_size": spec.vocab,
        "context_length": spec.context,
        "hidden_size": spec.width,
        "num_hidden_layers": depth,
        "attention_hidden_size": mixer.inner,
        "intermediate_size": ffn.hidden,
        "layer_norm_epsilon": first.norm.eps,
        "rescale_every": every,
        "tie_word_embeddings": spec.head.tied,
    }
    return exact(FAMILY, ARCHITECTURE, spec, config, from_config)


def keys(spec: ModelSpec) -> KeyMap:
    def both(foreign: str, own: str) -> list[Rule]:
        return [Rule(f"rwkv.{foreign}.{each}", (f"{own}.{each}",)) for each in ("weight", "bias")]

    def mixes(place: str, own: str, names: Mapping[str, str]) -> list[Rule]:
        row = Viewed((1, 1, -1))
        return [
            Rule(f"rwkv.blocks.{{i}}.{place}.time_mix_{name}", (f"layers.{{i}}.{own}.mix_{ours}",), layout=row)
            for ours, name in names.items()
        ]

    def products(place: str, own: str, names: Mapping[str, str]) -> list[Rule]:
        return [
            Rule(f"rwkv.blocks.{{i}}.{place}.{name}.weight", (f"layers.{{i}}.{own}.{ours}.weight",))
            for ours, name in names.items()
        ]

    inputs = {"r": "receptance", "k": "key", "v": "value"}
    return KeyMap(
        rules=(
            Rule("rwkv.embeddings.weight", ("embedding.weight",)),
            *both("blocks.0.pre_ln", "embedding.norm"),
            *both("blocks.{i}.ln1", "layers.{i}.mixer_norm"),
            *both("blocks.{i}.ln2", "layers.{i}.ffn_norm"),
            Rule("rwkv.blocks.{i}.attention.time_decay", ("layers.{i}.mixer.decay",)),
            Rule("rwkv.blocks.{i}.attention.time_first", ("layers.{i}.mixer.first",)),
            *mixes("attention", "mixer", inputs),
            *products("attention", "mixer", {**inputs, "o": "output"}),
            *mixes("feed_forward", "ffn", {"k": "key", "r": "receptance"}),
            *products("feed_forward", "ffn", {"up": "key", "gate": "receptance", "down": "value"}),
            *both("ln_out", "norm"),
            Rule("head.weight", ("head.weight",)),
        ),
        prefix="rwkv.",
        constants=(),
        tied=("head.weight", "rwkv.embeddings.weight"),
    )
