"""Dense decoders as published: the sizes of known models, and the spellings that old config.json files have."""

from __future__ import annotations

from typing import Any

import pytest

from dougong.base import DougongError
from dougong.hub.families import FAMILIES
from dougong.model import ModelSpec
from dougong.parts.position import Alibi
from dougong.parts.rope import LinearScaling, LongRope, Rope, Yarn

GEMMA = {"head_dim": 256, "vocab_size": 256000, "cache_implementation": "hybrid", "query_pre_attn_scalar": 256}
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "gemma-2b": (
        {"model_type": "gemma", "head_dim": 256, "hidden_act": "gelu", "hidden_size": 2048, "intermediate_size": 16384}
        | {"num_attention_heads": 8, "num_hidden_layers": 18, "num_key_value_heads": 1, "vocab_size": 256000}
        | {"rope_scaling": None, "rope_theta": 10000.0, "max_position_embeddings": 8192},
        2_506_172_416,
    ),
    "gemma-2-2b": (
        {"model_type": "gemma2", **GEMMA, "hidden_size": 2304, "intermediate_size": 9216, "num_attention_heads": 8}
        | {"num_hidden_layers": 26, "num_key_value_heads": 4, "hidden_act": "gelu_pytorch_tanh"}
        | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "sliding_window": 4096},
        2_614_341_888,
    ),
    "gemma-3-1b": (
        {"model_type": "gemma3_text", **GEMMA, "hidden_size": 1152, "intermediate_size": 6912, "vocab_size": 262144}
        | {"num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1, "sliding_window": 512}
        | {"rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000, "sliding_window_pattern": 6}
        | {"attn_logit_softcapping": None, "final_logit_softcapping": None, "max_position_embeddings": 32768},
        999_885_952,
    ),
    "Phi-3-mini-4k": (
        {"model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 32}
        | {"num_hidden_layers": 32, "num_key_value_heads": 32, "original_max_position_embeddings": 4096}
        | {"rope_scaling": None, "rope_theta": 10000.0, "sliding_window": 2047, "vocab_size": 32064},
        3_821_079_552,
    ),
    "pythia-70m": (
        {"model_type": "gpt_neox", "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
        | {"num_hidden_layers": 6, "rotary_emb_base": 10000, "rotary_pct": 0.25, "use_parallel_residual": True}
        | {"vocab_size": 50304, "tie_word_embeddings": False, "classifier_dropout": 0.1},
        70_426_624,
    ),
    "nanochat-d20": (
        {"model_type": "nanochat", "hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 10}
        | {"num_hidden_layers": 20, "vocab_size": 65536},
        560_988_160,
    ),
    "falcon-7b": (
        {"model_type": "falcon", "alibi": False, "apply_residual_connection_post_layernorm": False, "bias": False}
        | {"hidden_size": 4544, "multi_query": True, "new_decoder_architecture": False, "parallel_attn": True}
        | {"num_attention_heads": 71, "num_hidden_layers": 32, "vocab_size": 65024},
        6_921_720_704,
    ),
    "falcon-40b": (
        {"model_type": "falcon", "hidden_size": 8192, "n_head": 128, "n_head_kv": 8, "n_layer": 60, "vocab_size": 65024}
        | {"new_decoder_architecture": True, "parallel_attn": True},
        41_303_293_952,
    ),
    "bloom-560m": (
        {"model_type": "bloom", "n_embed": 1024, "n_layer": 24, "num_attention_heads": 16, "vocab_size": 250880}
        | {"attention_softmax_in_fp32": True, "bias_dropout_fusion": True, "masked_softmax_fusion": True}
        | {"n_inner": None, "offset_alibi": 100, "pretraining_tp": 1, "seq_length": 2048, "skip_bias_add": True},
        559_214_592,
    ),
    "mpt-7b-storywriter": (
        {"model_type": "mpt", "d_model": 4096, "n_heads": 32, "n_layers": 32, "vocab_size": 50432, "verbose": 0}
        | {"attn_config": {"alibi": True, "alibi_bias_max": 16, "attn_impl": "torch", "clip_qkv": 6, "qk_ln": False}}
        | {"max_seq_len": 65536, "no_bias": True, "learned_pos_emb": True, "norm_type": "low_precision_layernorm"}
        | {"expansion_ratio": 4, "init_config": {"name": "kaiming_normal_"}, "init_device": "cpu"},
        6_649_286_656,
    ),
    "glm-4-9b": (
        {"model_type": "glm", "hidden_size": 4096, "intermediate_size": 13696, "num_attention_heads": 32}
        | {"num_hidden_layers": 40, "num_key_value_heads": 2, "vocab_size": 151552},
        9_399_951_360,
    ),
    "OLMo-1B": (
        {"model_type": "olmo", "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16}
        | {"num_hidden_layers": 16, "tie_word_embeddings": True, "vocab_size": 50304},
        1_176_764_416,
    ),
    "OLMo-2-7B": (
        {"model_type": "olmo2", "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}
        | {"num_hidden_layers": 32, "rms_norm_eps": 1e-06, "rope_theta": 500000, "vocab_size": 100352},
        7_298_617_344,
    ),
}


def read(config: dict[str, Any], **changes: Any) -> ModelSpec:
    config = {key: value for key, value in {**config, **changes}.items() if value is not ...}
    return FAMILIES[config["model_type"]].from_config(config)


def positions(spec: ModelSpec) -> list[Any]:
    return [layer.mixer.position for layer in spec.layers]


@pytest.mark.parametrize(("config", "count"), PUBLISHED.values(), ids=PUBLISHED.keys())
def test_published_models_have_their_sizes(config: dict[str, Any], count: int) -> None:
    spec = read(config)
    assert spec.parameters() == count
    assert FAMILIES[config["model_type"]].from_config(FAMILIES[config["model_type"]].to_config(spec)) == spec


def test_the_first_gemmas_say_gelu_and_mean_its_approximation() -> None:
    config = PUBLISHED["gemma-2b"][0]
    assert read(config).layers[0].ffn.activation == "gelu_tanh"
    assert read(config, hidden_activation="gelu_pytorch_tanh").layers[0].ffn.activation == "gelu_tanh"
    assert read(config, hidden_activation="relu").layers[0].ffn.activation == "relu"


def test_windows_and_rotations_of_gemma() -> None:
    second, third = read(PUBLISHED["gemma-2-2b"][0]), read(PUBLISHED["gemma-3-1b"][0])
    assert [layer.mixer.window for layer in second.layers[:4]] == [4096, None, 4096, None]
    assert [layer.mixer.window for layer in third.layers[:7]] == [512] * 5 + [None, 512]
    assert positions(third)[4:7] == [Rope(256, 1e4), Rope(256, 1e6), Rope(256, 1e4)]
    scaled = read(PUBLISHED["gemma-3-1b"][0], rope_scaling={"rope_type": "linear", "factor": 8.0})
    assert positions(scaled)[4:6] == [Rope(256, 1e4), Rope(256, 1e6, scaling=LinearScaling(8.0))]
    with pytest.raises(DougongError, match="attn_logit_softcapping"):
        read(PUBLISHED["gemma-3-1b"][0], attn_logit_softcapping=50.0)


def test_both_kinds_of_layers_may_have_any_rotation() -> None:
    nested = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 50.0},
    }
    olmo = PUBLISHED["OLMo-2-7B"][0] | {"model_type": "olmo3", "num_hidden_layers": 4, "rope_theta": ...}
    yarn = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "attention_factor": 1.2}
    for spec in (
        read(PUBLISHED["gemma-3-1b"][0], rope_theta=..., rope_local_base_freq=..., rope_parameters=nested),
        read(olmo, rope_parameters=nested),
        read(olmo, rope_theta=1e4, rope_scaling=yarn),
    ):
        family = FAMILIES["olmo3" if len(spec.layers) == 4 else "gemma3_text"]
        assert family.from_config(family.to_config(spec)) == spec
    # In the old spelling one base is that of all layers, scaled only where there is no window.
    assert positions(spec) == [Rope(128, 1e4)] * 3 + [Rope(128, 1e4, scaling=Yarn(8.0, 64, attention_factor=1.2))]
    with pytest.raises(DougongError, match="rope_parameters"):
        read(olmo, rope_parameters=nested | {"chunked_attention": {}})


def test_the_first_name_of_longrope() -> None:
    factors = {"short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
    spec = read(PUBLISHED["Phi-3-mini-4k"][0], max_position_embeddings=131072, rope_scaling={"type": "su", **factors})
    scaling = positions(spec)[0].scaling
    assert isinstance(scaling, LongRope)
    assert scaling.original == 4096
    assert scaling.attention_factor == pytest.approx((1 + 5 / 12) ** 0.5)  # sqrt(1 + ln 32 / ln 4096)


def test_shares_of_heads_that_turn() -> None:
    assert positions(read(PUBLISHED["pythia-70m"][0]))[0] == Rope(16)
    assert positions(read(PUBLISHED["glm-4-9b"][0]))[0] == Rope(64, interleaved=True)
    for size in range(2, 66, 2):  # whatever the share is in floating point, it is read back as these coordinates
        spec = read(PUBLISHED["pythia-70m"][0], hidden_size=66, num_attention_heads=1, rotary_pct=(size + 0.5) / 66)
        assert positions(spec)[0].size == size
        assert FAMILIES["gpt_neox"].from_config(FAMILIES["gpt_neox"].to_config(spec)) == spec


def test_the_slopes_of_mpt() -> None:
    """`alibi_bias_max` is heeded (transformers passes over it), and what would be another model is refused."""
    config = PUBLISHED["mpt-7b-storywriter"][0]
    assert positions(read(config))[0] == Alibi(16.0)
    for key, value in (("no_bias", False), ("logit_scale", 0.5), ("expansion_ratio", 3)):
        with pytest.raises(DougongError, match=key):
            read(config, **{key: value})
    for key, value in (("alibi", False), ("qk_ln", True), ("prefix_lm", True), ("attn_type", "multiquery_attention")):
        with pytest.raises(DougongError, match=key):
            read(config, attn_config={**config["attn_config"], key: value})


def test_falcons_that_do_not_exist() -> None:
    config = PUBLISHED["falcon-7b"][0]
    for key, changes in (
        ("parallel_attn", {"new_decoder_architecture": True, "parallel_attn": False}),
        ("num_ln_in_parallel_attn", {"num_ln_in_parallel_attn": 2}),
        ("num_kv_heads", {"multi_query": False, "num_kv_heads": 1}),
    ):
        with pytest.raises(DougongError, match=key):
            read(config, **changes)
