"""Tiny models of transformers, drawn at random, for comparison: the reference that dougong itself never imports."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch

DRAWS = 18
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


def draw_config(family: str, seed: int) -> dict[str, Any]:
    """Keyword arguments of the family's config class. Every kind of scaling comes up three times."""
    rng = random.Random(f"{family} {seed}")
    if family == "gpt2":
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


def build(family: str, config: dict[str, Any], seed: int = 0) -> Any:
    """A model of transformers with every parameter, norms and biases too, moved off its initial value."""
    import transformers

    described = transformers.AutoConfig.for_model(family, **json.loads(json.dumps(config)))
    model = transformers.AutoModelForCausalLM.from_config(described, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.3 * noise if is_norm else noise * (0.3 if parameter.ndim == 1 else 0.25))
    return model


def reopen(folder: Path, dtype: str = "auto") -> Any:
    """What transformers makes of a folder; nothing in it may be missing or unexpected."""
    import transformers

    model, told = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True, dtype=dtype
    )
    assert not any(told.values()), told
    return model.eval()


def respell(folder: Path, name: str) -> None:
    """Write a saved config.json in the spelling of transformers 4; `name` is its "type" or "rope_type"."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {name: kind, **rope}
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config))


def logits(model: Any, tokens: torch.Tensor, padding: torch.Tensor | None = None) -> torch.Tensor:
    """Logits of a model of transformers; behind left padding positions start at 0, as generate() counts them."""
    with torch.no_grad():
        if padding is None:
            return model(input_ids=tokens).logits
        mask = (~padding).long()
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        return model(input_ids=tokens, attention_mask=mask, position_ids=positions).logits


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference as a share of the largest logit."""
    return float((ours - theirs).abs().max() / theirs.abs().max())
