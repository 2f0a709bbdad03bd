"""Encoders and encoder-decoders, drawn at random. Not decoders: the tests are in test_parity_shapes.py."""

from __future__ import annotations

from random import Random
from typing import Any

BOS, EOS, PAD = 3, 4, 1
LABELS = {"0": "calm", "1": "glad", "2": "sad"}


def _sizes(rng: Random) -> tuple[int, int, int]:
    """Width, heads and the size of a head; heads need not be a power of two."""
    heads, size = rng.choice([(1, 16), (2, 8), (3, 8), (4, 6)])
    return heads * size, heads, size


def _labels(rng: Random) -> dict[str, Any]:
    count = rng.choice([1, 3])
    names = {str(index): LABELS[str(index)] for index in range(count)}
    return {"id2label": names, "label2id": {label: int(index) for index, label in names.items()}}


def bert(rng: Random, seed: int) -> dict[str, Any]:
    """Odd seeds: a head of its own."""
    width, heads, _ = _sizes(rng)
    return {
        "vocab_size": rng.randint(40, 60),
        "hidden_size": width,
        "num_hidden_layers": rng.randint(1, 3),
        "num_attention_heads": heads,
        "intermediate_size": rng.randint(10, 40),
        "hidden_act": rng.choice(["gelu", "relu", "gelu_new", "silu"]),
        "hidden_dropout_prob": rng.choice([0.0, 0.1]),
        "attention_probs_dropout_prob": rng.choice([0.0, 0.2]),
        "classifier_dropout": rng.choice([None, 0.3]),
        "max_position_embeddings": rng.randint(50, 70),
        "type_vocab_size": rng.randint(1, 3),
        "layer_norm_eps": rng.choice([1e-12, 1e-5]),
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "tie_word_embeddings": not seed % 2,
        **_labels(rng),
    }


def roberta(rng: Random, seed: int) -> dict[str, Any]:
    return bert(rng, seed)


def modernbert(rng: Random, seed: int) -> dict[str, Any]:
    width, heads, _ = _sizes(rng)
    depth = rng.randint(1, 5)
    config = {
        "vocab_size": rng.randint(40, 60),
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": rng.randint(10, 40),
        "hidden_activation": rng.choice(["gelu", "silu"]),
        "max_position_embeddings": 64,
        "norm_bias": rng.random() < 0.3,
        "attention_bias": rng.random() < 0.3,
        "mlp_bias": rng.random() < 0.3,
        "decoder_bias": rng.random() < 0.7,
        "classifier_bias": rng.random() < 0.3,
        "classifier_pooling": rng.choice(["cls", "mean"]),
        "classifier_dropout": rng.choice([0.0, 0.2]),
        "local_attention": rng.choice([4, 8, 128]),
        "embedding_dropout": rng.choice([0.0, 0.1]),
        "attention_dropout": rng.choice([0.0, 0.1]),
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "cls_token_id": BOS,
        "sep_token_id": EOS,
        "pad_token_id": PAD,
        "tie_word_embeddings": rng.random() < 0.7,
        **_labels(rng),
    }
    if rng.random() < 0.5:
        config["layer_types"] = [rng.choice(["full_attention", "sliding_attention"]) for _ in range(depth)]
    if seed % 3 == 1:
        config["rope_parameters"] = {
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 777.0},
        }
    return config


def t5(rng: Random, seed: int) -> dict[str, Any]:
    """Odd seeds: v1.1, gated and with a head of its own."""
    return {
        "vocab_size": rng.randint(40, 60),
        "d_model": rng.choice([16, 24]),
        "d_kv": rng.choice([4, 6]),
        "num_heads": rng.randint(1, 4),
        "d_ff": rng.randint(10, 40),
        "num_layers": rng.randint(1, 3),
        "num_decoder_layers": rng.randint(1, 3),
        "relative_attention_num_buckets": rng.choice([8, 32]),
        "relative_attention_max_distance": rng.choice([16, 128]),
        "dropout_rate": rng.choice([0.0, 0.1]),
        "layer_norm_epsilon": rng.choice([1e-6, 1e-5]),
        "feed_forward_proj": rng.choice(["gated-gelu", "gated-silu"] if seed % 2 else ["relu", "gelu"]),
        "tie_word_embeddings": not seed % 2,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "decoder_start_token_id": PAD,
    }


def bart(rng: Random, seed: int) -> dict[str, Any]:
    """Odd seeds: tables of tokens of their own for the encoder, the decoder and the head."""
    width, heads, _ = _sizes(rng)
    return {
        "vocab_size": rng.randint(40, 60),
        "d_model": width,
        "encoder_layers": rng.randint(1, 3),
        "decoder_layers": rng.randint(1, 3),
        "encoder_attention_heads": heads,
        "decoder_attention_heads": rng.choice([1, 2]),
        "encoder_ffn_dim": rng.randint(10, 40),
        "decoder_ffn_dim": rng.randint(10, 40),
        "activation_function": rng.choice(["gelu", "relu"]),
        "tie_word_embeddings": not seed % 2,
        "max_position_embeddings": rng.randint(50, 70),
        "scale_embedding": rng.random() < 0.5,
        "dropout": rng.choice([0.0, 0.1]),
        "attention_dropout": rng.choice([0.0, 0.1]),
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "decoder_start_token_id": EOS,
        "forced_eos_token_id": EOS,
    }


def switch_transformers(rng: Random, seed: int) -> dict[str, Any]:
    """Odd seeds: tables of their own, as in BART."""
    depth = rng.choice([2, 4])
    return {
        "vocab_size": rng.randint(40, 60),
        "d_model": rng.choice([16, 24]),
        "d_kv": rng.choice([4, 6]),
        "num_heads": rng.randint(1, 4),
        "d_ff": rng.randint(10, 40),
        "num_layers": depth,
        "num_decoder_layers": rng.choice([2, 3]),
        "num_sparse_encoder_layers": rng.choice([1, 2]),
        "num_sparse_decoder_layers": rng.choice([0, 1]),
        "num_experts": rng.choice([2, 3]),
        "expert_capacity": rng.choice([4, 64]),
        "tie_word_embeddings": not seed % 2,
        "router_bias": rng.random() < 0.5,
        "dense_act_fn": rng.choice(["relu", "gelu"]),
        "dropout_rate": rng.choice([0.0, 0.1]),
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "decoder_start_token_id": PAD,
    }


DRAWN_SHAPES = {
    "bert": bert,
    "roberta": roberta,
    "modernbert": modernbert,
    "t5": t5,
    "bart": bart,
    "switch_transformers": switch_transformers,
}
