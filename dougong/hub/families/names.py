"""Names of tensors in Llama's manner, which most decoders took over with changes of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dougong.hub.keymap import CONCAT, LAYER, KeyMap, Rule
from dougong.hub.layouts import Layout
from dougong.model.spec import ModelSpec

LLAMA_NORMS = {"input_layernorm": "mixer_norm", "post_attention_layernorm": "ffn_norm"}
SANDWICH_NORMS = {
    "input_layernorm": "mixer_norm",
    "post_attention_layernorm": "mixer_out_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "ffn_out_norm",
}


def both(foreign: str, *own: str, transpose: bool = False, layout: Layout = CONCAT) -> tuple[Rule, Rule]:
    """The rules for a weight and for its bias."""
    weight = Rule(f"{foreign}.weight", tuple(f"{name}.weight" for name in own), transpose, layout)
    return weight, Rule(f"{foreign}.bias", tuple(f"{name}.bias" for name in own), layout=layout)


def separate(*names: str) -> dict[str, tuple[str, ...]]:
    """Matrices that lie alone in a file, by their foreign names."""
    return {f"{name}_proj": (name,) for name in names}


def llama_keys(
    norms: Mapping[str, str] = LLAMA_NORMS,
    attention: Mapping[str, tuple[str, ...]] = separate("q", "k", "v", "o"),
    ffn: Mapping[str, tuple[str, ...]] = separate("gate", "up", "down"),
) -> KeyMap:
    """Names in Llama's manner. Foreign names to own ones: the norms of a layer, the matrices (one or several in a row)
    of its attention and of its feed-forward."""
    layer = "model.layers.{i}"
    return KeyMap(
        rules=(
            Rule("model.embed_tokens.weight", ("embedding.weight",)),
            *(rule for name, own in norms.items() for rule in both(f"{layer}.{name}", f"layers.{{i}}.{own}")),
            *(
                rule
                for part, slot, matrices in (("self_attn", "mixer", attention), ("mlp", "ffn", ffn))
                for name, own in matrices.items()
                for rule in both(f"{layer}.{part}.{name}", *(f"layers.{{i}}.{slot}.{each}" for each in own))
            ),
            Rule(f"{layer}.self_attn.q_norm.weight", ("layers.{i}.mixer.q_norm.weight",)),
            Rule(f"{layer}.self_attn.k_norm.weight", ("layers.{i}.mixer.k_norm.weight",)),
            *both("model.norm", "norm"),
            Rule("lm_head.weight", ("head.weight",)),
        ),
        prefix="model.",
        constants=("model.layers.{i}.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"),
        tied=("lm_head.weight", "model.embed_tokens.weight"),
    )


LLAMA_KEYS = llama_keys()
"""Names of Llama, which Mistral and Qwen took over."""


# What DeepSeek-V3's form adds to a layer that predicts a further token, under model.layers.{number}: foreign, own.
PREDICTING = {"eh_proj": "join", "enorm": "embedding_norm", "hnorm": "hidden_norm", "shared_head.norm": "norm"}


def with_predicting_layers(keys: KeyMap, spec: ModelSpec) -> KeyMap:
    """`keys` of files whose layers for predicting further tokens (MTP) are numbered on after the model's own. They may
    hold the embedding and the head once more."""
    first, head = len(spec.layers), keys.tied[1] if spec.head is not None and spec.head.tied else keys.tied[0]
    rules: list[Rule] = []
    copies: list[tuple[str, str]] = []
    for depth in range(spec.mtp.depth if spec.mtp else 0):
        there, here = f"model.layers.{first + depth}", f"mtp.layers.{depth}"
        rules += [
            replace(
                rule,
                foreign=rule.foreign.replace(f"model.layers.{LAYER}", there),
                own=tuple(name.replace(f"layers.{LAYER}", f"{here}.block") for name in rule.own),
            )
            for rule in keys.rules
            if LAYER in rule.foreign
        ]
        rules += [Rule(f"{there}.{other}.weight", (f"{here}.{own}.weight",)) for other, own in PREDICTING.items()]
        copies += [(f"{there}.embed_tokens.weight", keys.tied[1]), (f"{there}.shared_head.head.weight", head)]
    return replace(
        keys,
        rules=(*keys.rules, *rules),
        copies=(*keys.copies, *copies),
        predicting=lambda depth: f"model.layers.{first + depth}.eh_proj.weight",
    )
