"""Decoders with LayerNorm and fused q, k and v: Falcon, BLOOM, MPT."""

from __future__ import annotations

import random
from typing import Any

from tests.hub.draws.dense import ORDER
from tests.hub.draws.rope import LONG, draw_rope


def falcon(rng: random.Random, seed: int) -> dict[str, Any]:
    """The three architectures in turn: one key head or as many as heads, one after the other or side by side; and the
    new one with groups."""
    kv_heads, new = rng.choice([1, 2, 3]), seed % 2 == 0
    heads = kv_heads * rng.choice([1, 2, 3])
    size = rng.choice([4, 6, 8])
    rope, context = draw_rope(rng, ORDER[seed % len(ORDER)], size)
    if new:
        kind = {"num_kv_heads": kv_heads, "num_ln_in_parallel_attn": rng.choice([None, 1, 2])}
    else:
        kind = {"multi_query": rng.random() < 0.5, "parallel_attn": rng.random() < 0.6}
    return {
        "vocab_size": rng.randint(50, 120),
        "hidden_size": heads * size,
        "num_hidden_layers": rng.randint(2, 3),
        "num_attention_heads": heads,
        "new_decoder_architecture": new,
        **kind,
        "ffn_hidden_size": rng.choice([None, 37]),
        "activation": rng.choice(["gelu", "gelu", "relu"]),
        "bias": rng.random() < 0.5,
        "layer_norm_epsilon": rng.choice([1e-5, 1e-3]),
        "rope_parameters": rope,
        "max_position_embeddings": context,
        "tie_word_embeddings": rng.random() < 0.6,
        "bos_token_id": 3,
        "eos_token_id": 4,
    }


def bloom(rng: random.Random, seed: int) -> dict[str, Any]:
    heads = rng.choice([1, 2, 3, 5, 6])
    return {
        "vocab_size": rng.randint(50, 120),
        "hidden_size": heads * rng.choice([4, 5, 8]),
        "n_layer": rng.randint(2, 3),
        "n_head": heads,
        "layer_norm_epsilon": rng.choice([1e-5, 1e-3]),
        "apply_residual_connection_post_layernorm": seed % 3 == 0,
        "tie_word_embeddings": rng.random() < 0.6,
        "bos_token_id": 3,
        "eos_token_id": 4,
    }


def mpt(rng: random.Random, seed: int) -> dict[str, Any]:
    heads = rng.choice([1, 2, 3, 5, 6])
    # transformers passes over alibi_bias_max: tests/hub/test_dense.py has others than its 8.
    attention = {"alibi_bias_max": 8, "clip_qkv": rng.choice([None, 0.5, 6.0])}
    return {
        "vocab_size": rng.randint(50, 120),
        "d_model": heads * rng.choice([4, 5, 8]),
        "n_layers": rng.randint(2, 3),
        "n_heads": heads,
        "max_seq_len": rng.randint(LONG, 64),
        "attn_config": {**attention, "softmax_scale": rng.choice([None, 0.3])},
        "layer_norm_epsilon": rng.choice([1e-5, 1e-3]),
        "tie_word_embeddings": rng.random() < 0.6,
        "bos_token_id": 3,
        "eos_token_id": 4,
    }


DRAWN = {"falcon": falcon, "bloom": bloom, "mpt": mpt}
