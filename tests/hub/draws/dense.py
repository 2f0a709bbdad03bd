"""Decoders near Llama's form: Phi-3, GPT-NeoX, nanochat, GLM, OLMo."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

from tests.hub.draws.rope import draw_rope

# Of seeds 1 and 2, whose texts are also read in steps, no kind may turn tokens by the length of what follows.
ORDER = ("longrope", "default", "yarn", "dynamic", "linear", "llama3")


def _llama(rng: random.Random, size: int | None = None) -> dict[str, Any]:
    """What they share; without a size, that of a head is given."""
    kv_heads = rng.choice([1, 1, 2, 3])
    heads = kv_heads * rng.choice([1, 2, 3])
    return {
        "vocab_size": rng.randint(50, 120),
        "hidden_size": heads * (size or rng.choice([5, 7, 9])),
        "intermediate_size": rng.randint(11, 60),
        "num_hidden_layers": rng.randint(2, 4),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        **({} if size else {"head_dim": rng.choice([4, 8, 12])}),
        "hidden_act": rng.choice(["silu", "silu", "gelu_pytorch_tanh"]),
        "rms_norm_eps": rng.choice([1e-6, 1e-5, 1e-3]),
        "tie_word_embeddings": rng.random() < 0.5,
        "pad_token_id": 0,
        "bos_token_id": 3,
        "eos_token_id": 4,
    }


def _old_spelling(rng: random.Random, kind: str, turning: int) -> dict[str, Any]:
    """Rotations as transformers 4 wrote them: 5 reads them, and saves them in its own way."""
    rope, context = draw_rope(rng, kind, turning)
    spelled = {"rope_theta": rope.pop("rope_theta"), "max_position_embeddings": context}
    return spelled if kind == "default" else {**spelled, "rope_scaling": rope}


def phi3(rng: random.Random, seed: int) -> dict[str, Any]:
    size = rng.choice([8, 12, 16])
    share = rng.choice([1.0, 0.75, 0.5])
    config = {**_llama(rng, size), **_old_spelling(rng, "default" if seed % 3 else "longrope", int(size * share))}
    scaling = config.get("rope_scaling", {})
    config["original_max_position_embeddings"] = scaling.pop("original_max_position_embeddings", 4096)
    scaling.pop("factor", None)
    return {**config, "partial_rotary_factor": share, "sliding_window": rng.choice([None, None, 3, 9])}


def gpt_neox(rng: random.Random, seed: int) -> dict[str, Any]:
    size, heads = rng.choice([8, 16, 24]), rng.choice([1, 2, 3, 5])
    share = rng.choice([1.0, 0.25, 0.75])
    config = _old_spelling(rng, ORDER[seed % len(ORDER)], int(size * share))
    return {
        "vocab_size": rng.randint(50, 120),
        "hidden_size": heads * size,
        "intermediate_size": rng.randint(11, 60),
        "num_hidden_layers": rng.randint(2, 3),
        "num_attention_heads": heads,
        "hidden_act": rng.choice(["gelu", "gelu_new", "relu"]),
        "layer_norm_eps": rng.choice([1e-5, 1e-3]),
        "use_parallel_residual": seed % 3 != 0,
        "attention_bias": rng.random() < 0.7,
        "tie_word_embeddings": rng.random() < 0.3,
        "rotary_emb_base": config.pop("rope_theta"),
        "rotary_pct": share,
        **config,
        "bos_token_id": 3,
        "eos_token_id": 4,
    }


def nanochat(rng: random.Random, seed: int) -> dict[str, Any]:
    config = _llama(rng)
    rope, context = draw_rope(rng, ORDER[seed % len(ORDER)], config["head_dim"])
    return {
        **config,
        "rope_parameters": rope,
        "max_position_embeddings": context,
        "hidden_act": rng.choice(["relu2", "relu2", "gelu"]),
        "attention_bias": rng.random() < 0.4,
        "final_logit_softcapping": rng.choice([15.0, 3.0, None]),
    }


def glm(rng: random.Random, seed: int) -> dict[str, Any]:
    config = _llama(rng)
    share = rng.choice([None, 0.5, 1.0])
    turning = int(config["head_dim"] * (share or 0.5))
    return {
        **config,
        **_old_spelling(rng, ORDER[seed % len(ORDER)], turning),
        **({} if share is None else {"partial_rotary_factor": share}),
        "attention_bias": rng.random() < 0.7,
    }


def olmo(family: str, rng: random.Random, seed: int) -> dict[str, Any]:
    config = {**_llama(rng, rng.choice([4, 6, 8])), "attention_bias": rng.random() < 0.4}
    kind = ORDER[seed % len(ORDER)]
    rope, context = draw_rope(rng, kind, config["hidden_size"] // config["num_attention_heads"])
    config["max_position_embeddings"] = context
    if family != "olmo3":
        clip = {"clip_qkv": rng.choice([None, 0.5])} if family == "olmo" else {}
        return {**config, **clip, "rope_parameters": rope}
    depth = config["num_hidden_layers"]
    kinds = [rng.choice(["full_attention", "sliding_attention"]) for _ in range(depth)]
    rope.pop("rope_theta")
    # Of the old spelling transformers 5 takes its own default base for layers with a window: only that one is drawn.
    return {
        **config,
        **({"rope_theta": 500000.0, "rope_scaling": rope} if kind != "default" else {}),
        **rng.choice([{}, {"layer_types": kinds}]),
        "sliding_window": rng.choice([2, 5, 9]),
    }


DRAWN = {
    "phi3": phi3,
    "gpt_neox": gpt_neox,
    "nanochat": nanochat,
    "glm": glm,
    "glm4": glm,
    **{name: partial(olmo, name) for name in ("olmo", "olmo2", "olmo3")},
}
