"""Switch Transformers (Fedus et al. 2021): T5 whose layers have, every so often, experts of which each token takes one,
as far as its places go round.

Noise on the router's input (`router_jitter_noise`, training only) is not kept. Semantics: transformers'
modeling_switch_transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dougong.base import DougongError
from dougong.hub.families.common import exact, expect
from dougong.hub.families.fields import Given, Keys, Parts, activation, flag, integer, number
from dougong.hub.families.pairs import ALWAYS, KINDS, SEQUENCES, encoder, head_of, model_keys, with_decoder, write_pair
from dougong.hub.families.reader import Reader
from dougong.hub.families.table import Table
from dougong.hub.families.tasks import BARE, read_architecture
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec
from dougong.parts.experts import MoE
from dougong.parts.feedforward import MLP
from dougong.parts.router import TopK

FAMILY = "switch_transformers"
NAME = "SwitchTransformers"


def _step(depth: int, sparse: int) -> int:
    """As in transformers, 0 sparse layers ask for one, and more than there are layers for none."""
    return depth // sparse if sparse else depth


def _sparse(depth: int, step: int) -> list[bool]:
    """Which layers have experts: the second of every `step`, or all, or none."""
    return [step > 0 and (step == 1 or index % step == 1) for index in range(depth)]


def _layers(depth: str, side: str) -> Keys:
    """Of one side: how many layers there are, and which have experts, by their number or by the step from one to the
    next, which counts where both are there."""
    number, step = f"num_sparse_{side}_layers", f"{side}_sparse_step"

    def ask(config: Reader, given: Given) -> None:
        count = given["layers"]["depth"] = config.integer(depth, given["layers"]["depth"])
        usual = _step(count, config.integer(number, 3, least=0))
        kinds = _sparse(count, config.integer(step, usual, least=0))
        given["layers"]["ffns"] = ["experts" if each else "dense" for each in kinds]

    def tell(parts: Parts) -> dict[str, Any]:
        wanted = [isinstance(layer.ffn, MoE) for layer in parts.spec.layers]
        count = len(wanted)
        for each in (*range(1, count + 2), 0):
            if _sparse(count, _step(count, each)) == wanted:
                return {number: each, step: _step(count, each)}
        for each in range(count + 1):
            if _sparse(count, each) == wanted:
                return {number: sum(wanted), step: each}
        raise DougongError(f"{FAMILY} cannot express experts in layers {[i for i, one in enumerate(wanted) if one]}")

    return Keys(ask, tell)


KEYS = (
    *encoder(768, 12, None, "experts.hidden dense.hidden"),
    activation("dense_act_fn", "experts.activation dense.activation", "relu", tanh="gelu_new"),
    integer("num_experts", "experts.experts", 8),
    integer("expert_capacity", "experts.router.capacity", 64),
    flag("router_bias", "experts.router.bias", False),
    number("router_aux_loss_coef", "experts.router.balance", 0.001),
    number("router_z_loss_coef", "experts.router.z", 0.001),
)
SOURCE = Table(
    FAMILY,
    NAME,
    {**KINDS, "dense": MLP, "experts": MoE, "experts.router": TopK},
    (*KEYS, _layers("num_layers", "encoder")),
    {**ALWAYS, "experts.top_k": 1, "experts.gated": False, "experts.router.normalise": False},
    silent="""initializer_factor is_encoder_decoder is_decoder add_cross_attention router_dtype
              router_ignore_padding_tokens add_router_probs""",
)
DECODER = replace(SOURCE, keys=(*KEYS, _layers("num_decoder_layers", "decoder")))


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = Reader(FAMILY, config)
    source, ffns = SOURCE.model(reader), [layer.ffn for layer in DECODER.model(reader).layers]
    kind, tied = read_architecture(reader, NAME, (SEQUENCES, BARE), SEQUENCES), reader.flag("tie_word_embeddings", True)
    reader.refuse_rest()
    spec = with_decoder(source, ffns, head_of(source, tied) if kind == SEQUENCES else None)
    return replace(spec, shared_embedding=tied)


def to_config(spec: ModelSpec) -> dict[str, Any]:
    expect(FAMILY, "encoder", spec.encoder, ModelSpec)
    config = {**DECODER.write(spec), **write_pair(SOURCE, spec), "tie_word_embeddings": spec.shared_embedding}
    return exact(FAMILY, NAME + (SEQUENCES if spec.head else BARE), spec, config, from_config)


FFN = {
    "mlp.router.classifier": "ffn.router.logits",
    "mlp.wi": "ffn.up",
    "mlp.wo": "ffn.down",
    "mlp.experts.expert_{e}.wi": "ffn.experts.up",
    "mlp.experts.expert_{e}.wo": "ffn.experts.down",
}


def keys(spec: ModelSpec) -> KeyMap:
    return model_keys(spec, FFN)
