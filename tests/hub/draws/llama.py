"""GPT-2 and the Llama shape."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

from tests.hub.draws.rope import KINDS, LONG, draw_rope


def gpt2(rng: random.Random, seed: int) -> dict[str, Any]:
    heads = rng.choice([1, 2, 3, 5])
    return {
        "vocab_size": rng.randint(50, 120),
        "n_positions": rng.randint(LONG, 64),
        "n_embd": heads * rng.choice([4, 7, 8]),  # a head of 7: nothing turns in pairs here
        "n_head": heads,
        "n_layer": rng.randint(2, 3),
        "n_inner": rng.choice([None, 19, 50]),
        "activation_function": rng.choice(["gelu_new", "gelu", "relu", "silu", "gelu_pytorch_tanh"]),
        "layer_norm_epsilon": rng.choice([1e-5, 1e-3]),
        "scale_attn_weights": seed % 4 != 0,
        "scale_attn_by_inverse_layer_idx": seed % 3 == 0,
        "reorder_and_upcast_attn": rng.random() < 0.5,
        "tie_word_embeddings": seed % 2 == 0,
        "bos_token_id": 3,
        "eos_token_id": 4,
    }


def llama_like(family: str, rng: random.Random, seed: int) -> dict[str, Any]:
    """Every kind of scaling comes up three times in 18."""
    kv_heads = rng.choice([1, 1, 2, 3])
    heads = kv_heads * rng.choice([1, 2, 3, 5])
    size = rng.choice([4, 6, 8, 10, 16])
    rope, context = draw_rope(rng, KINDS[seed % len(KINDS)], size)
    depth = rng.randint(1, 3)
    config = {
        "vocab_size": rng.randint(50, 120),
        # LlamaConfig insists on whole widths a head, though the head size is given; the others take any width.
        "hidden_size": heads * rng.choice([4, 5, 7]) if family == "llama" else rng.randint(17, 45),
        "intermediate_size": rng.randint(11, 70),
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": size,
        "hidden_act": rng.choice(["silu", "silu", "gelu", "gelu_pytorch_tanh"]),
        "max_position_embeddings": context,
        "rms_norm_eps": rng.choice([1e-6, 1e-5, 1e-3]),
        "rope_parameters": rope,
        "tie_word_embeddings": rng.random() < 0.5,
        "bos_token_id": 3,
        "eos_token_id": 4,
        "initializer_range": 0.017,
    }
    if family in ("llama", "qwen3"):
        config["attention_bias"] = rng.random() < 0.5
    if family == "llama":
        config["mlp_bias"] = rng.random() < 0.5
    if family == "mistral":
        config["sliding_window"] = rng.choice([None, 3, 9])
    if family in ("qwen2", "qwen3"):
        config |= {"use_sliding_window": rng.random() < 0.6, "sliding_window": rng.choice([3, 9])}
        config["max_window_layers"] = rng.randint(0, depth)
        if config["use_sliding_window"] and rng.random() < 0.5:
            kinds = ["full_attention", "sliding_attention"]
            config["layer_types"] = [rng.choice(kinds) for _ in range(depth)]
    return config


DRAWN = {"gpt2": gpt2, **{name: partial(llama_like, name) for name in ("llama", "mistral", "qwen2", "qwen3")}}
