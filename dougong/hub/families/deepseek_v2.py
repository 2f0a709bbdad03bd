"""DeepSeek-V2 and V2-Lite: latent attention, and experts chosen by softmax, in groups or freely.

Semantics: transformers' modeling_deepseek_v2, which never renormalises the weights of the chosen experts and so gives
`norm_topk_prob` no meaning (it is false in all published configs).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dougong.base import DougongError
from dougong.hub.families.common import exact
from dougong.hub.families.deepseek import deepseek_keys, read_deepseek, write_deepseek
from dougong.hub.families.reader import Reader
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec
from dougong.parts.feedforward import GatedMLP
from dougong.parts.router import TopK

FAMILY = "deepseek_v2"
ARCHITECTURE = "DeepseekV2ForCausalLM"
USUAL = {"context": 2048, "intermediate": 11008, "expert": 1407, "experts": 64, "top_k": 0, "shared": 2, "dense": 0}


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = Reader(FAMILY, config)
    reader.raw("norm_topk_prob")
    if (score := reader.raw("scoring_func", "softmax")) != "softmax":
        raise reader.wrong("scoring_func", score, "'softmax'")
    method, grouped = reader.raw("topk_method", "greedy"), "group_limited_greedy"
    if method not in ("greedy", grouped):
        raise reader.wrong("topk_method", method, f"'greedy' or '{grouped}'")
    groups, kept = reader.integer("n_group", 1), reader.integer("topk_group", 1)
    router = TopK(normalise=False, scale=reader.number("routed_scaling_factor", 1.0))
    if method == grouped:
        router = TopK(normalise=False, scale=router.scale, groups=groups, top_groups=kept)
    return read_deepseek(reader, USUAL, router, ffn_bias=reader.flag("mlp_bias", False))


def to_config(spec: ModelSpec) -> dict[str, Any]:
    config, mixer, router = write_deepseek(FAMILY, spec)
    if spec.width % mixer.heads:  # transformers refuses such a config, though no head has that size
        raise DougongError(f"{FAMILY} cannot express a width of {spec.width} that {mixer.heads} heads do not divide")
    config["topk_method"] = "greedy" if router.groups == 1 else "group_limited_greedy"
    plain = [getattr(layer.ffn, "shared", layer.ffn) for layer in spec.layers]
    config["mlp_bias"] = any(isinstance(ffn, GatedMLP) and ffn.bias for ffn in plain)
    return exact(FAMILY, ARCHITECTURE, spec, config, from_config)


def keys(spec: ModelSpec) -> KeyMap:
    return deepseek_keys(spec)
