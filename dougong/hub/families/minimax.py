"""MiniMax-01: lightning attention with a softmax attention layer after every few, experts, and a residual path that
goes through the norms, each side with a factor of its own.

Semantics: transformers' modeling_minimax. Its files hold tables of decays, made anew from the config.
"""

from __future__ import annotations

from dougong.hub.families.fields import activation, integer, likewise, pair, window
from dougong.hub.families.layers import attention, by_depth, in_turn, linear_layers, outer
from dougong.hub.families.names import LLAMA_NORMS, both, mixed_keys, named, spelled
from dougong.hub.families.rope import turns
from dougong.hub.families.sparse import ALL_SPARSE, NUMBERED, expert_names, experts
from dougong.hub.families.table import Table
from dougong.hub.keymap import KeyMap, Rule
from dougong.hub.layouts import Groups
from dougong.model.spec import ModelSpec
from dougong.parts.attention import Attention
from dougong.parts.decay import FixedDecay
from dougong.parts.linear_attention import LinearAttention
from dougong.parts.norm import Norm

FAMILY = "minimax"
LIGHTNING = {"lightning.norm": Norm(), "lightning.norm_over": "all", "lightning.gate": "sigmoid"}
BOTH = {"mixer.heads": "lightning.heads", "mixer.head_size": "lightning.key_size lightning.value_size"}
TABLE = Table(
    FAMILY,
    "MiniMaxForCausalLM",
    {**ALL_SPARSE, "lightning": LinearAttention},
    (
        *outer(depth=32, context=131072, eps=1e-5),
        *likewise(attention(32, 8), BOTH),
        window("sliding_window", "mixer.window"),
        turns(theta=1000000.0),
        activation("hidden_act", "experts.activation lightning.feature lightning.value_feature", "silu"),
        integer("block_size", "lightning.chunk", 256),
        *experts(8, 2),
        integer("intermediate_size", "experts.hidden", 14336),
        linear_layers("lightning", lambda config, given: in_turn(given["layers"]["depth"], 2, 0, "mixer", "lightning")),
        pair("full_attn_alpha_factor", "full_attn_beta_factor", "layer:mixer.mixer_scale", (1.0, 1.0)),
        pair("linear_attn_alpha_factor", "linear_attn_beta_factor", "layer:lightning.mixer_scale", (1.0, 1.0)),
        pair("mlp_alpha_factor", "mlp_beta_factor", "layer.ffn_scale", (1.0, 1.0)),
    ),
    always={**LIGHTNING, "layer.wiring": "through"},
    each={"lightning.decay": by_depth("lightning", FixedDecay.lightning)},
)
from_config, to_config = TABLE.from_config, TABLE.to_config


def _lightning(mixer: LinearAttention) -> tuple[Rule, ...]:
    sizes = Groups((mixer.key_size, mixer.key_size, mixer.value_size))
    alone = spelled({"output_gate": "gate", "norm": "norm", "out_proj": "o"})
    return (*both("qkv_proj", "q", "k", "v", layout=sizes), *alone)


def keys(spec: ModelSpec) -> KeyMap:
    layer = spelled({**LLAMA_NORMS, **expert_names("block_sparse_moe", NUMBERED)})
    kinds = {Attention: ("self_attn", spelled(named("q", "k", "v", "o"))), LinearAttention: ("self_attn", _lightning)}
    tables = {LinearAttention: lambda mixer, *place: FixedDecay.tables(mixer.heads, mixer.chunk, *place)}
    return mixed_keys(spec, layer, kinds, derived=tables)
