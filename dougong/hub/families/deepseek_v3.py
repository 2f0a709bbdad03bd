"""DeepSeek-V3, R1 and the models of their form (Moonlight): latent attention, experts by sigmoid with a correction.

Semantics: transformers' modeling_deepseek_v3. Files may hold layers for multi-token prediction besides, which
transformers leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dougong.hub.families.common import exact
from dougong.hub.families.deepseek import deepseek_keys, read_deepseek, write_deepseek
from dougong.hub.families.names import with_predicting_layers
from dougong.hub.families.reader import Reader
from dougong.hub.keymap import KeyMap
from dougong.hub.predicting import without
from dougong.model.spec import ModelSpec
from dougong.parts.rope import Rope
from dougong.parts.router import TopK

FAMILY = "deepseek_v3"
ARCHITECTURE = "DeepseekV3ForCausalLM"
USUAL = {"context": 4096, "intermediate": 18432, "expert": 2048, "experts": 256, "top_k": 8, "shared": 1, "dense": 3}


def read_router(config: Reader) -> TopK:
    """Sigmoid scores, chosen with a correction from the groups whose two best experts score most."""
    for key, known in (("scoring_func", "sigmoid"), ("topk_method", "noaux_tc")):
        if (value := config.raw(key, known)) != known:
            raise config.wrong(key, value, repr(known))
    for key in ("num_nextn_predict_layers", "num_mtp_layers"):
        config.raw(key)
    return TopK(
        "sigmoid",
        config.flag("norm_topk_prob", True),
        config.number("routed_scaling_factor", 2.5),
        correction=True,
        groups=config.integer("n_group", 8),
        top_groups=config.integer("topk_group", 4),
        group_best=2,
    )


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = Reader(FAMILY, config)
    return read_deepseek(reader, USUAL, read_router(reader), interleaved=reader.flag("rope_interleave", True))


def to_config(spec: ModelSpec) -> dict[str, Any]:
    config, mixer, router = write_deepseek(FAMILY, spec)
    config["norm_topk_prob"], config["num_nextn_predict_layers"] = router.normalise, spec.mtp.depth if spec.mtp else 0
    config["rope_interleave"] = isinstance(mixer.position, Rope) and mixer.position.interleaved
    return exact(FAMILY, ARCHITECTURE, without(FAMILY, spec), config, from_config)


def keys(spec: ModelSpec) -> KeyMap:
    return with_predicting_layers(deepseek_keys(spec), spec)
