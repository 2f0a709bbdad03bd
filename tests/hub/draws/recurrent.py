"""Mamba, Mamba-2, RWKV-4 and Jamba."""

from __future__ import annotations

import random
from typing import Any


def common(rng: random.Random) -> dict[str, Any]:
    return {
        "vocab_size": rng.randint(50, 120),
        "tie_word_embeddings": rng.random() < 0.5,
        "bos_token_id": 3,
        "eos_token_id": 4,
        "pad_token_id": 1,
        "hidden_act": rng.choice(["silu", "silu", "gelu", "gelu_pytorch_tanh"]),
    }


def mamba(rng: random.Random, seed: int) -> dict[str, Any]:
    return {
        **common(rng),
        "hidden_size": rng.randint(9, 37),
        "state_size": rng.choice([1, 4, 7, 16]),
        "num_hidden_layers": rng.randint(1, 3),
        "expand": rng.choice([1, 2, 3]),
        "conv_kernel": rng.choice([2, 3, 4]),
        "time_step_rank": rng.choice(["auto", 1, 5]),
        "layer_norm_epsilon": rng.choice([1e-6, 1e-5, 1e-3]),
        "use_bias": seed % 2 == 1,
        "use_conv_bias": seed % 3 != 0,
        "residual_in_fp32": rng.random() < 0.5,
    }


def mamba2(rng: random.Random, seed: int) -> dict[str, Any]:
    groups = rng.choice([1, 1, 2, 3])
    heads, expand = groups * rng.choice([1, 2, 3]), rng.choice([1, 2])
    size = expand * rng.choice([3, 4, 7, 8])
    return {
        **common(rng),
        "hidden_size": heads * size // expand,
        "num_heads": heads,
        "head_dim": size,
        "expand": expand,
        "n_groups": groups,
        "state_size": rng.choice([1, 4, 7, 16]),
        "num_hidden_layers": rng.randint(1, 3),
        "conv_kernel": rng.choice([2, 3, 4]),
        "time_step_limit": [(0.0, float("inf")), [0.0, 0.5], [0.3, 0.9]][seed % 3],
        "layer_norm_epsilon": rng.choice([1e-6, 1e-5, 1e-3]),
        "use_bias": seed % 2 == 1,
        "use_conv_bias": seed % 4 != 0,
    }


def rwkv(rng: random.Random, seed: int) -> dict[str, Any]:
    width = rng.randint(9, 37)
    return {
        **{key: value for key, value in common(rng).items() if key != "hidden_act"},
        "hidden_size": width,
        "attention_hidden_size": width,  # transformers' state has no other
        "intermediate_size": rng.choice([None, 19, 50]),
        "num_hidden_layers": rng.randint(2, 5),
        "context_length": rng.randint(64, 100),
        "layer_norm_epsilon": rng.choice([1e-6, 1e-5, 1e-3]),
        "rescale_every": [6, 0, 1, 2, 3, -1][seed % 6],
    }


def jamba(rng: random.Random, seed: int) -> dict[str, Any]:
    kv_heads = rng.choice([1, 1, 2, 3])
    heads = kv_heads * rng.choice([1, 2, 3])
    depth, attends, chooses = rng.randint(2, 5), rng.randint(1, 4), rng.randint(1, 4)
    experts = rng.choice([1, 2, 3, 5])
    return {
        **common(rng),
        "hidden_size": heads * rng.choice([4, 5, 7]),
        "intermediate_size": rng.randint(11, 50),
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "num_experts": experts,
        "num_experts_per_tok": rng.randint(1, experts),
        "attn_layer_period": attends + (seed % 6 != 5),
        "attn_layer_offset": min(
            rng.randint(0, attends), attends - (seed % 6 == 5), depth - 1
        ),  # transformers' cache wants one to attend
        "expert_layer_period": chooses,
        "expert_layer_offset": rng.randint(0, chooses - 1),
        "mamba_d_state": rng.choice([1, 4, 7, 16]),
        "mamba_d_conv": rng.choice([2, 3, 4]),
        "mamba_expand": rng.choice([1, 2, 3]),
        "mamba_dt_rank": rng.choice(["auto", 1, 5]),
        "mamba_conv_bias": seed % 3 != 0,
        "mamba_proj_bias": seed % 2 == 1,
        "rms_norm_eps": rng.choice([1e-6, 1e-5, 1e-3]),
        "max_position_embeddings": rng.randint(64, 100),
    }


DRAWN = {"mamba": mamba, "mamba2": mamba2, "rwkv": rwkv, "jamba": jamba}
