"""What DeepSeek V2, V3 and V3.2 share: latent attention, and experts in all layers but the first."""

from __future__ import annotations

import math
from typing import Any

from dougong.hub.families.fields import Entry, Given, Keys, Parts, flag, integer, optional, share
from dougong.hub.families.layers import outer
from dougong.hub.families.names import FFN, LLAMA_NORMS, below, llama_keys, spelled
from dougong.hub.families.reader import Reader
from dougong.hub.families.rope import turns, write_rope
from dougong.hub.families.sparse import ACTIVATION, SHARED, correction, expert_names
from dougong.hub.keymap import KeyMap, Rule
from dougong.model.spec import ModelSpec
from dougong.parts.experts import MoE
from dougong.parts.latent import LatentAttention
from dougong.parts.rope import Rope, Yarn

KINDS = {**SHARED, "mixer": LatentAttention}
# A model of dense layers alone keeps the keys of experts that no layer has.
ABSENT = {"experts": lambda found: MoE(2, 1, 1, activation=found["dense"].activation)}
UNUSED = "head_dim qk_head_dim aux_loss_alpha seq_aux ep_size"
"""Keys that follow from others, or that only training reads."""


def _ask_key_heads(config: Reader, given: Given) -> None:
    """Latent attention makes keys for every head."""
    heads = given["mixer"]["heads"]
    if (count := config.integer("num_key_value_heads", heads)) != heads:
        raise config.wrong("num_key_value_heads", count, f"num_attention_heads, {heads}")


def _tell_key_heads(parts: Parts) -> dict[str, Any]:
    return {"num_key_value_heads": parts.held["mixer"].heads} if parts.held["mixer"] else {}


LATENT = (
    integer("num_attention_heads", "mixer.heads"),
    Keys(_ask_key_heads, _tell_key_heads),
    integer("kv_lora_rank", "mixer.kv_rank", 512),
    integer("qk_nope_head_dim", "mixer.nope_size", 128),
    integer("qk_rope_head_dim", "mixer.rope_size", 64),
    integer("v_head_dim", "mixer.value_size", 128),
    # null means that queries come straight from the hidden state.
    optional("q_lora_rank", "mixer.q_rank", 1536),
    flag("attention_bias", "mixer.bias mixer.out_bias", False),
    share("attention_dropout", "mixer.dropout"),
)


def deepseek(context: int, hidden: int, *more: Entry) -> tuple[Entry, ...]:
    """The keys of all three, and `more`. The numbers are the family's for keys that the config leaves out."""
    return (
        *outer(context=context),
        *LATENT,
        integer("intermediate_size", "dense.hidden", hidden),
        ACTIVATION,
        turns(size="rope_size", interleaved=True),
        Keys(_ask_scale, _tell_scale),
        *more,
    )


def _scaled(size: int, scaling: Yarn, all_dim: float) -> float:
    """The factor on scores: m^2 / sqrt(size) with m = 0.1 all_dim ln(factor) + 1 (yarn_get_mscale)."""
    m = 1.0 if scaling.factor <= 1 else 0.1 * all_dim * math.log(scaling.factor) + 1.0
    return size**-0.5 * m * m


def _ask_scale(config: Reader, given: Given) -> None:
    mixer, rope = given["mixer"], config.raw("rope_scaling") or config.raw("rope_parameters") or {}
    if (all_dim := rope.get("mscale_all_dim")) and isinstance(scaling := mixer["position"].scaling, Yarn):
        mixer["scale"] = _scaled(mixer["nope_size"] + mixer["rope_size"], scaling, all_dim)


def _tell_scale(parts: Parts) -> dict[str, Any]:
    """The mscale_all_dim behind the mixer's scale: the shortest number that gives it exactly, where there is one."""
    mixer = parts.held["mixer"]
    scaling = mixer.position.scaling if isinstance(mixer.position, Rope) else None
    if mixer.scale is None or not isinstance(scaling, Yarn):
        return {}
    size, spread = mixer.query_size, 0.1 * math.log(scaling.factor)
    exact = (math.sqrt(mixer.scale * math.sqrt(size)) - 1) / spread if spread else 1.0
    short = (round(exact, digits) for digits in range(1, 17))
    all_dim = next((number for number in short if _scaled(size, scaling, number) == mixer.scale), exact)
    return {"rope_scaling": {**write_rope(parts.family, mixer.position)["rope_scaling"], "mscale_all_dim": all_dim}}


def latent_rules(mixer: object) -> tuple[Rule, ...]:
    return spelled(latent_names(mixer))


def latent_names(mixer: object) -> dict[str, str]:
    """Of such a mixer's matrices and norms: foreign names and ours."""
    straight = isinstance(mixer, LatentAttention) and mixer.q_rank is None
    return {
        "q_proj" if straight else "q_b_proj": "q",
        "q_a_proj": "q_down",
        "q_a_layernorm": "q_norm",
        "kv_a_proj_with_mqa": "kv_down",
        "kv_a_layernorm": "kv_norm",
        "kv_b_proj": "kv_up",
        "o_proj": "o",
    }


INDEXER = {"wq_b": "q", "wk": "k", "k_norm": "k_norm", "weights_proj": "weights"}


def deepseek_keys(spec: ModelSpec) -> KeyMap:
    mixer = {**latent_names(spec.layers[0].mixer), **below("indexer.", "indexer.", INDEXER)}
    norms = {**LLAMA_NORMS, **expert_names("mlp", FFN, "shared_experts")}
    return llama_keys(norms, mixer, FFN, more=correction("mlp.gate"))
