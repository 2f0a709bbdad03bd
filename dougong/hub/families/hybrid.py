"""What Qwen3-Next and Qwen3.5 share: the keys of attention and DeltaNet in turn, and all names, those of one layer that
predicts a further token among them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from dougong.hub.families.fields import Entry, Given, integer
from dougong.hub.families.layers import attention, bias, every, linear_layers, outer
from dougong.hub.families.names import FFN, bare, both, mixed_keys, named, spelled, within
from dougong.hub.families.rope import turns
from dougong.hub.families.sparse import DELTA_ACTIVATION, layer_rules
from dougong.hub.families.table import the_norm
from dougong.hub.keymap import KeyMap, Rule
from dougong.hub.layouts import Groups
from dougong.model.spec import ModelSpec
from dougong.parts.attention import Attention
from dougong.parts.delta import DeltaNet
from dougong.parts.norm import Norm
from dougong.parts.rope import Axes


def hybrid(depth: int, kv_heads: int, axes: Axes | None = None) -> tuple[Entry, ...]:
    """The keys around the experts, with the family's defaults for keys that the config leaves out, and its M-RoPE."""
    return (
        *outer(depth=depth, context=32768),
        DELTA_ACTIVATION,
        *attention(16, kv_heads, 256),
        bias(),
        turns(partial=0.25, axes=axes),
        integer("linear_num_key_heads", "delta.key_heads", 16),
        integer("linear_num_value_heads", "delta.value_heads", 32),
        integer("linear_key_head_dim", "delta.key_size", 128),
        integer("linear_value_head_dim", "delta.value_size", 128),
        integer("linear_conv_kernel_dim", "delta.convolution", 4),
        linear_layers("delta", every("full_attention_interval", 4, "delta", "mixer")),
    )


def experts(count: int, top_k: int) -> tuple[Entry, ...]:
    return (
        integer("num_experts", "experts.experts", count, least=0),
        integer("num_experts_per_tok", "experts.top_k", top_k),
        integer("moe_intermediate_size", "experts.hidden", 512),
        integer("shared_expert_intermediate_size", "experts.shared.hidden", 512),
    )


def _plain(given: Given) -> Norm:
    return Norm("rms", **given["norm"])


ALWAYS = {
    "norm.offset": 1.0,
    "mixer.qk_norm": the_norm,
    "mixer.gate": "coordinate",
    "delta.norm": _plain,
    "delta.gate": "silu",
    "experts.shared_gate": True,
}
TRAINING = "router_aux_loss_coef"  # says nothing else

DELTA = (
    *spelled({"conv1d": "convolutions.q convolutions.k convolutions.v", "norm": "norm", "out_proj": "o"}),
    *bare({"dt_bias": "decay.bias", "A_log": "decay.log_rate"}),
)
# Norms and feed-forward of a layer, whatever its mixer.
LAYER = (*layer_rules("mlp", FFN, "shared_expert"), *both("mlp.shared_expert_gate", "ffn.shared_gate"))
PREDICTING = {
    "fc": "join",
    "norm": "norm",
    "pre_fc_norm_embedding": "embedding_norm",
    "pre_fc_norm_hidden": "hidden_norm",
}


def hybrid_keys(
    spec: ModelSpec,
    projections: Callable[[DeltaNet], Iterable[Rule]],
    stacked: Iterable[Rule] = (),
) -> KeyMap:
    """`projections`: the rules of a DeltaNet's, names within the mixer; `stacked`: of a layer's experts in files that
    keep them all in one tensor."""
    kinds = {
        Attention: ("self_attn", _attention),
        DeltaNet: ("linear_attn", lambda mixer: (*projections(mixer), *DELTA)),
    }
    more = ()
    if spec.mtp is not None and spec.mtp.depth == 1 and isinstance(spec.mtp.layer.mixer, Attention):
        more = _predicting(LAYER, spec.mtp.layer.mixer)
    keys = mixed_keys(spec, LAYER, kinds, *more)
    instead = (
        *within("model.layers.{i}", "layers.{i}", stacked),
        *within("mtp.layers.0", "mtp.layers.0.block", stacked),
    )
    return replace(keys, instead=instead, predicting=lambda depth: f"mtp.layers.{depth}.input_layernorm.weight")


def _predicting(layer: Iterable[Rule], mixer: Attention) -> tuple[Rule, ...]:
    """The one layer that predicts a further token."""
    block = (*layer, *within("self_attn", "mixer", _attention(mixer)))
    return (
        *within("mtp.layers.0", "mtp.layers.0.block", block),
        *within("mtp", "mtp.layers.0", spelled(PREDICTING)),
    )


def _attention(mixer: Attention) -> tuple[Rule, ...]:
    """Each head's query lies before its gate."""
    size = mixer.head_size
    alone = {**named("k", "v", "o"), "q_norm": "q_norm", "k_norm": "k_norm"}
    return (*both("q_proj", "q", "gate", layout=Groups((size, size))), *spelled(alone))
