"""What families with experts share: the Llama shape with a mixture of experts in some layers, and its names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from dougong.base import DougongError
from dougong.hub.families.common import LLAMA_KEYS, expect, write_decoder
from dougong.hub.families.reader import Reader
from dougong.hub.families.rope import read_rope
from dougong.hub.keymap import KeyMap, Rule
from dougong.model.spec import ModelSpec
from dougong.parts.experts import MoE
from dougong.parts.feedforward import GatedMLP
from dougong.parts.rope import Rope
from dougong.parts.router import TopK


def with_experts(dense: ModelSpec, experts: MoE, sparse: Sequence[bool] | None = None) -> ModelSpec:
    """The spec with `experts` for feed-forwards in the layers that `sparse` says (None: all)."""
    chosen = [True] * len(dense.layers) if sparse is None else sparse
    pairs = zip(dense.layers, chosen, strict=True)
    return replace(dense, layers=tuple(replace(layer, ffn=experts) if each else layer for layer, each in pairs))


def experts_of(family: str, spec: ModelSpec) -> tuple[MoE, TopK]:
    """The first experts of the spec and their router. Raises DougongError where it has none."""
    for layer in spec.layers:
        if isinstance(layer.ffn, MoE):
            return layer.ffn, expect(family, "router", layer.ffn.router, TopK)
    raise DougongError(f"{family} cannot express a model without experts")


def write_sparse_decoder(family: str, spec: ModelSpec, partial: str | None = None) -> dict[str, Any]:
    """The keys of `common.read_decoder`; "intermediate_size" is that of layers without experts where there are any."""
    experts, _ = experts_of(family, spec)
    usual = experts.activation if isinstance(experts.activation, str) else "silu"
    dense = (layer.ffn for layer in spec.layers if isinstance(layer.ffn, GatedMLP))
    plain = next(dense, GatedMLP(experts.hidden, usual))
    return write_decoder(family, with_dense(spec, plain), partial=partial)


def with_dense(spec: ModelSpec, ffn: GatedMLP) -> ModelSpec:
    """The spec with `ffn` in place of experts."""
    layers = (replace(layer, ffn=ffn) if isinstance(layer.ffn, MoE) else layer for layer in spec.layers)
    return replace(spec, layers=tuple(layers))


def turning(config: Reader, theta: float, partial: float | None = None) -> Callable[[int, int], tuple[Rope, Rope]]:
    """For `common.read_decoder`: one rotation in all layers, with the family's base and share of a head."""

    def ropes(size: int, context: int) -> tuple[Rope, Rope]:
        rope = read_rope(config, size, context, partial, theta=theta)
        return rope, rope

    return ropes


def read_count(config: Reader, default: int) -> int:
    """Experts, under either of the two names that versions of transformers write."""
    return config.integer("num_local_experts", config.integer("num_experts", default))


def read_balance(config: Reader, default: float = 0.001) -> float:
    """The weight of the balance loss. Its reporting and the noise on a router's input change no logits."""
    config.raw("output_router_logits")
    config.raw("router_jitter_noise")
    return config.number("router_aux_loss_coef", default)


def accept(config: Reader, **only: Any) -> None:
    """Keys that ask for what the family always does; any other value is refused."""
    for key, value in only.items():
        if config.raw(key, value) not in (value, None):
            raise config.wrong(key, config.raw(key), repr(value))


def read_sparse_layers(config: Reader) -> list[bool]:
    """Qwen's rule for which layers have experts: every `decoder_sparse_step`-th, but for `mlp_only_layers`."""
    depth, step = config.integer("num_hidden_layers"), config.integer("decoder_sparse_step", 1)
    dense = config.raw("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(isinstance(index, int) for index in dense):
        raise config.wrong("mlp_only_layers", dense, "a list of layers")
    return [(index + 1) % step == 0 and index not in dense for index in range(depth)]


def write_sparse_layers(spec: ModelSpec) -> dict[str, Any]:
    """The keys that `read_sparse_layers` reads."""
    dense = [index for index, layer in enumerate(spec.layers) if not isinstance(layer.ffn, MoE)]
    return {"decoder_sparse_step": 1, "mlp_only_layers": dense}


def expert_keys(block: str, gate: str, up: str, down: str, *more: Rule) -> KeyMap:
    """Llama's names, and those of a router and its experts in `block` (such as "mlp"), a tensor an expert."""
    where = f"model.layers.{{i}}.{block}."
    experts = [
        Rule(f"{where}experts.{{e}}.{theirs}.weight", (f"layers.{{i}}.ffn.experts.{ours}.weight",))
        for theirs, ours in {gate: "gate", up: "up", down: "down"}.items()
    ]
    router = Rule(f"{where}gate.weight", ("layers.{i}.ffn.router.logits.weight",))
    return replace(LLAMA_KEYS, rules=(*LLAMA_KEYS.rules, router, *experts, *more))


def shared_rules(name: str) -> list[Rule]:
    """The names of what all tokens share, a gated feed-forward."""
    return [
        Rule(f"model.layers.{{i}}.mlp.{name}.{each}_proj.weight", (f"layers.{{i}}.ffn.shared.{each}.weight",))
        for each in ("gate", "up", "down")
    ]
