"""Families that mix attention with recurrent layers: Qwen3-Next, Qwen3.5, MiniMax, Kimi-Linear."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

from tests.hub.draws.rope import draw_rope

SCALINGS = ("default", "linear", "yarn", "dynamic", "llama3")


def shared(rng: random.Random) -> dict[str, Any]:
    kv_heads = rng.choice([1, 2, 3])
    return {
        "vocab_size": rng.randint(50, 120),
        "hidden_size": rng.randint(17, 45),
        "num_hidden_layers": rng.randint(2, 4),
        "num_attention_heads": kv_heads * rng.choice([1, 2, 3]),
        "num_key_value_heads": kv_heads,
        "hidden_act": rng.choice(["silu", "silu", "gelu"]),
        "rms_norm_eps": rng.choice([1e-6, 1e-5, 1e-3]),
        "tie_word_embeddings": rng.random() < 0.5,
        "bos_token_id": 3,
        "eos_token_id": 4,
        "pad_token_id": 0,
    }


def experts(rng: random.Random, seed: int) -> dict[str, Any]:
    """Seed 1, which is also run in bfloat16, takes all experts: rounding then cannot choose others."""
    count = rng.choice([1, 3, 4, 6])
    chosen = rng.randint(1, count)
    return {"num_experts": count, "num_experts_per_tok": count if seed == 1 else chosen}


def kinds(rng: random.Random, depth: int) -> list[str]:
    """Both kinds, in any order."""
    names = ["linear_attention", "full_attention"]
    return rng.sample([*names, *(rng.choice(names) for _ in range(depth - 2))], depth)


def qwen(family: str, rng: random.Random, seed: int) -> dict[str, Any]:
    config = shared(rng)
    depth, size, partial_ = config["num_hidden_layers"], rng.choice([16, 24, 32]), rng.choice([0.25, 0.5, 1.0])
    key_heads = rng.choice([1, 2, 3])
    rope, context = draw_rope(rng, SCALINGS[seed % len(SCALINGS)], int(size * partial_))
    config |= {
        "head_dim": size,
        "max_position_embeddings": context,
        "rope_parameters": {**rope, "partial_rotary_factor": partial_},
        "attention_bias": seed % 2 == 1,
        "linear_conv_kernel_dim": rng.choice([2, 3, 4]),
        "linear_key_head_dim": rng.randint(2, 7),
        "linear_value_head_dim": rng.randint(2, 7),
        "linear_num_key_heads": key_heads,
        "linear_num_value_heads": key_heads * rng.choice([1, 2, 3]),
        "layer_types": kinds(rng, depth),
    }
    if family == "qwen3_5_text":
        return {**config, "intermediate_size": rng.randint(11, 50)}
    config |= experts(rng, seed)
    config |= {"moe_intermediate_size": rng.randint(5, 20), "shared_expert_intermediate_size": rng.randint(5, 20)}
    if family == "qwen3_next":
        config |= {"intermediate_size": rng.randint(11, 50), "norm_topk_prob": rng.random() < 0.5}
        config |= {"mlp_only_layers": rng.choice([[], [0]]), "decoder_sparse_step": rng.choice([1, 1, 2])}
    return config


DRAWN = {name: partial(qwen, name) for name in ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")}


def minimax(rng: random.Random, seed: int) -> dict[str, Any]:
    config = shared(rng)
    depth, size = config["num_hidden_layers"], rng.choice([4, 6, 10])
    rope, context = draw_rope(rng, SCALINGS[seed % len(SCALINGS)], size)
    routed = experts(rng, seed)
    config |= {
        "head_dim": size,
        "max_position_embeddings": context,
        "rope_parameters": rope,
        "sliding_window": rng.choice([None, 3, 9]),
        "layer_types": kinds(rng, depth),
        "intermediate_size": rng.randint(5, 20),
        "num_local_experts": routed["num_experts"],
        "num_experts_per_tok": routed["num_experts_per_tok"],
        "block_size": rng.choice([3, 8, 64]),
    }
    for name in ("full_attn", "linear_attn", "mlp"):
        config |= {f"{name}_{factor}_factor": rng.choice([1, 0.7, 3.5]) for factor in ("alpha", "beta")}
    return config


def kimi_linear(rng: random.Random, seed: int) -> dict[str, Any]:
    config = shared(rng)
    depth = config["num_hidden_layers"]
    groups, each = rng.choice([(1, 2), (1, 6), (2, 3), (3, 2)])
    chosen = rng.randint(1, groups)
    return config | {
        "num_key_value_heads": config["num_attention_heads"],
        "intermediate_size": rng.randint(11, 50),
        "moe_intermediate_size": rng.randint(5, 20),
        "num_shared_experts": rng.randint(1, 2),
        "num_experts": groups * each,
        "num_expert_group": groups,
        "topk_group": chosen,
        "num_experts_per_token": rng.randint(1, chosen * each),
        "moe_renormalize": rng.random() < 0.5,
        "routed_scaling_factor": rng.choice([1.0, 2.446]),
        "kv_lora_rank": rng.randint(3, 9),
        "q_lora_rank": rng.choice([None, 5]),
        "qk_rope_head_dim": rng.choice([2, 4]),
        "qk_nope_head_dim": rng.randint(2, 7),
        "v_head_dim": rng.randint(2, 7),
        "attention_bias": seed % 2 == 1,
        "model_max_length": 64,
        "linear_head_dim": rng.randint(2, 7),
        "linear_num_heads": rng.randint(1, 4),
        "linear_conv_kernel_dim": rng.choice([2, 3, 4]),
        "layer_types": kinds(rng, depth),
        "mlp_layer_types": [rng.choice(["dense", "sparse"]) for _ in range(depth)],
        "tie_word_embeddings": False,  # transformers never ties them
    }


DRAWN |= {"minimax": minimax, "kimi_linear": kimi_linear}
