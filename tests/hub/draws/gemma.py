"""Gemma 1 to 3: embeddings times the root of the width, norms around sublayers, two kinds of layers."""

from __future__ import annotations

import random
from typing import Any

from tests.hub.draws.rope import draw_rope

# Of seeds 1 and 2, whose texts are also read in steps, no kind may turn tokens by the length of what follows.
ORDER = ("longrope", "default", "yarn", "dynamic", "linear", "llama3")


def _decoder(rng: random.Random, activation: str) -> dict[str, Any]:
    kv_heads = rng.choice([1, 1, 2, 3])
    heads = kv_heads * rng.choice([1, 2, 3])
    return {
        "vocab_size": rng.randint(50, 120),
        "hidden_size": heads * rng.choice([5, 7, 9]),
        "intermediate_size": rng.randint(11, 60),
        "num_hidden_layers": rng.randint(2, 4),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": rng.choice([4, 6, 8, 10]),
        activation: rng.choice(["gelu_pytorch_tanh", "silu"]),
        "rms_norm_eps": rng.choice([1e-6, 1e-3]),
        "attention_bias": rng.random() < 0.4,
        "tie_word_embeddings": rng.random() < 0.7,
        "bos_token_id": 3,
        "eos_token_id": 4,
    }


def gemma(rng: random.Random, seed: int) -> dict[str, Any]:
    config = _decoder(rng, "hidden_act")
    rope, context = draw_rope(rng, ORDER[seed % len(ORDER)], config["head_dim"])
    return {**config, "rope_parameters": rope, "max_position_embeddings": context}


def _windows(rng: random.Random, depth: int) -> dict[str, Any]:
    kinds = [rng.choice(["full_attention", "sliding_attention"]) for _ in range(depth)]
    return {"sliding_window": rng.choice([2, 5, 9]), **rng.choice([{}, {"layer_types": kinds}])}


def gemma2(rng: random.Random, seed: int) -> dict[str, Any]:
    config = gemma(rng, seed)
    config["hidden_activation"] = config.pop("hidden_act")
    caps = {"attn_logit_softcapping": rng.choice([None, 2.0, 50.0]), "final_logit_softcapping": rng.choice([None, 4.0])}
    windows = _windows(rng, config["num_hidden_layers"])
    return {**config, **windows, **caps, "query_pre_attn_scalar": rng.choice([7, 16, 144])}


def gemma3_text(rng: random.Random, seed: int) -> dict[str, Any]:
    """In the spelling of transformers 4, which saves it in the new one."""
    config = _decoder(rng, "hidden_activation")
    kind = ("default", "linear", "yarn", "llama3")[seed % 4]
    rope, context = draw_rope(rng, kind, config["head_dim"])
    ropes = {"rope_theta": rope.pop("rope_theta"), "rope_local_base_freq": rng.choice([50.0, 10000.0])}
    return {
        **config,
        **ropes,
        **({} if kind == "default" else {"rope_scaling": rope}),
        **_windows(rng, config["num_hidden_layers"]),
        **rng.choice([{}, {"sliding_window_pattern": 2}]),
        "max_position_embeddings": context,
        "final_logit_softcapping": rng.choice([None, 4.0]),
        "query_pre_attn_scalar": rng.choice([7, 16, 144]),
    }


DRAWN = {"gemma": gemma, "gemma2": gemma2, "gemma3_text": gemma3_text}
