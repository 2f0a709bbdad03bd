"""Hybrids of attention and recurrent layers, from the config.json that their publishers wrote."""

from __future__ import annotations

import pytest

from dougong.base import DougongError
from dougong.hub.families import FAMILIES
from dougong.parts.delta import DeltaNet

KIMI = {
    "model_type": "kimi_linear",
    "first_k_dense_replace": 1,
    "head_dim": 72,
    "hidden_act": "silu",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "kv_lora_rank": 512,
    "linear_attn_config": {
        "full_attn_layers": [4, 8, 12, 16, 20, 24, 27],
        "head_dim": 128,
        "kda_layers": [1, 2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15, 17, 18, 19, 21, 22, 23, 25, 26],
        "num_heads": 32,
        "short_conv_kernel_size": 4,
    },
    "mla_use_nope": True,
    "model_max_length": 1048576,
    "moe_intermediate_size": 1024,
    "moe_layer_freq": 1,
    "moe_renormalize": True,
    "moe_router_activation_func": "sigmoid",
    "num_attention_heads": 32,
    "num_expert_group": 1,
    "num_experts": 256,
    "num_experts_per_token": 8,
    "num_hidden_layers": 27,
    "num_key_value_heads": 32,
    "num_nextn_predict_layers": 0,
    "num_shared_experts": 1,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "routed_scaling_factor": 2.446,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "use_grouped_topk": True,
    "v_head_dim": 128,
    "vocab_size": 163840,
}
NEXT = {
    "model_type": "qwen3_next",
    "decoder_sparse_step": 1,
    "full_attention_interval": 4,
    "head_dim": 256,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_value_head_dim": 128,
    "max_position_embeddings": 262144,
    "mlp_only_layers": [],
    "moe_intermediate_size": 512,
    "norm_topk_prob": True,
    "num_attention_heads": 16,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "num_hidden_layers": 48,
    "num_key_value_heads": 2,
    "partial_rotary_factor": 0.25,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000000,
    "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 512,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
MINIMAX = {
    "model_type": "minimax",
    "hidden_size": 6144,
    "intermediate_size": 9216,
    "head_dim": 128,
    "layer_types": (["linear_attention"] * 7 + ["full_attention"]) * 10,
    "max_position_embeddings": 10240000,
    "num_attention_heads": 64,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "rope_theta": 10000000,
    "full_attn_alpha_factor": 3.5565588200778455,
    "linear_attn_alpha_factor": 3.5565588200778455,
    "mlp_alpha_factor": 3.5565588200778455,
    "vocab_size": 200064,
}


@pytest.mark.parametrize(
    ("config", "billions", "active"),
    [(KIMI, 48, 3), (NEXT, 80, 3), (MINIMAX, 456, 45.9)],
    ids=["Kimi-Linear-48B-A3B", "Qwen3-Next-80B-A3B", "MiniMax-Text-01"],
)
def test_published_sizes(config, billions, active):
    """Active parameters are published without the tables of tokens: MiniMax's 45.9 billion to the last digit."""
    spec = FAMILIES[config["model_type"]].from_config(config)
    assert abs(spec.parameters() / 1e9 - billions) < 1.2
    tables = 2 * spec.vocab * spec.width
    assert abs((spec.active_parameters() - tables) / 1e9 - active) < 0.3


def test_kimi_counts_layers_from_one():
    spec = FAMILIES["kimi_linear"].from_config(KIMI)
    assert [index for index, layer in enumerate(spec.layers) if not isinstance(layer.mixer, DeltaNet)] == [
        3, 7, 11, 15, 19, 23, 26,
    ]  # fmt: skip
    wrong = {**KIMI, "linear_attn_config": {**KIMI["linear_attn_config"], "kda_layers": [1, 2, 3, 4]}}
    with pytest.raises(DougongError, match="every number from 1 to 27 once"):
        FAMILIES["kimi_linear"].from_config(wrong)


def test_what_would_change_the_computation_is_refused():
    for key, value in (("mla_use_nope", False), ("moe_router_activation_func", "softmax"), ("num_key_value_heads", 8)):
        with pytest.raises(DougongError, match=key):
            FAMILIES["kimi_linear"].from_config({**KIMI, key: value})
    with pytest.raises(DougongError, match="layer_types"):
        FAMILIES["qwen3_next"].from_config({**NEXT, "layer_types": ["full_attention"] * 3})


def test_axes_of_text_positions_are_one():
    config = {
        "model_type": "qwen3_5_text", "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25},
    }  # fmt: skip
    spec = FAMILIES["qwen3_5_text"].from_config(config)
    axes = {"mrope_interleaved": True, "mrope_section": [11, 11, 10]}
    again = {**config, "rope_parameters": {**config["rope_parameters"], **axes}}
    assert FAMILIES["qwen3_5_text"].from_config(again) == spec
