"""Qwen3-Next: gated DeltaNet layers with a gated attention layer after every few, and a mixture of experts with a
shared one. Norms keep their factor as its distance from 1.

Semantics: transformers' modeling_qwen3_next. Files may hold a layer for predicting a further token (mtp.*), which
transformers leaves out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dougong.base import DougongError
from dougong.hub.families.common import exact, first_layer, read_activation, write_activation
from dougong.hub.families.reader import Reader
from dougong.hub.families.rope import read_rope, write_rope
from dougong.hub.keymap import KeyMap, Rule
from dougong.hub.layouts import Groups
from dougong.hub.predicting import without
from dougong.model.spec import FeedForward, LayerSpec, ModelSpec
from dougong.parts.attention import Attention
from dougong.parts.decay import SoftplusDecay
from dougong.parts.delta import DeltaNet
from dougong.parts.embedding import Head
from dougong.parts.experts import MoE
from dougong.parts.feedforward import GatedMLP
from dougong.parts.norm import Norm
from dougong.parts.rope import Axes
from dougong.parts.router import TopK

FAMILY = "qwen3_next"
ARCHITECTURE = "Qwen3NextForCausalLM"
ATTENTION, DELTA = "full_attention", "linear_attention"


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = Reader(FAMILY, config)
    experts, step = reader.integer("num_experts", 512, least=0), reader.integer("decoder_sparse_step", 1)
    dense = reader.raw("mlp_only_layers") or []
    sparse = read_experts(reader, experts, top_k=10, normalise=reader.flag("norm_topk_prob", True)) if experts else None
    hidden = reader.integer("intermediate_size", 5632)
    plain = GatedMLP(hidden, read_activation(reader, "hidden_act", "silu"))

    def ffn(index: int) -> FeedForward:
        return plain if sparse is None or index in dense or (index + 1) % step else sparse

    return read_hybrid(reader, [ffn(index) for index in range(reader.integer("num_hidden_layers", 48))], kv_heads=2)


def to_config(spec: ModelSpec) -> dict[str, Any]:
    dense = [index for index, layer in enumerate(spec.layers) if not isinstance(layer.ffn, MoE)]
    config = {**write_hybrid(FAMILY, spec), "decoder_sparse_step": 1, "mlp_only_layers": dense}
    return exact(FAMILY, ARCHITECTURE, without(FAMILY, spec), config, from_config)


def keys(spec: ModelSpec) -> KeyMap:
    def fused(mixer: DeltaNet) -> Iterator[Rule]:
        """Queries, keys, values and gates in turn, a key head with its value heads at a time; so beta and step."""
        group = mixer.value_heads // mixer.key_heads
        values = group * mixer.value_size
        sizes = (mixer.key_size, mixer.key_size, values, values)
        yield Rule("in_proj_qkvz.weight", ("q.weight", "k.weight", "v.weight", "gate.weight"), layout=Groups(sizes))
        yield Rule("in_proj_ba.weight", ("beta.weight", "decay.step.weight"), layout=Groups((group, group)))

    return hybrid_keys(spec, fused)


def read_experts(config: Reader, experts: int, top_k: int, normalise: bool = True) -> MoE:
    """Experts, and one that all tokens share behind a gate. The auxiliary loss is training's business."""
    for key in ("router_aux_loss_coef", "output_router_logits"):
        config.raw(key)
    activation = read_activation(config, "hidden_act", "silu")
    return MoE(
        experts,
        config.integer("num_experts_per_tok", top_k),
        config.integer("moe_intermediate_size", 512),
        TopK(normalise=normalise),
        activation,
        shared=GatedMLP(config.integer("shared_expert_intermediate_size", 512), activation),
        shared_gate=True,
    )


