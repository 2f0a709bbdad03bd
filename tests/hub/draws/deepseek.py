"""DeepSeek V2, V3 and V3.2."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

from tests.hub.draws.rope import draw_rope

KINDS = ("default", "yarn", "linear", "yarn", "llama3", "yarn", "dynamic", "longrope")


def deepseek(family: str, rng: random.Random, seed: int) -> dict[str, Any]:
    size = rng.choice([4, 4, 6, 10])
    rope, context = draw_rope(rng, KINDS[seed % len(KINDS)], size)
    if rope["rope_type"] == "yarn":
        rope |= rng.choice([{}, {"mscale": 1.0, "mscale_all_dim": 1.0}, {"mscale": 0.707, "mscale_all_dim": 0.707}])
    groups = rng.choice([1, 2, 3])
    kept = rng.randint(1, groups)
    in_group = rng.choice([2, 3])
    depth, heads = rng.randint(1, 3), rng.choice([1, 2, 3, 5])
    # V2's config, a LlamaConfig, insists on whole widths a head, though no head has that size.
    width = heads * rng.choice([7, 9, 12]) if family == "deepseek_v2" else rng.randint(17, 45)
    config = {
        "vocab_size": rng.randint(50, 120),
        "hidden_size": width,
        "intermediate_size": rng.randint(11, 70),
        "moe_intermediate_size": rng.randint(5, 20),
        "num_hidden_layers": depth,
        "first_k_dense_replace": rng.randint(0, depth),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "q_lora_rank": rng.choice([None, 7, 16]) if family != "deepseek_v32" else rng.choice([7, 16]),
        # V2's complex numbers need even strides.
        "kv_lora_rank": rng.choice([6, 12, 24] if family == "deepseek_v2" else [5, 12, 24]),
        "qk_nope_head_dim": rng.choice([2, 8, 10] if family == "deepseek_v2" else [3, 8, 10]),
        "qk_rope_head_dim": size,
        "v_head_dim": rng.choice([4, 7, 16]),
        "n_routed_experts": groups * in_group,
        "n_shared_experts": rng.randint(1, 2),
        "num_experts_per_tok": rng.randint(1, kept * in_group),
        "n_group": groups,
        "topk_group": kept,
        "routed_scaling_factor": rng.choice([1.0, 2.5]),
        "hidden_act": rng.choice(["silu", "silu", "gelu"]),
        "max_position_embeddings": context,
        "rms_norm_eps": rng.choice([1e-6, 1e-5, 1e-3]),
        "rope_parameters": rope,
        "attention_bias": rng.random() < 0.5,
        "tie_word_embeddings": rng.random() < 0.3,
        "bos_token_id": 3,
        "eos_token_id": 4,
    }
    if family == "deepseek_v2":
        config["topk_method"] = rng.choice(["greedy", "group_limited_greedy"])
        config["mlp_bias"] = rng.random() < 0.5
        if config["topk_method"] == "greedy" and seed % 2:
            config["n_group"] = config["topk_group"] = None
            config["num_experts_per_tok"] = rng.randint(1, config["n_routed_experts"])
        return config
    config["norm_topk_prob"] = rng.random() < 0.7
    if family == "deepseek_v3":
        return {**config, "rope_interleave": rng.random() < 0.7}
    if rng.random() < 0.5:
        config["mlp_layer_types"] = [rng.choice(["dense", "sparse"]) for _ in range(depth)]
    # Many heads: with few of them scores of zero are common, and which of those are kept is an accident of torch.topk.
    config |= {"index_n_heads": rng.choice([12, 16]), "index_head_dim": size + rng.choice([0, 2, 6])}
    # In bfloat16, which is compared on seeds 0 and 1, a choice among near equals may fall otherwise.
    return {**config, "index_topk": (64, 64, 3, 8)[seed % 4]}


DRAWN = {name: partial(deepseek, name) for name in ("deepseek_v2", "deepseek_v3", "deepseek_v32")}
