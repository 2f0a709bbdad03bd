"""RWKV-4 (Peng et al. 2023).

Semantics: transformers' modeling_rwkv, whose last norm keeps an eps of 1e-5 whatever the config says. In evaluation it
halves what is on the residual path after every `rescale_every` layers, and the outputs of the layers with it. All that
this changes is how large eps is beside it: four times larger, for each halving, in the norms that follow.
"""

from __future__ import annotations

from dougong.hub.families.fields import Given, change, flag, integer, number, search, settings
from dougong.hub.families.names import below, key_map, spelled
from dougong.hub.families.reader import Reader
from dougong.hub.families.table import LAYER_NORM, Table, the_norm
from dougong.hub.keymap import KeyMap, Rule
from dougong.hub.layouts import Viewed
from dougong.model.spec import ModelSpec
from dougong.parts.norm import Norm
from dougong.parts.wkv import WKV4, ChannelMix

FAMILY = "rwkv"


def _ask(config: Reader, given: Given) -> None:
    every, eps = config.integer("rescale_every", 6, least=-(1 << 30)), given["norm"]["eps"]

    def norm(eps: float, layers: int) -> Norm:
        """The norm after so many layers."""
        return Norm("layer", eps * 4.0 ** (layers // every) if every > 0 else eps, bias=True)

    given["model"]["norm"] = norm(1e-5, depth := given["layers"]["depth"])
    for index in range(depth):
        change(given, index, "layer.norm", norm(eps, index))


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
        search(_ask, lambda parts: settings(rescale_every=range(len(parts.spec.layers) + 1))),
    ),
    always={**LAYER_NORM, "embedding.norm": the_norm},
)
from_config, to_config = TABLE.from_config, TABLE.to_config


MATRICES = {
    **below("attention.", "mixer.", {"receptance": "r", "key": "k", "value": "v", "output": "o"}),
    **below("feed_forward.", "ffn.", {"key": "up", "receptance": "gate", "value": "down"}),
}
MIXES = {
    **below("attention.time_mix_", "mixer.mix_", {"receptance": "r", "key": "k", "value": "v"}),
    **below("feed_forward.time_mix_", "ffn.mix_", {"receptance": "r", "key": "k"}),
}


def keys(spec: ModelSpec) -> KeyMap:
    layer = (
        *spelled({"ln1": "mixer_norm", "ln2": "ffn_norm", **MATRICES}),
        *(Rule(foreign, (own,), layout=Viewed((1, 1, -1))) for foreign, own in MIXES.items()),
        Rule("attention.time_decay", ("mixer.decay",)),
        Rule("attention.time_first", ("mixer.first",)),
    )
    outside = {"embeddings": "embedding", "blocks.0.pre_ln": "embedding.norm", "ln_out": "norm"}
    return key_map("rwkv.", "blocks.{i}", layer, outside, head="head")
