"""Families with experts: what the released configs say, by the published numbers, and what is refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import dougong
from dougong.base import DougongError
from dougong.hub.families import FAMILIES

# Keys of the released config.json files that the computation reads, and the published billions: all, active.
RELEASED = {
    "mixtral 8x7b": (
        {"model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
        | {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "num_local_experts": 8}
        | {"num_experts_per_tok": 2, "rope_theta": 1e6, "router_aux_loss_coef": 0.02, "sliding_window": None},
        (46.7, 12.9),
    ),
    "mixtral 8x22b": (
        {"model_type": "mixtral", "hidden_size": 6144, "intermediate_size": 16384, "num_hidden_layers": 56}
        | {"num_attention_heads": 48, "num_key_value_heads": 8, "vocab_size": 32768, "num_local_experts": 8}
        | {"num_experts_per_tok": 2, "rope_theta": 1e6, "max_position_embeddings": 65536},
        (140.6, 39.2),
    ),
    "qwen1.5-moe-a2.7b": (
        {"model_type": "qwen2_moe", "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24}
        | {"num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 151936, "num_experts": 60}
        | {"num_experts_per_tok": 4, "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632}
        | {"norm_topk_prob": False, "rope_theta": 1e6, "max_window_layers": 21, "sliding_window": 32768},
        (14.3, 2.7),
    ),
    "qwen3-30b-a3b": (
        {"model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48}
        | {"num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936}
        | {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": True}
        | {"max_window_layers": 48, "use_sliding_window": False, "mlp_only_layers": [], "rope_theta": 1e6},
        (30.5, 3.3),
    ),
    "qwen3-235b-a22b": (
        {"model_type": "qwen3_moe", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 94}
        | {"num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936}
        | {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 1536, "norm_topk_prob": True},
        (235, 22),
    ),
    "glm-4.5-air": (
        {"model_type": "glm4_moe", "hidden_size": 4096, "intermediate_size": 10944, "num_hidden_layers": 46}
        | {"num_attention_heads": 96, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151552}
        | {"n_routed_experts": 128, "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 1408}
        | {"attention_bias": True, "partial_rotary_factor": 0.5, "num_nextn_predict_layers": 1, "rope_theta": 1e6},
        (106, 12),
    ),
    "gpt-oss-20b": (
        {"model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 24}
        | {"num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 201088}
        | {"num_local_experts": 32, "num_experts_per_tok": 4, "experts_per_token": 4, "sliding_window": 128}
        | {"initial_context_length": 4096, "swiglu_limit": 7.0, "attention_bias": True, "rope_theta": 150000},
        (20.9, 3.6),
    ),
    "gpt-oss-120b": (
        {"model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 36}
        | {"num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 201088}
        | {"num_local_experts": 128, "num_experts_per_tok": 4},
        (116.8, 5.1),
    ),
    "minimax-m2": (
        {"model_type": "minimax_m2", "hidden_size": 3072, "intermediate_size": 1536, "num_hidden_layers": 62}
        | {"num_attention_heads": 48, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 200064}
        | {"num_local_experts": 256, "num_experts_per_tok": 8, "rotary_dim": 64, "scoring_func": "sigmoid"}
        | {"use_routing_bias": True, "use_qk_norm": True, "qk_norm_type": "per_layer", "attn_type_list": [1] * 62},
        (229, 10),
    ),
}
"""Some count the embedding and the head among the active parameters, some one of them, some neither."""


@pytest.mark.parametrize("name", RELEASED)
def test_parameters_are_the_published_ones(name):
    config, (whole, active) = RELEASED[name]
    spec = FAMILIES[config["model_type"]].from_config(config)
    found = spec.active_parameters() / 1e9
    table = spec.vocab * spec.width / 1e9
    assert spec.parameters() / 1e9 == pytest.approx(whole, rel=0.01)
    assert any(each == pytest.approx(active, rel=0.05) for each in (found, found - table, found - 2 * table))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scoring_func", "softmax"),
        ("use_qk_norm", False),
        ("attn_type_list", [1] * 61 + [0]),
        ("shared_intermediate_size", 8),
    ],
)
def test_settings_that_the_released_configs_spell_out_cannot_be_others(key, value):
    config = {**RELEASED["minimax-m2"][0], "shared_intermediate_size": 0}
    FAMILIES["minimax_m2"].from_config(config)
    with pytest.raises(DougongError, match=f"{key} (is|=) {re.escape(repr(value))}"):
        FAMILIES["minimax_m2"].from_config({**config, key: value})


def test_experts_in_mxfp4_are_refused_by_name(tmp_path: Path):
    config = {**RELEASED["gpt-oss-20b"][0], "quantization_config": {"quant_method": "mxfp4"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DougongError, match="mxfp4"):
        dougong.load(tmp_path)


def test_gpt_oss_without_a_scaling_means_its_own():
    spec = FAMILIES["gpt_oss"].from_config(RELEASED["gpt-oss-120b"][0])
    rope = spec.layers[0].mixer.position
    assert (rope.theta, rope.scaling.factor, rope.scaling.original, rope.scaling.truncate) == (150000, 32, 4096, False)
    assert [layer.mixer.window for layer in spec.layers[:3]] == [128, None, 128]


@pytest.mark.parametrize("name", RELEASED)
def test_a_config_of_our_own_reads_back(name):
    family = FAMILIES[RELEASED[name][0]["model_type"]]
    spec = family.from_config(RELEASED[name][0])
    assert family.from_config(family.to_config(spec)) == spec
