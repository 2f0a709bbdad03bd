"""Parameter counts of published models, from their published config.json, to the last one.

Sources: the config.json and the tensor counts of each release; GPT-3 from table 2.1 of Brown et al. 2020.
"""

from __future__ import annotations

import pytest

from dougong.hub.families import family_named
from dougong.model import ModelSpec
from dougong.plan import plan


def read(config: dict) -> ModelSpec:
    return family_named(config["model_type"]).from_config(config)


def llama(width, depth, heads, kv_heads, hidden, vocab=32000, tied=False, context=2048, **more) -> ModelSpec:
    config = {
        "model_type": "llama",
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": hidden,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
    }
    return read(config | more)


def gpt2(width, depth, heads, vocab=50257, context=1024) -> ModelSpec:
    sizes = {"n_embd": width, "n_layer": depth, "n_head": heads, "vocab_size": vocab, "n_positions": context}
    return read({"model_type": "gpt2", "activation_function": "gelu_new", **sizes})


def llama3(width, depth, heads, hidden) -> ModelSpec:
    return llama(width, depth, heads, 8, hidden, vocab=128256, context=8192, rope_theta=500000.0)


def qwen(width, depth, heads, kv_heads, hidden, vocab=152064, tied=False) -> ModelSpec:
    return llama(width, depth, heads, kv_heads, hidden, vocab, tied, 32768, model_type="qwen2", rope_theta=1000000.0)


EXACT = {
    "llama-7b": (llama(4096, 32, 32, 32, 11008), 6_738_415_616),
    "llama-13b": (llama(5120, 40, 40, 40, 13824), 13_015_864_320),
    "llama-30b": (llama(6656, 60, 52, 52, 17920), 32_528_943_616),
    "llama-65b": (llama(8192, 80, 64, 64, 22016), 65_285_660_672),
    "llama-2-70b": (llama(8192, 80, 64, 8, 28672), 68_976_648_192),
    "llama-3-8b": (llama3(4096, 32, 32, 14336), 8_030_261_248),
    "llama-3-70b": (llama3(8192, 80, 64, 28672), 70_553_706_496),
    "llama-3.1-405b": (llama3(16384, 126, 128, 53248), 405_853_388_800),
    "qwen2.5-0.5b": (qwen(896, 24, 14, 2, 4864, 151936, tied=True), 494_032_768),
    "qwen2.5-1.5b": (qwen(1536, 28, 12, 2, 8960, 151936, tied=True), 1_543_714_304),
    "qwen2.5-3b": (qwen(2048, 36, 16, 2, 11008, 151936, tied=True), 3_085_938_688),
    "qwen2.5-7b": (qwen(3584, 28, 28, 4, 18944), 7_615_616_512),
    "qwen2.5-14b": (qwen(5120, 48, 40, 8, 13824), 14_770_033_664),
    "qwen2.5-32b": (qwen(5120, 64, 40, 8, 27648), 32_763_876_352),
    "qwen2.5-72b": (qwen(8192, 80, 64, 8, 29568), 72_706_203_648),
    "gpt2-124m": (gpt2(768, 12, 12), 124_439_808),
    "gpt2-1.5b": (gpt2(1600, 48, 25), 1_557_611_200),
}


@pytest.mark.parametrize("name", EXACT)
def test_parameters_equal_the_published_count(name):
    spec, published = EXACT[name]
    assert spec.parameters() == published


def test_gpt3_has_175_billion():
    assert round(gpt2(12288, 96, 96, context=2048).parameters() / 1e9) == 175


def test_a_thousand_tokens_of_llama_7b_keep_half_a_gigabyte():
    """2 x 32 layers x 4096 x 2 bytes = 0.5 MB a token: a quarter of the 2 GB that is often told."""
    bill = plan(EXACT["llama-7b"][0], serving_context=1000, serving_dtype="float16")
    assert bill.serving.state_bytes_per_token == 2 * 32 * 4096 * 2
    assert bill.serving.state_bytes == 524_288_000


def test_flops_agree_with_the_rule_of_six():
    """Training takes about 6 operations a parameter and token (Kaplan et al. 2020), embeddings and attention aside."""
    spec = EXACT["llama-7b"][0]
    bill = plan(spec)
    matrices = bill.parameters - spec.vocab * spec.width
    assert 6 * matrices < bill.training_flops_per_token < 1.1 * 6 * matrices
