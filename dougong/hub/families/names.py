"""Names of tensors in Llama's manner, which most decoders took over with changes of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from dougong.hub.keymap import CONCAT, LAYER, KeyMap, Rule
from dougong.hub.layouts import Groups, Layout
from dougong.model.spec import ModelSpec
from dougong.parts.attention import Attention

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


def spelled(names: Mapping[str, str], transpose: bool = False) -> tuple[Rule, ...]:
    """The rules for weights and biases. Names: foreign ones, and for each our own, or several apart by spaces, which
    then lie one after another in the foreign tensor."""
    return tuple(rule for foreign, own in names.items() for rule in both(foreign, *own.split(), transpose=transpose))


def bare(names: Mapping[str, str], layout: Layout = CONCAT) -> tuple[Rule, ...]:
    """The rules for tensors that are parameters themselves, without ".weight" behind their names: foreign, own."""
    return tuple(Rule(foreign, (own,), layout=layout) for foreign, own in names.items())


def within(foreign: str, own: str, rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """The rules with their names below two places."""
    return tuple(
        replace(rule, foreign=f"{foreign}.{rule.foreign}", own=tuple(f"{own}.{name}" for name in rule.own))
        for rule in rules
    )


def mixed_keys(
    spec: ModelSpec,
    layer: Iterable[Rule],
    kinds: Mapping[type, tuple[str, Callable[[Any], Iterable[Rule]] | tuple[Rule, ...]]],
    *more: Rule,
    norm: str = "norm",
    derived: Mapping[type, Callable[[Any, int, int], Mapping[Any, Callable[[], Tensor]]]] | None = None,
    spellings: tuple[tuple[str, str], ...] = (),
) -> KeyMap:
    """Names in Llama's manner where mixers are of several kinds, whose names overlap.

    layer      the rules that all layers share
    kinds      of each kind of mixer, what stands before the foreign names, and its rules, or what makes those of one
               such mixer
    norm       the name of the last one
    derived    of kinds of mixers, what their files hold and no weight tells (`KeyMap.derived`), by foreign name: made
               of the mixer, its layer's number and how many layers there are
    spellings  `KeyMap.spellings`
    """
    mixers: list[Rule] = []
    tables: dict[str, Callable[[], Tensor]] = {}
    for index, each in enumerate(spec.layers):
        block, rules = kinds.get(type(each.mixer), ("", ()))
        rules = rules(each.mixer) if callable(rules) else rules
        mixers += within(f"model.layers.{index}.{block}", f"layers.{index}.mixer", rules)
        if found := (derived or {}).get(type(each.mixer)):
            made = found(each.mixer, index, len(spec.layers))
            tables |= {f"model.layers.{index}.{block}.{name}": make for name, make in made.items()}
    keys = key_map("model.", "layers.{i}", layer, {"embed_tokens": "embedding", norm: "norm"}, *mixers, *more)
    return replace(keys, derived=tables, spellings=spellings)


def key_map(
    prefix: str,
    place: str,
    layer: Iterable[Rule],
    outside: Mapping[str, str],
    *more: Rule,
    head: str = "lm_head",
    tables: Sequence[str] = (),
) -> KeyMap:
    """The names of a decoder or an encoder.

    prefix   what the names of all but the head begin with
    place    of a layer, below the prefix; layer: the rules below it, whose own names are below layers.{i}
    outside  names below the prefix and outside the layers, as `spelled` has them: the embedding is one
    head     of the weights over the vocabulary
    tables   names in a layer of tensors that hold no weights (`KeyMap.constants`)
    """
    layers = f"{prefix}{place}"
    embedding = next(name for name, own in outside.items() if own == "embedding")
    return KeyMap(
        rules=(
            *spelled({f"{prefix}{name}": own for name, own in outside.items()}),
            *within(layers, "layers.{i}", layer),
            *spelled({head: "head"}),
            *more,
        ),
        prefix=prefix,
        constants=tuple(f"{layers}.{name}" for name in tables),
        tied=(f"{head}.weight", f"{prefix}{embedding}.weight"),
    )


def named(*names: str, within: str = "", suffix: str = "_proj") -> dict[str, str]:
    """Matrices that lie alone in a file, by our names: a suffix makes them foreign."""
    return {f"{name}{suffix}": f"{within}{name}" for name in names}


def factors(**names: str) -> dict[str, str]:
    """Matrices of low rank, each as two factors: what foreign names begin with, and our own name."""
    return {f"{other}_{each}_proj": f"{own}.{each}" for other, own in names.items() for each in ("a", "b")}


ATTENTION = {**named("q", "k", "v", "o"), "q_norm": "q_norm", "k_norm": "k_norm"}
FFN = named("gate", "up", "down")


def below(foreign: str, own: str, names: Mapping[str, str]) -> dict[str, str]:
    """The names with both sides below two places."""
    return {f"{foreign}{name}": " ".join(f"{own}{each}" for each in ours.split()) for name, ours in names.items()}


def llama_keys(
    norms: Mapping[str, str] = LLAMA_NORMS,
    attention: Mapping[str, str] = ATTENTION,
    ffn: Mapping[str, str] = FFN,
    more: Iterable[Rule] = (),
) -> KeyMap:
    """Names in Llama's manner: of the norms of a layer, of the matrices of its attention and of its feed-forward; and
    further rules of a layer."""
    parts = {**norms, **below("self_attn.", "mixer.", attention), **below("mlp.", "ffn.", ffn)}
    keys = key_map(
        "model.",
        "layers.{i}",
        (*spelled(parts), *more),
        {"embed_tokens": "embedding", "norm": "norm"},
        tables=("self_attn.rotary_emb.inv_freq",),
    )
    return replace(keys, constants=(*keys.constants, "model.rotary_emb.inv_freq"))


def megatron(mixer: str, spec: ModelSpec, norms: Mapping[str, str] = LLAMA_NORMS) -> tuple[Rule, ...]:
    """A layer in the manner of programs that descend from Megatron-LM: in one matrix of `mixer` lie, for each key head
    in turn, all its queries, its key and its value."""
    sizes = (1, 1, 1)
    if isinstance(attention := spec.layers[0].mixer, Attention):
        size = attention.head_size
        sizes = (attention.heads // attention.kv_heads * size, size, size)
    ffn = {"mlp.dense_h_to_4h": "ffn.up", "mlp.dense_4h_to_h": "ffn.down"}
    return (
        *spelled({**norms, f"{mixer}.dense": "mixer.o", **ffn}),
        *both(f"{mixer}.query_key_value", "mixer.q", "mixer.k", "mixer.v", layout=Groups(sizes)),
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
