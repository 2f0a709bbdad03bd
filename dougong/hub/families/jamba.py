"""Jamba (Lieber et al. 2024): Mamba with attention in one of so many layers and experts in others; no positions.

Semantics: transformers' modeling_jamba.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dougong.hub.families.common import exact, expect, first_layer, read_activation, write_activation
from dougong.hub.families.mamba import mixer_rules, read_rank
from dougong.hub.families.reader import Reader
from dougong.hub.keymap import KeyMap, Rule
from dougong.model.spec import LayerSpec, ModelSpec
from dougong.parts.attention import Attention
from dougong.parts.embedding import Head
from dougong.parts.experts import ClampedSwiGLU, MoE
from dougong.parts.feedforward import GatedMLP
from dougong.parts.norm import Norm
from dougong.parts.router import TopK
from dougong.parts.ssm import Mamba

FAMILY = "jamba"
ARCHITECTURE = "JambaForCausalLM"


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = Reader(FAMILY, config)
    width, heads = reader.integer("hidden_size", 4096), reader.integer("num_attention_heads", 32)
    if heads > width:
        raise reader.wrong("num_attention_heads", heads, f"at most hidden_size, {width}")
    norm = Norm("rms", reader.number("rms_norm_eps", 1e-6))
    activation = read_activation(reader, "hidden_act", "silu")
    # transformers: a missing key takes the default, null means one for each head.
    kv_heads = 8 if reader.raw("num_key_value_heads", 0) == 0 else reader.integer("num_key_value_heads", heads)
    size, dropout = reader.integer("head_dim", width // heads), reader.share("attention_dropout")
    attention = Attention(heads, kv_heads, size, dropout=dropout)
    mamba = Mamba(
        reader.integer("mamba_expand", 2) * width,
        reader.integer("mamba_d_state", 16),
        read_rank(reader, "mamba_dt_rank", width),
        reader.integer("mamba_d_conv", 4),
        reader.flag("mamba_proj_bias", False),
        reader.flag("mamba_conv_bias", True),
        activation,
        norm,
    )
    dense = GatedMLP(reader.integer("intermediate_size", 14336), activation)
    top_k, experts = reader.integer("num_experts_per_tok", 2), reader.integer("num_experts", 16)
    sparse = MoE(experts, top_k, dense.hidden, TopK(normalise=False), activation) if experts > 1 else dense
    attends, chooses = _read_turn(reader, "attn_layer", 8, 4), _read_turn(reader, "expert_layer", 2, 1)
    layers = tuple(
        LayerSpec(
            attention if i % attends[0] == attends[1] else mamba,
            sparse if i % chooses[0] == chooses[1] else dense,
            norm,
        )
        for i in range(reader.integer("num_hidden_layers", 32))
    )
    for key in (
        "use_mamba_kernels",
        "use_mambapy",
        "use_associative_scan",
        "output_router_logits",
        "num_logits_to_keep",
    ):
        reader.raw(key)
    reader.raw("router_aux_loss_coef")  # a weight in training
    head = Head(tied=reader.flag("tie_word_embeddings", False))
    vocab, context = reader.integer("vocab_size", 65536), reader.integer("max_position_embeddings", 262144)
    reader.refuse_rest()
    return ModelSpec(vocab, width, context, layers, norm=norm, head=head)


def _read_turn(reader: Reader, key: str, period: int, offset: int) -> tuple[int, int]:
    """Layer i is of the kind when i % period == offset."""
    period, offset = reader.integer(f"{key}_period", period), reader.integer(f"{key}_offset", offset, least=0)
    if offset >= period:
        raise reader.wrong(f"{key}_offset", offset, f"less than {key}_period, {period}")
    return period, offset


def _write_turn(key: str, marked: list[bool]) -> dict[str, int]:
    """The keys that `_read_turn` reads, where some do."""
    places = [i for i, each in enumerate(marked) if each]
    first = places[0] if places else len(marked)
    period = places[1] - first if len(places) > 1 else len(marked) + 1
    return {f"{key}_period": period, f"{key}_offset": min(first, period - 1)}


def to_config(spec: ModelSpec) -> dict[str, Any]:
    first = first_layer(FAMILY, spec)
    attends = [isinstance(layer.mixer, Attention) for layer in spec.layers]
    chooses = [isinstance(layer.ffn, MoE) for layer in spec.layers]
    # What no layer has may be written as anything.
    heads = (layer.mixer for layer in spec.layers if isinstance(layer.mixer, Attention))
    attention = next(heads, Attention(1, 1, spec.width))
    mamba = next((layer.mixer for layer in spec.layers if isinstance(layer.mixer, Mamba)), Mamba(spec.width, 1, 1))
    sparse = next((layer.ffn for layer in spec.layers if isinstance(layer.ffn, MoE)), None)
    dense = next((layer.ffn for layer in spec.layers if not isinstance(layer.ffn, MoE)), None)
    ffn = sparse if sparse is not None else expect(FAMILY, "ffn", dense, GatedMLP)
    head = expect(FAMILY, "head", spec.head, Head)
    config = {
        "vocab_size": spec.vocab,
        "hidden_size": spec.width,
        "intermediate_size": ffn.hidden,
        "num_hidden_layers": len(spec.layers),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "attention_dropout": attention.dropout,
        **({} if attention.head_size == spec.width // attention.heads else {"head_dim": attention.head_size}),
        **_write_turn("attn_layer", attends),
        **_write_turn("expert_layer", chooses),
        "num_experts": sparse.experts if sparse else 1,
        "num_experts_per_tok": sparse.top_k if sparse else 1,
        "hidden_act": write_activation("silu" if isinstance(ffn.activation, ClampedSwiGLU) else ffn.activation),
        "mamba_expand": max(1, mamba.inner // spec.width),
        "mamba_d_state": mamba.state,
        "mamba_dt_rank": mamba.rank,
        "mamba_d_conv": mamba.kernel,
        "mamba_proj_bias": mamba.bias,
        "mamba_conv_bias": mamba.conv_bias,
        "rms_norm_eps": first.norm.eps,
        "max_position_embeddings": spec.context,
        "tie_word_embeddings": head.tied,
    }
    return exact(FAMILY, ARCHITECTURE, spec, config, from_config)


def keys(spec: ModelSpec) -> KeyMap:
    place, ffn = "model.layers.{i}", "model.layers.{i}.feed_forward"
    names = ("gate", "up", "down")

    def mixer(i: int, kind: object) -> list[Rule]:
        """Both kinds of mixer have an o, under different names."""
        if isinstance(kind, Mamba):
            return mixer_rules(f"model.layers.{i}.mamba", str(i))
        return [
            Rule(f"model.layers.{i}.self_attn.{name}_proj.weight", (f"layers.{i}.mixer.{name}.weight",))
            for name in "qkvo"
        ]

    return KeyMap(
        rules=(
            Rule("model.embed_tokens.weight", ("embedding.weight",)),
            Rule(f"{place}.input_layernorm.weight", ("layers.{i}.mixer_norm.weight",)),
            Rule(f"{place}.pre_ff_layernorm.weight", ("layers.{i}.ffn_norm.weight",)),
            *(rule for i, layer in enumerate(spec.layers) for rule in mixer(i, layer.mixer)),
            *(Rule(f"{ffn}.{name}_proj.weight", (f"layers.{{i}}.ffn.{name}.weight",)) for name in names),
            Rule(f"{ffn}.router.weight", ("layers.{i}.ffn.router.logits.weight",)),
            *(
                Rule(f"{ffn}.experts.{{e}}.{name}_proj.weight", (f"layers.{{i}}.ffn.experts.{name}.weight",))
                for name in names
            ),
            Rule("model.final_layernorm.weight", ("norm.weight",)),
            Rule("lm_head.weight", ("head.weight",)),
        ),
        prefix="model.",
        constants=(),
        tied=("lm_head.weight", "model.embed_tokens.weight"),
    )
