"""What families with experts share: their keys, and their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from dougong.hub.families.fields import Entry, Given, Key, Keys, Parts, activation, integer, number
from dougong.hub.families.layers import pattern
from dougong.hub.families.names import FFN, LLAMA_NORMS, bare, below, llama_keys, spelled
from dougong.hub.families.reader import Reader
from dougong.hub.families.table import Absent
from dougong.hub.keymap import KeyMap, Rule
from dougong.parts.attention import Attention
from dougong.parts.decay import SoftplusDecay
from dougong.parts.delta import DeltaNet
from dougong.parts.experts import MoE
from dougong.parts.feedforward import GatedMLP
from dougong.parts.router import TopK

# Of files that number an expert's matrices: foreign names, and ours.
NUMBERED = {"w1": "gate", "w3": "up", "w2": "down"}

ALL_SPARSE = {"mixer": Attention, "experts": MoE, "experts.router": TopK}
KINDS = {**ALL_SPARSE, "dense": GatedMLP}
SHARED = {**KINDS, "experts.shared": GatedMLP}
"""With a feed-forward for all tokens."""
HYBRID = {**SHARED, "delta": DeltaNet, "delta.decay": SoftplusDecay}
"""And a DeltaNet in some layers."""
ACTIVATION = activation("hidden_act", "experts.activation dense.activation experts.shared.activation", "silu")
DELTA_ACTIVATION = replace(ACTIVATION, place=f"delta.activation {ACTIVATION.place}")
"""Of those."""
# DeepSeek-V3's router: sigmoid scores, chosen with a correction from the groups whose two best experts score most.
SIGMOID = {"experts.router.score": "sigmoid", "experts.router.correction": True, "experts.router.group_best": 2}
# Where all layers have experts, a dense one is written as large as an expert; all keys must be there.
PLAIN: Absent = {"dense": lambda found: GatedMLP(found["experts"].hidden, found["experts"].expert().activation)}


def experts(count: int, top_k: int, *more: Entry, own: str = "num_local_experts") -> tuple[Entry, ...]:
    """The usual keys of experts, and `more`. own: the family's name for their number, which versions of transformers
    write under either of two names."""
    other = "num_experts" if own == "num_local_experts" else "num_local_experts"
    return (
        integer(own, "experts.experts", count, also=other),
        integer("num_experts_per_tok", "experts.top_k", top_k, also="experts_per_token"),
        number("router_aux_loss_coef", "experts.router.balance", 0.001),
        *more,
    )


def grouped(
    count: int,
    top_k: int,
    hidden: int,
    scale: float = 1.0,
    groups: int = 1,
    top: int = 1,
    common: int = 1,
    names: str = "n_routed_experts num_experts_per_tok n_shared_experts n_group norm_topk_prob",
) -> tuple[Entry, ...]:
    """The keys of experts that stand in groups, with the family's defaults (common: experts that all tokens share) and
    its names for their number, for how many a token takes, for how many all share, for the number of groups, and for
    whether weights are normalised, if that is a key."""
    own, each, all_share, group, *normalise = names.split()
    return (
        integer(own, "experts.experts", count),
        integer(each, "experts.top_k", top_k),
        integer("moe_intermediate_size", "experts.hidden", hidden),
        number("routed_scaling_factor", "experts.router.scale", scale),
        integer(group, "experts.router.groups", groups),
        integer("topk_group", "experts.router.top_groups", top),
        *(Key(name, "experts.router.normalise", _set, True) for name in normalise),
        shared(common, all_share),
    )


def _set(config: Reader, key: str, usual: bool) -> bool:
    """A flag of which null, which is not a missing key, means no."""
    return config.raw(key, usual) is not None and config.flag(key, usual)


def shared(usual: int, name: str) -> Keys:
    """How many experts all tokens share, as one feed-forward. Keys of experts are read before."""

    def ask(config: Reader, given: Given) -> None:
        hidden = given["experts"]["hidden"] * config.integer(name, usual)
        given.setdefault("experts.shared", {})["hidden"] = hidden

    def tell(parts: Parts) -> dict[str, Any]:
        found = parts.held["experts"]
        return {name: max(1, found.shared.hidden // found.hidden if found and found.shared else 0)}

    return Keys(ask, tell)


def first_dense(usual: int) -> Keys:
    """The first layers have no experts."""

    def ask(config: Reader, given: Given) -> None:
        first, depth = config.integer("first_k_dense_replace", usual, least=0), given["layers"]["depth"]
        given["layers"]["ffns"] = ["dense" if index < first else "experts" for index in range(depth)]

    def tell(parts: Parts) -> dict[str, Any]:
        sparse = [isinstance(layer.ffn, MoE) for layer in parts.spec.layers]
        return {"first_k_dense_replace": [*sparse, True].index(True)}

    return Keys(ask, tell)


def dense_or_sparse(first: int) -> tuple[Keys, Keys]:
    """Each layer's kind in `mlp_layer_types`; without it, as `first_dense` has it."""
    by_number = first_dense(first)
    kinds = {"dense": "dense", "sparse": "experts"}
    return by_number, pattern("mlp_layer_types", "ffns", kinds, lambda config, given: given["layers"]["ffns"])


