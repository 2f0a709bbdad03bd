"""RWKV-4 (Peng et al. 2023).

Semantics: transformers' modeling_rwkv. In evaluation it halves what is on the residual path after every `rescale_every`
layers, and the layers' outputs with it: all that changes is eps beside it, four times larger in the norms that follow.
The last norm's is 1e-5 whatever the config says.
"""

from __future__ import annotations

from dougong.hub.families.fields import Given, change, integer, search, settings
from dougong.hub.families.layers import outer
from dougong.hub.families.names import bare, below, key_map, spelled
from dougong.hub.families.reader import Reader
from dougong.hub.families.table import LAYER_NORM, Table, the_norm, the_width
from dougong.hub.keymap import KeyMap
from dougong.hub.layouts import Viewed
from dougong.model.spec import ModelSpec
from dougong.parts.norm import Norm
from dougong.parts.wkv import WKV4, ChannelMix

FAMILY = "rwkv"
MATRICES = {
    **below("ln", "", {"1": "mixer_norm", "2": "ffn_norm"}),
    **below("attention.", "mixer.", {"receptance": "r", "key": "k", "value": "v", "output": "o"}),
    **below("feed_forward.", "ffn.", {"key": "up", "receptance": "gate", "value": "down"}),
}
MIXES = {
    **below("attention.time_mix_", "mixer.mix_", {"receptance": "r", "key": "k", "value": "v"}),
    **below("feed_forward.time_mix_", "ffn.mix_", {"receptance": "r", "key": "k"}),
}
TIMES = {"attention.time_decay": "mixer.decay", "attention.time_first": "mixer.first"}


def _ask(config: Reader, given: Given) -> None:
    every, eps = config.integer("rescale_every", 6, least=-(1 << 30)), given["norm"]["eps"]
    halvings = [layers // every if every > 0 else 0 for layers in range(given["layers"]["depth"] + 1)]
    for index, count in enumerate(halvings):
        change(given, index, "layer.norm", Norm("layer", eps * 4.0**count, bias=True))
    given["model"]["norm"] = Norm("layer", 1e-5 * 4.0 ** halvings[-1], bias=True)


TABLE = Table(
    FAMILY,
    "RwkvForCausalLM",
    {"mixer": WKV4, "ffn": ChannelMix},
    (
        *outer(50277, 4096, 32, integer("context_length", "model.context", 1024), 1e-5, eps_key="layer_norm_epsilon"),
        integer("attention_hidden_size", "mixer.inner", the_width),
        integer("intermediate_size", "ffn.hidden", lambda given: 4 * given["model"]["width"]),
        search(_ask, lambda parts: settings(rescale_every=range(len(parts.spec.layers) + 1))),
    ),
    always={**LAYER_NORM, "embedding.norm": the_norm, "mixer.width": the_width, "ffn.width": the_width},
)
from_config, to_config = TABLE.from_config, TABLE.to_config


def keys(spec: ModelSpec) -> KeyMap:
    layer = (*spelled(MATRICES), *bare(MIXES, Viewed((1, 1, -1))), *bare(TIMES))
    outside = {"embeddings": "embedding", "blocks.0.pre_ln": "embedding.norm", "ln_out": "norm"}
    return key_map("rwkv.", "blocks.{i}", layer, outside, head="head")
