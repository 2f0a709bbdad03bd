"""Families with experts."""

from __future__ import annotations

import random
from typing import Any

from tests.hub.draws.rope import KINDS, LONG, draw_rope


def rope(rng: random.Random, seed: int, size: int) -> tuple[dict[str, Any], int]:
    """Dynamic scaling turns what came early differently once the text is long, so steps differ from the whole text:
    the contract's 24 tokens stay within the original length, and only the longer ones of the parity tests leave it."""
    kind = KINDS[seed % len(KINDS)]
    drawn, context = draw_rope(rng, kind, size)
    return drawn, max(context, LONG - 12) if kind == "dynamic" else context


def shape(rng: random.Random, seed: int, size: int, depth: int) -> dict[str, Any]:
    """What all of them have."""
    kv_heads = rng.choice([1, 1, 2, 3])
    heads = kv_heads * rng.choice([1, 2, 3])
    turning, context = rope(rng, seed, size)
    return {
        "vocab_size": rng.randint(50, 120),
        "hidden_size": rng.randint(17, 45),
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": size,
        "hidden_act": rng.choice(["silu", "silu", "gelu", "gelu_pytorch_tanh"]),
        "max_position_embeddings": context,
        "rms_norm_eps": rng.choice([1e-6, 1e-5, 1e-3]),
        "rope_parameters": turning,
        "tie_word_embeddings": rng.random() < 0.5,
        "router_aux_loss_coef": rng.choice([0.001, 0.02]),
        "bos_token_id": 3,
        "eos_token_id": 4,
        "initializer_range": 0.017,
    }


def count(rng: random.Random, names: tuple[str, str]) -> dict[str, int]:
    """One expert, a few, and many; all of them used, or some."""
    experts = rng.choice([1, 3, 4, 8, 17])
    return {names[0]: experts, names[1]: rng.randint(1, min(experts, 5))}


def mixtral(rng: random.Random, seed: int) -> dict[str, Any]:
    config = shape(rng, seed, rng.choice([4, 6, 8, 10]), rng.randint(1, 3))
    if rng.random() < 0.3:
        config["head_dim"] = None
        config["hidden_size"] = config["num_attention_heads"] * 6
        config["rope_parameters"], config["max_position_embeddings"] = rope(rng, seed, 6)
    return {
        **config,
        **count(rng, ("num_local_experts", "num_experts_per_tok")),
        "intermediate_size": rng.randint(5, 30),
        "sliding_window": rng.choice([None, 3, 9]),
        "router_jitter_noise": rng.choice([0.0, 0.1]),
    }


def minimax_m2(rng: random.Random, seed: int) -> dict[str, Any]:
    size = rng.choice([4, 8, 12])
    share = rng.choice([None, 0.5])
    config = shape(rng, seed, size, rng.randint(1, 3))
    if share:
        turning, config["max_position_embeddings"] = rope(rng, seed, size // 2)
        config["rope_parameters"] = {**turning, "partial_rotary_factor": share}
    return {
        **config,
        **count(rng, ("num_local_experts", "num_experts_per_tok")),
        "intermediate_size": rng.randint(5, 30),
    }


def qwen2_moe(rng: random.Random, seed: int) -> dict[str, Any]:
    size, depth = rng.choice([4, 6, 8, 10]), rng.randint(2, 4)
    config = shape(rng, seed, size, depth)
    del config["head_dim"]
    config["hidden_size"] = config["num_attention_heads"] * size
    kinds = ["full_attention", "sliding_attention"]
    sliding = rng.random() < 0.6
    return {
        **config,
        **count(rng, ("num_experts", "num_experts_per_tok")),
        "moe_intermediate_size": rng.randint(5, 20),
        "shared_expert_intermediate_size": rng.randint(5, 20),
        "intermediate_size": rng.randint(5, 30),
        "norm_topk_prob": rng.random() < 0.5,
        "qkv_bias": rng.random() < 0.7,
        "decoder_sparse_step": rng.choice([1, 1, 2]),
        "mlp_only_layers": rng.choice([[], [0]]),
        "use_sliding_window": sliding,
        "sliding_window": rng.choice([3, 9]),
        "max_window_layers": rng.randint(0, depth),
        "layer_types": [rng.choice(kinds) for _ in range(depth)] if sliding and rng.random() < 0.5 else None,
    }


def qwen3_moe(rng: random.Random, seed: int) -> dict[str, Any]:
    return {
        **shape(rng, seed, rng.choice([4, 6, 8, 10]), rng.randint(2, 3)),
        **count(rng, ("num_experts", "num_experts_per_tok")),
        "moe_intermediate_size": rng.randint(5, 20),
        "intermediate_size": rng.randint(5, 30),
        "norm_topk_prob": rng.random() < 0.5,
        "attention_bias": rng.random() < 0.5,
        "decoder_sparse_step": rng.choice([1, 1, 2]),
        "mlp_only_layers": rng.choice([[], [0]]),
        "use_sliding_window": rng.random() < 0.5,
        "sliding_window": rng.choice([3, 9]),
    }


def glm4_moe(rng: random.Random, seed: int) -> dict[str, Any]:
    size, share, depth = rng.choice([4, 8, 12]), rng.choice([0.5, 1.0]), rng.randint(2, 4)
    config = shape(rng, seed, size, depth)
    del config["router_aux_loss_coef"]
    turning, config["max_position_embeddings"] = rope(rng, seed, int(size * share))
    config["rope_parameters"] = {**turning, "partial_rotary_factor": share}
    groups, in_group = rng.choice([(1, 2), (1, 7), (2, 3), (4, 4)])
    top_groups = rng.randint(1, groups)
    return {
        **config,
        "n_routed_experts": groups * in_group,
        "num_experts_per_tok": rng.randint(1, top_groups * in_group),
        "n_group": groups,
        "topk_group": top_groups,
        "n_shared_experts": rng.choice([1, 2]),
        "moe_intermediate_size": rng.randint(5, 20),
        "intermediate_size": rng.randint(5, 30),
        "norm_topk_prob": rng.random() < 0.5,
        "routed_scaling_factor": rng.choice([1.0, 2.5]),
        "first_k_dense_replace": rng.randint(0, depth - 1),
        "attention_bias": rng.random() < 0.5,
        "use_qk_norm": rng.random() < 0.5,
    }


def gpt_oss(rng: random.Random, seed: int) -> dict[str, Any]:
    depth = rng.randint(1, 3)
    config = shape(rng, seed, rng.choice([4, 6, 8, 10]), depth)
    kinds = ["full_attention", "sliding_attention"]
    return {
        **config,
        **count(rng, ("num_local_experts", "num_experts_per_tok")),
        "hidden_act": "silu",
        "intermediate_size": rng.randint(5, 30),
        "sliding_window": rng.choice([3, 9]),
        "layer_types": rng.choice([None, [rng.choice(kinds) for _ in range(depth)]]),
        "attention_bias": rng.random() < 0.7,
        "swiglu_alpha": rng.choice([1.702, 1.2]),
        "swiglu_limit": rng.choice([7.0, 0.8]),
    }


DRAWN = {
    "mixtral": mixtral,
    "minimax_m2": minimax_m2,
    "qwen2_moe": qwen2_moe,
    "qwen3_moe": qwen3_moe,
    "glm4_moe": glm4_moe,
    "gpt_oss": gpt_oss,
}
