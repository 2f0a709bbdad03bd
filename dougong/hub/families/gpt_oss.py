"""gpt-oss (2025): attention with sinks, every second layer in a window, experts with biases and a clamped SwiGLU.

Semantics: transformers' modeling_gpt_oss. A file keeps all experts of a layer in one tensor, transposed, gate and up in
turn. The released files hold the experts in mxfp4, which is refused by name; their bfloat16 form loads.
"""

from __future__ import annotations

from dougong.hub.families.fields import activation, number
from dougong.hub.families.layers import bias, decoder, local_layers
from dougong.hub.families.names import both, llama_keys
from dougong.hub.families.rope import turns
from dougong.hub.families.sparse import ALL_SPARSE, experts
from dougong.hub.families.table import Table
from dougong.hub.keymap import KeyMap, Rule
from dougong.hub.layouts import Groups
from dougong.model.spec import ModelSpec
from dougong.parts.experts import ClampedSwiGLU

FAMILY = "gpt_oss"
YARN = {"rope_type": "yarn", "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096}
ACTIVATION = activation("hidden_act", "", "silu")  # of no part: all have the clamped SwiGLU
EXPERTS = experts(
    128,
    4,
    number("swiglu_alpha", "experts.activation.alpha", 1.702),
    number("swiglu_limit", "experts.activation.limit", 7.0),
)
TABLE = Table(
    FAMILY,
    "GptOssForCausalLM",
    {**ALL_SPARSE, "experts.activation": ClampedSwiGLU},
    (
        *decoder(131072, kv_heads=8, head_size=64, eps=1e-5, ffn="experts.hidden", act=ACTIVATION),
        *EXPERTS,
        bias(usual=True),
        local_layers(128, full=lambda config, index: index % 2 == 1),
        turns(theta=150000.0, scaling=YARN),
    ),
    always={"mixer.sinks": True, "experts.bias": True, "experts.router.bias": True},
    silent="initial_context_length",  # again the original length of the scaling
)
from_config, to_config = TABLE.from_config, TABLE.to_config


def keys(spec: ModelSpec) -> KeyMap:
    in_turn = Groups((1, 1), dim=1)
    experts = (
        Rule("mlp.experts.gate_up_proj", ("ffn.experts.gate.weight", "ffn.experts.up.weight"), True, in_turn),
        Rule("mlp.experts.gate_up_proj_bias", ("ffn.experts.gate.bias", "ffn.experts.up.bias"), layout=in_turn),
        Rule("mlp.experts.down_proj", ("ffn.experts.down.weight",), transpose=True),
        Rule("mlp.experts.down_proj_bias", ("ffn.experts.down.bias",)),
    )
    sinks = Rule("self_attn.sinks", ("mixer.sinks",))
    return llama_keys(more=(sinks, *both("mlp.router", "ffn.router.logits"), *experts))
