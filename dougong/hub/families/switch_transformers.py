"""Switch Transformers (Fedus et al. 2021): T5 whose layers have, every so often, experts of which each token takes one,
as far as its places go round.

Noise on the router's input (`router_jitter_noise`, training only) is not kept. Semantics: transformers'
modeling_switch_transformers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from dougong.hub.families.fields import Given, Keys, Parts, activation, flag, integer, number, search
from dougong.hub.families.layers import in_turn
from dougong.hub.families.pairs import DECODER, DEPTH, ENCODER, KINDS, Pair, t5, t5_keys
from dougong.hub.families.reader import Reader
from dougong.hub.families.table import Table
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec
from dougong.parts.experts import MoE
from dougong.parts.feedforward import MLP
from dougong.parts.router import TopK

FAMILY = "switch_transformers"


def _sparse(side: str) -> Keys:
    """Which layers of a side have experts, by their number or by the step from one to the next, which counts where both
    are there: the second of every so many, or all, or none."""
    number, step = f"num_sparse_{side}_layers", f"{side}_sparse_step"

    def usual(count: int, sparse: int) -> int:
        """As in transformers, 0 sparse layers ask for one, and more than there are layers for none."""
        return count // sparse if sparse else count

    def ask(config: Reader, given: Given) -> None:
        count = given["layers"]["depth"]
        every = config.integer(step, usual(count, config.integer(number, 3, least=0)), least=0)
        given["layers"]["ffns"] = in_turn(count, every, 1, "experts", "dense")

    def ways(parts: Parts) -> Iterable[dict[str, Any]]:
        """Keys that agree with each other, before those that do not."""
        count, sparse = len(parts.spec.layers), sum(isinstance(layer.ffn, MoE) for layer in parts.spec.layers)
        yield from ({number: each, step: usual(count, each)} for each in (*range(1, count + 2), 0))
        yield from ({number: sparse, step: each} for each in range(count + 1))

    return search(ask, ways)


KEYS = (
    *t5(768, 12, None, "experts.hidden dense.hidden"),
    activation("dense_act_fn", "experts.activation dense.activation", "relu", tanh="gelu_new"),
    integer("num_experts", "experts.experts", 8),
    integer("expert_capacity", "experts.router.capacity", 64),
    flag("router_bias", "experts.router.bias", False),
    number("router_aux_loss_coef", "experts.router.balance", 0.001),
    number("router_z_loss_coef", "experts.router.z", 0.001),
    flag("tie_word_embeddings", "head.tied", True),
)
EXPERTS = {"experts.top_k": 1, "experts.gated": False, "experts.router.normalise": False}
SOURCE = Table(
    FAMILY,
    "SwitchTransformersForConditionalGeneration",
    {**KINDS, "dense": MLP, "experts": MoE, "experts.router": TopK},
    (*KEYS, _sparse("encoder")),
    {**ENCODER, **EXPERTS},
    silent="""initializer_factor is_encoder_decoder is_decoder add_cross_attention router_dtype
              router_ignore_padding_tokens add_router_probs""",
)
TARGET = replace(SOURCE, keys=(*KEYS, DEPTH, _sparse("decoder")), always={**DECODER, **EXPERTS})
PAIR = Pair("SwitchTransformers", SOURCE, TARGET)
from_config, to_config = PAIR.from_config, PAIR.to_config


FFN = {
    "mlp.router.classifier": "ffn.router.logits",
    "mlp.wi": "ffn.up",
    "mlp.wo": "ffn.down",
    "mlp.experts.expert_{e}.wi": "ffn.experts.up",
    "mlp.experts.expert_{e}.wo": "ffn.experts.down",
}


def keys(spec: ModelSpec) -> KeyMap:
    return t5_keys(spec, FFN)
