"""What DeepSeek V2, V3 and V3.2 share: latent attention, and experts in all layers but the first."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dougong.hub.families.common import expect, first_layer, read_activation, write_activation
from dougong.hub.families.names import both
from dougong.hub.families.reader import Reader
from dougong.hub.families.rope import read_rope, write_rope
from dougong.hub.keymap import KeyMap, Rule
from dougong.model.spec import LayerSpec, ModelSpec
from dougong.parts.embedding import Head
from dougong.parts.experts import MoE
from dougong.parts.feedforward import GatedMLP
from dougong.parts.indexer import Indexer
from dougong.parts.latent import LatentAttention
from dougong.parts.norm import Norm
from dougong.parts.rope import Rope, Yarn
from dougong.parts.router import TopK

UNUSED = ("head_dim", "qk_head_dim", "aux_loss_alpha", "seq_aux", "ep_size", "output_router_logits")
"""Keys that follow from others, or that only training reads."""


def read_deepseek(
    config: Reader,
    usual: Mapping[str, int],
    router: TopK,
    *,
    dense: Callable[[int], Sequence[bool]] | None = None,
    interleaved: bool = True,
    ffn_bias: bool = False,
    indexer: Callable[[Rope], Indexer] | None = None,
) -> ModelSpec:
    """`usual` has the family's defaults; `dense` says, for a number of layers, which have no experts."""
    for key in UNUSED:
        config.raw(key)
    width, depth = config.integer("hidden_size"), config.integer("num_hidden_layers")
    heads, limit = config.integer("num_attention_heads"), config.integer("max_position_embeddings", usual["context"])
    if (shared := config.integer("num_key_value_heads", heads)) != heads:
        raise config.wrong("num_key_value_heads", shared, f"num_attention_heads, {heads}")
    if (every := config.integer("moe_layer_freq", 1)) != 1:
        raise config.wrong("moe_layer_freq", every, "1")
    size, turned = config.integer("qk_nope_head_dim", 128), config.integer("qk_rope_head_dim", 64)
    # A missing rank takes the default; null means that queries come straight from the hidden state.
    q_rank = config.integer("q_lora_rank", 1536) if config.raw("q_lora_rank", 0) is not None else None
    rope = read_rope(config, turned, limit, interleaved=interleaved)
    bias = config.flag("attention_bias", False)
    mixer = LatentAttention(
        heads,
        config.integer("kv_lora_rank", 512),
        size,
        turned,
        config.integer("v_head_dim", 128),
        q_rank,
        rope,
        Norm("rms", 1e-6),  # whatever rms_norm_eps says
        bias,
        bias,
        _read_scale(config, size + turned, rope),
        indexer(rope) if indexer else None,
        config.share("attention_dropout"),
    )
    activation = read_activation(config, "hidden_act", "silu")
    mlp = GatedMLP(config.integer("intermediate_size", usual["intermediate"]), activation, ffn_bias)
    hidden = config.integer("moe_intermediate_size", usual["expert"])
    moe = MoE(
        config.integer("n_routed_experts", usual["experts"]),
        config.integer("num_experts_per_tok", usual["top_k"]),
        hidden,
        router,
        activation,
        shared=GatedMLP(hidden * config.integer("n_shared_experts", usual["shared"]), activation, ffn_bias),
    )
    first = config.integer("first_k_dense_replace", usual["dense"], least=0)
    kinds = dense(depth) if dense else [index < first for index in range(depth)]
    norm = Norm("rms", config.number("rms_norm_eps", 1e-6))
    head, vocab = Head(tied=config.flag("tie_word_embeddings", False)), config.integer("vocab_size")
    config.refuse_rest()
    layers = tuple(LayerSpec(mixer, mlp if plain else moe, norm) for plain in kinds)
    return ModelSpec(vocab, width, limit, layers, norm=norm, head=head)


