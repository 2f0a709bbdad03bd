"""Rotary scalings drawn at random."""

from __future__ import annotations

import random
from typing import Any

SHORT, LONG, ORIGINAL = 11, 40, 16  # tokens: inside the original length of every scaling, beyond it, that length
KINDS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")


def draw_rope(rng: random.Random, kind: str, size: int) -> tuple[dict[str, Any], int]:
    """rope_parameters in the spelling of transformers 5, and the max_position_embeddings that go with them."""
    rope: dict[str, Any] = {"rope_theta": rng.choice([100.0, 10000.0, 500000.0]), "rope_type": kind}
    factor = rng.choice([2.0, 2.5, 4.0])
    if kind == "default":
        return rope, rng.randint(8, 64)
    if kind == "dynamic":
        return {**rope, "factor": factor}, rng.randint(SHORT + 1, LONG - 4)
    if kind == "linear":
        return {**rope, "factor": factor}, 64
    rope["original_max_position_embeddings"] = ORIGINAL
    if kind == "llama3":
        return {**rope, "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": rng.choice([2.0, 4.0])}, 64
    if kind == "longrope":
        for name in ("short_factor", "long_factor"):
            rope[name] = [round(rng.uniform(1, 6), 3) for _ in range(size // 2)]
        return {**rope, **rng.choice([{}, {"factor": factor}, {"attention_factor": 1.3}])}, 64
    attention = rng.choice([{}, {"attention_factor": 0.8}, {"mscale": 1.5, "mscale_all_dim": 0.7}, {"mscale": 2.0}])
    betas = rng.choice([{}, {"beta_fast": 4.0, "beta_slow": 0.5}])
    truncate = rng.choice([{}, {"truncate": False}])
    return {**rope, "factor": factor, **attention, **betas, **truncate}, 64
