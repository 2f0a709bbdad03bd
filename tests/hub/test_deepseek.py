"""DeepSeek from the published config.json alone: the published sizes, the old spelling, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from dougong.base import DougongError
from dougong.hub.families import FAMILIES
from dougong.model import ModelSpec
from dougong.parts.experts import MoE
from dougong.parts.latent import LatentAttention

YARN = {"beta_fast": 32, "beta_slow": 1, "factor": 40, "original_max_position_embeddings": 4096, "type": "yarn"}
SHARED = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "aux_loss_alpha": 0.001,
    "hidden_act": "silu",
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "moe_layer_freq": 1,
    "pretraining_tp": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000,
    "seq_aux": True,
    "tie_word_embeddings": False,
    "v_head_dim": 128,
}
V2 = SHARED | {
    "model_type": "deepseek_v2",
    "first_k_dense_replace": 1,
    "hidden_size": 5120,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "n_group": 8,
    "n_routed_experts": 160,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 128,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 60,
    "num_key_value_heads": 128,
    "rope_scaling": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
    "routed_scaling_factor": 16.0,
    "scoring_func": "softmax",
    "topk_group": 3,
    "topk_method": "group_limited_greedy",
    "vocab_size": 102400,
}
LITE = V2 | {
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_group": 1,
    "n_routed_experts": 64,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "routed_scaling_factor": 1.0,
    "topk_group": 1,
    "topk_method": "greedy",
}
V3 = SHARED | {
    "model_type": "deepseek_v3",
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "vocab_size": 129280,
}
V32 = V3 | {"model_type": "deepseek_v32", "index_head_dim": 128, "index_n_heads": 64, "index_topk": 2048}
CONFIGS = {"V2": V2, "V2-Lite": LITE, "V3": V3, "V3.2": V32}
names = pytest.mark.parametrize("name", CONFIGS)


def read(config: dict) -> ModelSpec:
    return FAMILIES[config["model_type"]].from_config(config)


@pytest.mark.parametrize(
    ("name", "whole", "active"), [("V2", 236, 21), ("V2-Lite", 15.7, 2.4), ("V3", 671, 37), ("V3.2", 671, 37)]
)
def test_published_parameters_in_billions(name, whole, active):
    """As the reports of V2 and V3 tell them (V3.2 adds 0.9 of indexers); active ones without the embedding."""
    spec = read(CONFIGS[name])
    assert spec.parameters() / 1e9 == pytest.approx(whole, rel=0.005)
    assert (spec.active_parameters() - spec.vocab * spec.width) / 1e9 == pytest.approx(active, rel=0.025)


@names
def test_what_was_read_is_written_and_read_again(name):
    spec = read(CONFIGS[name])
    family = FAMILIES[CONFIGS[name]["model_type"]]
    assert family.from_config(family.to_config(spec)) == spec
    assert ModelSpec.from_json(spec.to_json()) == spec


def test_the_state_is_small():
    """576 numbers a token and layer (DeepSeek-V2, section 2.1), where V2's 128 heads would keep 32768."""
    spec = read(V2)
    assert spec.state_bytes(1000) == 4 * 576 * 60 * 1000
    assert read(V32).state_bytes(1000) == 4 * (576 + 128) * 61 * 1000


def test_mscale_all_dim_sharpens_the_scores():
    mixer = read(V3).layers[0].mixer
    assert isinstance(mixer, LatentAttention) and mixer.scale is not None
    assert mixer.scale == pytest.approx((0.1 * math.log(40) + 1) ** 2 / math.sqrt(192))
    assert read({**V3, "rope_scaling": None}).layers[0].mixer.scale is None


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("V2", {"topk_method": "noaux_tc"}, "topk_method is 'noaux_tc'"),
        ("V2", {"scoring_func": "sigmoid"}, "scoring_func"),
        ("V2", {"moe_layer_freq": 2}, "moe_layer_freq is 2"),
        ("V2", {"num_key_value_heads": 8}, "num_key_value_heads is 8"),
        ("V3", {"scoring_func": "softmax"}, "scoring_func"),
        ("V3", {"index_topk": 2048}, "index_topk"),
        ("V3", {"head_dim": 128}, "head_dim is 128; expected 64"),
        ("V3", {"qk_head_dim": 128}, "qk_head_dim is 128; expected 192"),
        ("V3", {"hidden_act": "swoosh"}, "swoosh"),
        ("V3.2", {"q_lora_rank": None}, "q_lora_rank"),
        ("V3.2", {"mlp_layer_types": ["dense"]}, "mlp_layer_types"),
        ("V3.2", {"layer_types": ["full_attention"] * 61}, "layer_types"),
    ],
)
def test_what_would_compute_something_else_is_refused(name, change, message):
    with pytest.raises(DougongError, match=message):
        read(CONFIGS[name] | change)


def test_what_a_family_cannot_express_is_refused():
    spec = read(V3)
    for family in ("llama", "deepseek_v2", "deepseek_v32"):
        with pytest.raises(DougongError, match=family):
            FAMILIES[family].to_config(spec)
    first = spec.layers[-1]
    assert isinstance(first.ffn, MoE)
    lonely = replace(spec, layers=(replace(first, ffn=replace(first.ffn, shared=None)),))
    with pytest.raises(DougongError, match="shared"):
        FAMILIES["deepseek_v3"].to_config(lonely)