def write_deepseek(family: str, spec: ModelSpec) -> tuple[dict[str, Any], LatentAttention, TopK]:
    """The keys that all three have, and the parts that the others are read from."""
    first = first_layer(family, spec)
    mixer = expect(family, "mixer", first.mixer, LatentAttention)
    plain = [layer.ffn for layer in spec.layers if isinstance(layer.ffn, GatedMLP)]
    moes = [layer.ffn for layer in spec.layers if isinstance(layer.ffn, MoE)]
    # A model of dense layers alone keeps the keys of experts that no layer has.
    moe = moes[0] if moes else MoE(2, 1, 1, TopK(groups=1), shared=GatedMLP(1))
    router = expect(family, "router", moe.router, TopK)
    shared = expect(family, "shared expert", moe.shared, GatedMLP)
    mlp = plain[0] if plain else GatedMLP(moe.hidden, shared.activation, shared.bias)
    rope = write_rope(family, mixer.position)
    config = {
        "vocab_size": spec.vocab,
        "hidden_size": spec.width,
        "intermediate_size": mlp.hidden,
        "moe_intermediate_size": moe.hidden,
        "num_hidden_layers": len(spec.layers),
        "first_k_dense_replace": next(
            (index for index, layer in enumerate(spec.layers) if isinstance(layer.ffn, MoE)), len(spec.layers)
        ),
        "num_attention_heads": mixer.heads,
        "num_key_value_heads": mixer.heads,
        "q_lora_rank": mixer.q_rank,
        "kv_lora_rank": mixer.kv_rank,
        "qk_nope_head_dim": mixer.nope_size,
        "qk_rope_head_dim": mixer.rope_size,
        "v_head_dim": mixer.value_size,
        "n_routed_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        "n_shared_experts": max(1, shared.hidden // moe.hidden),
        "n_group": router.groups,
        "topk_group": router.top_groups,
        "routed_scaling_factor": router.scale,
        "attention_bias": mixer.bias,
        "attention_dropout": mixer.dropout,
        "hidden_act": write_activation(mlp.activation),
        "max_position_embeddings": spec.context,
        "rms_norm_eps": first.norm.eps,
        "tie_word_embeddings": spec.head is not None and spec.head.tied,
        **rope,
    }
    if mixer.scale is not None and isinstance(mixer.position, Rope) and isinstance(mixer.position.scaling, Yarn):
        config["rope_scaling"] = {**rope["rope_scaling"], "mscale_all_dim": _all_dim(mixer, mixer.position.scaling)}
    return config, mixer, router


def _scaled(size: int, scaling: Yarn, all_dim: float) -> float:
    """The factor on scores: m^2 / sqrt(size) with m = 0.1 all_dim ln(factor) + 1 (yarn_get_mscale)."""
    m = 1.0 if scaling.factor <= 1 else 0.1 * all_dim * math.log(scaling.factor) + 1.0
    return size**-0.5 * m * m


def _read_scale(config: Reader, size: int, rope: Rope) -> float | None:
    given = config.raw("rope_scaling") or config.raw("rope_parameters") or {}
    all_dim = given.get("mscale_all_dim")
    return _scaled(size, rope.scaling, all_dim) if all_dim and isinstance(rope.scaling, Yarn) else None


def _all_dim(mixer: LatentAttention, scaling: Yarn) -> float:
    """The mscale_all_dim behind the mixer's scale: the shortest number that gives it exactly, where there is one."""
    assert mixer.scale is not None
    size, spread = mixer.query_size, 0.1 * math.log(scaling.factor)
    exact = (math.sqrt(mixer.scale * math.sqrt(size)) - 1) / spread if spread else 1.0
    short = (round(exact, digits) for digits in range(1, 17))
    return next((number for number in short if _scaled(size, scaling, number) == mixer.scale), exact)


def deepseek_keys(spec: ModelSpec) -> KeyMap:
    mixer = spec.layers[0].mixer
    straight = isinstance(mixer, LatentAttention) and mixer.q_rank is None
    pairs = {
        "input_layernorm": "mixer_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj" if straight else "self_attn.q_b_proj": "mixer.q",
        "self_attn.q_a_proj": "mixer.q_down",
        "self_attn.q_a_layernorm": "mixer.q_norm",
        "self_attn.kv_a_proj_with_mqa": "mixer.kv_down",
        "self_attn.kv_a_layernorm": "mixer.kv_norm",
        "self_attn.kv_b_proj": "mixer.kv_up",
        "self_attn.o_proj": "mixer.o",
        "self_attn.indexer.wq_b": "mixer.indexer.q",
        "self_attn.indexer.wk": "mixer.indexer.k",
        "self_attn.indexer.k_norm": "mixer.indexer.k_norm",
        "self_attn.indexer.weights_proj": "mixer.indexer.weights",
        "mlp.gate": "ffn.router.logits",
        **{f"mlp.{name}_proj": f"ffn.{name}" for name in ("gate", "up", "down")},
        **{f"mlp.shared_experts.{name}_proj": f"ffn.shared.{name}" for name in ("gate", "up", "down")},
        **{f"mlp.experts.{{e}}.{name}_proj": f"ffn.experts.{name}" for name in ("gate", "up", "down")},
    }
    return KeyMap(
        rules=(
            Rule("model.embed_tokens.weight", ("embedding.weight",)),
            *(
                rule
                for foreign, own in pairs.items()
                for rule in both(f"model.layers.{{i}}.{foreign}", f"layers.{{i}}.{own}")
            ),
            Rule("model.layers.{i}.mlp.gate.e_score_correction_bias", ("layers.{i}.ffn.router.correction",)),
            Rule("model.norm.weight", ("norm.weight",)),
            Rule("lm_head.weight", ("head.weight",)),
        ),
        prefix="model.",
        constants=("model.layers.{i}.self_attn.rotary_emb.inv_freq",),
        tied=("lm_head.weight", "model.embed_tokens.weight"),
    )
