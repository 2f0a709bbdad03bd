"""RWKV-4 (Peng et al. 2023).

Semantics: transformers' modeling_rwkv, whose last norm keeps an eps of 1e-5 whatever the config says. In evaluation it
halves what is on the residual path after every `rescale_every` layers, and the outputs of the layers with it. All that
this changes is how large eps is beside it: four times larger, for each halving, in the norms that follow.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dougong.hub.families.fields import Given, Keys, Parts, change, flag, integer, number
from dougong.hub.families.names import key_map, spelled
from dougong.hub.families.reader import Reader
from dougong.hub.families.table import LAYER_NORM, Table, the_norm
from dougong.hub.keymap import KeyMap, Rule
from dougong.hub.layouts import Viewed
from dougong.model.spec import ModelSpec
from dougong.parts.norm import Norm
from dougong.parts.wkv import WKV4, ChannelMix

FAMILY = "rwkv"


def _ask(config: Reader, given: Given) -> None:
    every, depth = config.integer("rescale_every", 6, least=-(1 << 30)), given["layers"]["depth"]
    norm = Norm("layer", bias=True, **given["norm"])
    norms = [_halved(each, index, every) for index, each in enumerate([norm] * depth + [replace(norm, eps=1e-5)])]
    given["model"]["norm"] = norms.pop()
    for index, each in enumerate(norms):
        change(given, index, "layer.norm", each)


def _halved(norm: Norm, layers: int, every: int) -> Norm:
    """The norm after `layers` layers."""
    return norm if every <= 0 else replace(norm, eps=norm.eps * 4.0 ** (layers // every))


def _tell(parts: Parts) -> dict[str, Any]:
    epsilons = [layer.norm.eps for layer in parts.spec.layers]
    # The first norm that differs stands behind the first halving; the last norm tells of one after all layers.
    changed = [index for index, eps in enumerate(epsilons) if eps != epsilons[0]]
    last = len(epsilons) if getattr(parts.spec.norm, "eps", None) != 1e-5 else 0
    return {"rescale_every": changed[0] if changed else last}


TABLE = Table(
    FAMILY,
    "RwkvForCausalLM",
    {"mixer": WKV4, "ffn": ChannelMix},
    (
        integer("vocab_size", "model.vocab", 50277),
        integer("context_length", "model.context", 1024),
        integer("hidden_size", "model.width mixer.width ffn.width", 4096),
        integer("num_hidden_layers", "layers.depth", 32),
        integer("attention_hidden_size", "mixer.inner", lambda given: given["model"]["width"]),
        integer("intermediate_size", "ffn.hidden", lambda given: 4 * given["model"]["width"]),
        number("layer_norm_epsilon", "norm.eps", 1e-5),
        flag("tie_word_embeddings", "head.tied", False),
        Keys(_ask, _tell),
    ),
    always={**LAYER_NORM, "embedding.norm": the_norm},
)
from_config, to_config = TABLE.from_config, TABLE.to_config


NAMES = {
    "ln1": "mixer_norm",
    "ln2": "ffn_norm",
    "attention.receptance": "mixer.r",
    "attention.key": "mixer.k",
    "attention.value": "mixer.v",
    "attention.output": "mixer.o",
    "feed_forward.key": "ffn.up",
    "feed_forward.receptance": "ffn.gate",
    "feed_forward.value": "ffn.down",
}
MIXES = {
    "attention.time_mix_receptance": "mixer.mix_r",
    "attention.time_mix_key": "mixer.mix_k",
    "attention.time_mix_value": "mixer.mix_v",
    "feed_forward.time_mix_key": "ffn.mix_k",
    "feed_forward.time_mix_receptance": "ffn.mix_r",
}


def keys(spec: ModelSpec) -> KeyMap:
    layer = (
        *spelled(NAMES),
        *(Rule(foreign, (own,), layout=Viewed((1, 1, -1))) for foreign, own in MIXES.items()),
        Rule("attention.time_decay", ("mixer.decay",)),
        Rule("attention.time_first", ("mixer.first",)),
    )
    outside = {"embeddings": "embedding", "blocks.0.pre_ln": "embedding.norm", "ln_out": "norm"}
    return key_map("rwkv.", "blocks.{i}", layer, outside, head="head")