def read_hybrid(config: Reader, ffns: list[FeedForward], kv_heads: int, axes: Axes | None = None) -> ModelSpec:
    """Attention or gated DeltaNet, as `layer_types` says, each before one of `ffns`. axes: the family's M-RoPE."""
    width, limit = config.integer("hidden_size"), config.integer("max_position_embeddings", 32768)
    eps, activation = config.number("rms_norm_eps", 1e-6), read_activation(config, "hidden_act", "silu")
    norm = Norm("rms", eps, offset=1.0)
    heads, size = config.integer("num_attention_heads", 16), config.integer("head_dim", 256)
    bias = config.flag("attention_bias", False)
    attention = Attention(
        heads,
        config.integer("num_key_value_heads", kv_heads),
        size,
        bias,
        bias,
        position=read_rope(config, size, limit, partial=0.25, axes=axes),
        qk_norm=norm,
        gate="coordinate",
        dropout=config.share("attention_dropout"),
    )
    delta = DeltaNet(
        config.integer("linear_num_key_heads", 16),
        config.integer("linear_num_value_heads", 32),
        config.integer("linear_key_head_dim", 128),
        config.integer("linear_value_head_dim", 128),
        config.integer("linear_conv_kernel_dim", 4),
        activation,
        decay=SoftplusDecay(),
        norm=Norm("rms", eps),
        gate="silu",
    )
    every = config.integer("full_attention_interval", 4)
    usual = [DELTA if (index + 1) % every else ATTENTION for index in range(len(ffns))]
    kinds = read_kinds(config, "layer_types", (ATTENTION, DELTA), usual)
    layers = [
        LayerSpec(attention if kind == ATTENTION else delta, ffn, norm) for kind, ffn in zip(kinds, ffns, strict=True)
    ]
    vocab, head = config.integer("vocab_size"), Head(tied=config.flag("tie_word_embeddings", False))
    config.refuse_rest()
    return ModelSpec(vocab, width, limit, tuple(layers), norm=norm, head=head)


def read_kinds(config: Reader, key: str, known: tuple[str, str], usual: list[str]) -> list[str]:
    """The kind of each layer, or what is usual where the config does not say."""
    kinds = config.raw(key) or usual
    if not isinstance(kinds, list) or len(kinds) != len(usual) or any(kind not in known for kind in kinds):
        raise config.wrong(key, kinds, f"{len(usual)} of {' or '.join(known)}")
    return kinds


def write_hybrid(family: str, spec: ModelSpec) -> dict[str, Any]:
    """The keys that `read_hybrid` and `read_experts` read, from the first layer of each kind."""
    first = first_layer(family, spec)
    mixers, ffns = [layer.mixer for layer in spec.layers], [layer.ffn for layer in spec.layers]
    config = {
        "vocab_size": spec.vocab,
        "hidden_size": spec.width,
        "num_hidden_layers": len(spec.layers),
        "max_position_embeddings": spec.context,
        "rms_norm_eps": first.norm.eps,
        "tie_word_embeddings": spec.head is not None and spec.head.tied,
        "layer_types": [ATTENTION if isinstance(mixer, Attention) else DELTA for mixer in mixers],
    }
    for mixer in mixers:
        if isinstance(mixer, Attention):
            config |= {
                "num_attention_heads": mixer.heads,
                "num_key_value_heads": mixer.kv_heads,
                "head_dim": mixer.head_size,
                "attention_bias": mixer.bias,
                "attention_dropout": mixer.dropout,
                **write_rope(family, mixer.position),
                "partial_rotary_factor": getattr(mixer.position, "size", 0) / mixer.head_size,
            }
        elif isinstance(mixer, DeltaNet):
            config |= {
                "linear_num_key_heads": mixer.key_heads,
                "linear_num_value_heads": mixer.value_heads,
                "linear_key_head_dim": mixer.key_size,
                "linear_value_head_dim": mixer.value_size,
                "linear_conv_kernel_dim": mixer.convolution,
                "hidden_act": write_activation(mixer.activation),
            }
        else:
            raise DougongError(f"{family} cannot express a mixer of {type(mixer).__name__}")
    for ffn in ffns:
        if isinstance(ffn, GatedMLP):
            config |= {"intermediate_size": ffn.hidden, "hidden_act": write_activation(ffn.activation)}
        elif isinstance(ffn, MoE) and isinstance(ffn.router, TopK) and isinstance(ffn.activation, str):
            config |= {
                "num_experts": ffn.experts,
                "num_experts_per_tok": ffn.top_k,
                "moe_intermediate_size": ffn.hidden,
                "shared_expert_intermediate_size": ffn.shared.hidden if ffn.shared else 0,
                "norm_topk_prob": ffn.router.normalise,
                "hidden_act": write_activation(ffn.activation),
            }
        else:
            raise DougongError(f"{family} cannot express a feed-forward of {type(ffn).__name__}")
    return config


