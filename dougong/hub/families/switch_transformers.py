"""Switch Transformers (Fedus et al. 2021): T5 whose layers have, every so often, experts, one for each token.

Noise on the router's input (`router_jitter_noise`, training only) is not kept. Semantics: transformers'
modeling_switch_transformers.
"""

from __future__ import annotations

from dataclasses import replace

from dougong.hub.families.fields import activation, flag, integer, number
from dougong.hub.families.layers import some
from dougong.hub.families.names import below
from dougong.hub.families.pairs import DECODER, DEPTH, ENCODER, KINDS, UNGATED, UNREAD, Pair, t5, t5_keys
from dougong.hub.families.table import Table
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec
from dougong.parts.experts import MoE
from dougong.parts.feedforward import MLP
from dougong.parts.router import TopK

FAMILY = "switch_transformers"


SPARSE = {
    side: some(f"num_sparse_{side}_layers", 3, f"{side}_sparse_step", "ffns", "experts", "dense")
    for side in ("encoder", "decoder")
}
FFN = {
    "mlp.router.classifier": "ffn.router.logits",
    **below("mlp.", "ffn.", UNGATED),
    **below("mlp.experts.expert_{e}.", "ffn.experts.", UNGATED),
}
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
    (*KEYS, SPARSE["encoder"]),
    {**ENCODER, **EXPERTS},
    silent=f"add_cross_attention router_dtype router_ignore_padding_tokens add_router_probs {UNREAD}",
)
TARGET = replace(SOURCE, keys=(*KEYS, DEPTH, SPARSE["decoder"]), always={**DECODER, **EXPERTS})
PAIR = Pair("SwitchTransformers", SOURCE, TARGET)
from_config, to_config = PAIR.from_config, PAIR.to_config


def keys(spec: ModelSpec) -> KeyMap:
    return t5_keys(spec, FFN)
