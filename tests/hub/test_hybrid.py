"""Hybrids of attention and recurrent layers, from the config.json that their publishers wrote."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

import dougong
from dougong.base import DougongError
from dougong.hub.families import FAMILIES
from dougong.parts.attention import Attention
from dougong.parts.decay import FixedDecay
from dougong.parts.delta import DeltaNet
from dougong.parts.rope import Axes

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


def test_minimax_files_hold_tables_of_each_lightning_layer():
    family = FAMILIES["minimax"]
    kinds = ["linear_attention", "full_attention", "linear_attention"]
    small = {"num_attention_heads": 4, "head_dim": 6, "block_size": 5, "num_hidden_layers": 3, "layer_types": kinds}
    spec = family.from_config({**MINIMAX, **small, "num_key_value_heads": None})
    derived = family.keys(spec).derived
    assert {*derived} == {f"model.layers.{i}.self_attn.{name}" for i in (0, 2) for name in FixedDecay.TABLES}
    for index in (0, 2):
        slopes = derived[f"model.layers.{index}.self_attn.slope_rate"]().flatten()
        assert_close(-slopes, torch.tensor(spec.layers[index].mixer.decay.logs))
        assert derived[f"model.layers.{index}.self_attn.diagonal_decay"]().shape == (1, 4, 5, 5)
    assert isinstance(mixer := spec.layers[1].mixer, Attention)
    assert mixer.kv_heads == 4  # null is one for each head


def test_what_would_change_the_computation_is_refused():
    for key, value in (("mla_use_nope", False), ("moe_router_activation_func", "softmax"), ("num_key_value_heads", 8)):
        with pytest.raises(DougongError, match=key):
            FAMILIES["kimi_linear"].from_config({**KIMI, key: value})
    with pytest.raises(DougongError, match="layer_types"):
        FAMILIES["qwen3_next"].from_config({**NEXT, "layer_types": ["full_attention"] * 3})


def _hybrid(sections: list[int], head_size: int) -> dict:
    """A small Qwen3.5 whose attention turns a quarter of each head."""
    return {
        "model_type": "qwen3_5_text", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2,
        "head_dim": head_size,
        "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 48, "linear_num_key_heads": 2,
        "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        "layer_types": ["full_attention", "linear_attention"],
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25,
            "mrope_section": sections, "mrope_interleaved": True,
        },
    }  # fmt: skip


@pytest.mark.parametrize(("sections", "head_size"), [([11, 11, 10], 256), ([3, 2, 1], 48), ([1, 4, 3], 64)])
def test_three_axes_turn_as_in_transformers(sections, head_size, tmp_path):
    """M-RoPE within a whole model: tokens with coordinates of their own, and plain text."""
    transformers = pytest.importorskip("transformers")
    config = _hybrid(sections, head_size)
    reference = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**{**config, "model_type": "qwen3_5_text"})
    ).eval()
    torch.manual_seed(0)
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    family = FAMILIES["qwen3_5_text"]
    spec = family.from_config(config)
    assert spec == family.from_config(family.to_config(spec))
    reference.save_pretrained(tmp_path)
    model = dougong.load(tmp_path).model
    assert model.spec.layers[0].mixer.position.axes == Axes(tuple(sections), interleaved=True)
    tokens = torch.randint(64, (2, 9))
    coordinates = torch.randint(20, (3, 2, 9))
    with torch.no_grad():
        want = reference(tokens, position_ids=coordinates).logits
        got = model(tokens, coordinates=coordinates).logits
        assert_close(got, want, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(model(tokens).logits, got, atol=1e-3)
        assert_close(model(tokens).logits, reference(tokens).logits, rtol=1e-4, atol=1e-5)


def test_sections_of_axes_are_checked():
    config = _hybrid([11, 11, 10], 64)
    for key, value in (("mrope_section", [1, 2]), ("mrope_section", "all"), ("mrope_interleaved", False)):
        with pytest.raises(DougongError, match=key):
            FAMILIES["qwen3_5_text"].from_config(
                {**config, "rope_parameters": {**config["rope_parameters"], key: value}}
            )