def hybrid_keys(spec: ModelSpec, delta: Any) -> KeyMap:
    """Names under model.layers; `delta` gives the rules of a DeltaNet's projections, names within the mixer."""
    rules = [
        Rule("model.embed_tokens.weight", ("embedding.weight",)),
        Rule("model.norm.weight", ("norm.weight",)),
        Rule("lm_head.weight", ("head.weight",)),
        *_anywhere("model.layers.{i}", "layers.{i}"),
    ]
    for index, layer in enumerate(spec.layers):
        foreign, own = f"model.layers.{index}", f"layers.{index}.mixer"
        if isinstance(layer.mixer, Attention):
            rules += _within(f"{foreign}.self_attn", own, _attention(layer.mixer.head_size))
        elif isinstance(layer.mixer, DeltaNet):
            rules += _within(f"{foreign}.linear_attn", own, (*delta(layer.mixer), *_DELTA))
    if spec.mtp is not None and spec.mtp.depth == 1 and isinstance(spec.mtp.layer.mixer, Attention):
        rules += _predicting(spec.mtp.layer.mixer)
    return KeyMap(
        rules=tuple(rules),
        prefix="model.",
        constants=(),
        tied=("lm_head.weight", "model.embed_tokens.weight"),
        predicting=lambda depth: f"mtp.layers.{depth}.input_layernorm.weight",
    )


def _predicting(mixer: Attention) -> Iterator[Rule]:
    """The one layer that predicts a further token."""
    yield from _anywhere("mtp.layers.0", "mtp.layers.0.block")
    yield from _within("mtp.layers.0.self_attn", "mtp.layers.0.block.mixer", _attention(mixer.head_size))
    names = {
        "fc": "join",
        "norm": "norm",
        "pre_fc_norm_embedding": "embedding_norm",
        "pre_fc_norm_hidden": "hidden_norm",
    }
    yield from (Rule(f"mtp.{foreign}.weight", (f"mtp.layers.0.{own}.weight",)) for foreign, own in names.items())


_DELTA = (
    Rule("conv1d.weight", tuple(f"convolutions.{name}.weight" for name in "qkv")),
    Rule("dt_bias", ("decay.bias",)),
    Rule("A_log", ("decay.log_rate",)),
    Rule("norm.weight", ("norm.weight",)),
    Rule("out_proj.weight", ("o.weight",)),
)


def _attention(size: int) -> Iterator[Rule]:
    for kind in ("weight", "bias"):
        yield Rule(f"q_proj.{kind}", (f"q.{kind}", f"gate.{kind}"), layout=Groups((size, size)))
        yield from (Rule(f"{name}_proj.{kind}", (f"{name}.{kind}",)) for name in "kvo")
    yield from (Rule(f"{name}.weight", (f"{name}.weight",)) for name in ("q_norm", "k_norm"))


def _anywhere(foreign: str, own: str) -> Iterator[Rule]:
    """Norms and feed-forward of a layer."""
    yield Rule(f"{foreign}.input_layernorm.weight", (f"{own}.mixer_norm.weight",))
    yield Rule(f"{foreign}.post_attention_layernorm.weight", (f"{own}.ffn_norm.weight",))
    yield Rule(f"{foreign}.mlp.gate.weight", (f"{own}.ffn.router.logits.weight",))
    yield Rule(f"{foreign}.mlp.shared_expert_gate.weight", (f"{own}.ffn.shared_gate.weight",))
    for name in ("gate", "up", "down"):
        for place, part in (("", ""), ("experts.{e}.", "experts."), ("shared_expert.", "shared.")):
            yield Rule(f"{foreign}.mlp.{place}{name}_proj.weight", (f"{own}.ffn.{part}{name}.weight",))


def _within(foreign: str, own: str, rules: Any) -> list[Rule]:
    """Rules whose names stand below two prefixes."""
    return [
        Rule(f"{foreign}.{rule.foreign}", tuple(f"{own}.{name}" for name in rule.own), rule.transpose, rule.layout)
        for rule in rules
    ]
