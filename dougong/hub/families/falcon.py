"""Falcon (Almazrouei et al. 2023): attention and feed-forward side by side, from one norm or from one each.

Semantics: transformers' modeling_falcon. ALiBi (Falcon-RW) is rounded to bfloat16, as in the code published with the
model. transformers' usual attention adds it once, and so does this; its "eager" one adds it twice.
"""

from __future__ import annotations

from dougong.hub.families.fields import activation, flag, integer, share, together
from dougong.hub.families.layers import PLAIN, all_heads, outputs, sizes
from dougong.hub.families.names import LLAMA_NORMS, key_map, megatron
from dougong.hub.families.rope import turns
from dougong.hub.families.table import LAYER_NORM, Table
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec
from dougong.parts.position import Alibi

FAMILY = "falcon"
POSITIONS = {  # alibi. Scores are scaled after it has been added, so it is scaled with them
    (True,): {"mixer.position": lambda given: Alibi(factor=given["mixer"]["head_size"] ** -0.5, rounded=True)},
    (False,): {"mixer.dropout": 0.0},  # weights of attention are dropped with ALiBi alone
}
ONE, ALL = {"mixer.kv_heads": 1}, {"mixer.kv_heads": all_heads("num_kv_heads")}
# new_decoder_architecture, parallel_attn, num_ln_in_parallel_attn, multi_query: where norms stand, how many key heads.
ARCHITECTURES = {
    (False, True, (1, None), True): {"layer.wiring": "parallel", **ONE},
    (False, True, (1, None), False): {"layer.wiring": "parallel", **ALL},
    (False, False, (1, None), True): {"layer.wiring": "pre", **ONE},
    (False, False, (1, None), False): {"layer.wiring": "pre", **ALL},
    (True, True, 1, (True, False)): {"layer.wiring": "parallel"},
    (True, True, (2, None), (True, False)): {"layer.wiring": "parallel_norms"},
}
USUAL = {"new_decoder_architecture": False, "parallel_attn": True, "num_ln_in_parallel_attn": None, "multi_query": True}
TABLE = Table(
    FAMILY,
    "FalconForCausalLM",
    PLAIN,
    (
        *sizes("hidden_size n_embed", "num_hidden_layers n_layer", "num_attention_heads n_head"),
        integer("num_kv_heads", "mixer.kv_heads", lambda given: given["mixer"]["heads"], also="n_head_kv"),
        flag("bias", "mixer.bias mixer.out_bias ffn.bias", False),
        integer("ffn_hidden_size", "ffn.hidden", lambda given: 4 * given["model"]["width"]),
        activation("activation", "ffn.activation", "gelu", tanh="gelu_new"),
        share("attention_dropout", "mixer.dropout"),
        together({"alibi": False}, POSITIONS),
        turns(unless=Alibi),
        together(USUAL, ARCHITECTURES),
        outputs("attention_dropout", "hidden_dropout"),
    ),
    always=LAYER_NORM,
    silent="apply_residual_connection_post_layernorm",  # read by nothing
)
from_config, to_config = TABLE.from_config, TABLE.to_config


def keys(spec: ModelSpec) -> KeyMap:
    apart = spec.layers[0].wiring == "parallel_norms"
    layer = megatron("self_attention", spec, {"ln_attn": "mixer_norm", "ln_mlp": "ffn_norm"} if apart else LLAMA_NORMS)
    outside = {"word_embeddings": "embedding", "ln_f": "norm"}
    return key_map("transformer.", "h.{i}", layer, outside, tables=("self_attention.rotary_emb.inv_freq",))