def _ask_steps(config: Reader, given: Given) -> None:
    step, dense = config.integer("decoder_sparse_step", 1), config.raw("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(isinstance(index, int) for index in dense):
        raise config.wrong("mlp_only_layers", dense, "a list of layers")
    without = [(index + 1) % step > 0 or index in dense for index in range(given["layers"]["depth"])]
    given["layers"]["ffns"] = ["dense" if each else "experts" for each in without]


def _tell_steps(parts: Parts) -> dict[str, Any]:
    dense = [index for index, layer in enumerate(parts.spec.layers) if not isinstance(layer.ffn, MoE)]
    return {"decoder_sparse_step": 1, "mlp_only_layers": dense}


STEPS = Keys(_ask_steps, _tell_steps)
"""Qwen's rule for which layers have experts: every `decoder_sparse_step`-th, but for `mlp_only_layers`."""


def unless_fewer(least: int) -> Keys:
    """Fewer experts than these are no mixture: all layers are dense."""

    def ask(config: Reader, given: Given) -> None:
        if given["experts"]["experts"] < least:
            given["layers"]["ffns"] = ["dense"] * given["layers"]["depth"]

    return Keys(ask)


PREDICTING = Keys(
    lambda config, given: config.pass_over("num_nextn_predict_layers num_mtp_layers"),
    lambda parts: {"num_nextn_predict_layers": parts.spec.mtp.depth if parts.spec.mtp else 0},
)
"""Layers for further tokens, whose number the tensors tell (`hub.predicting`)."""


def correction(router: str) -> tuple[Rule, ...]:
    """The rule for what is added to scores when experts are chosen."""
    return bare({f"{router}.e_score_correction_bias": "ffn.router.correction"})


def expert_names(block: str, experts: Mapping[str, str], shared: str | None = None) -> dict[str, str]:
    """In a layer: a router and its experts in `block` (such as "mlp"), a tensor an expert; and what all share."""
    return {
        f"{block}.gate": "ffn.router.logits",
        **below(f"{block}.experts.{{e}}.", "ffn.experts.", experts),
        **(below(f"{block}.{shared}.", "ffn.shared.", FFN) if shared else {}),
    }


def layer_rules(block: str, experts: Mapping[str, str], shared: str | None = None) -> tuple[Rule, ...]:
    """Of a layer without its mixer: its norms and, in `block`, its feed-forward, whether it is dense or has experts."""
    names = {**LLAMA_NORMS, **below(f"{block}.", "ffn.", FFN), **expert_names(block, experts, shared)}
    return (*spelled(names), *correction(f"{block}.gate"))


def expert_keys(
    block: str, experts: Mapping[str, str] = FFN, shared: str | None = None, more: Iterable[Rule] = ()
) -> KeyMap:
    """Llama's names, those of `expert_names`, and further rules of a layer."""
    return llama_keys(more=(*spelled(expert_names(block, experts, shared)), *more))
