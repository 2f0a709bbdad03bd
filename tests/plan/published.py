"""config.json of published models as their releases have them, and how many parameters those have.

Counts are to the last one: of the tensors in each release, tied ones once. `active` are those that one token touches.
What papers and model cards say, in billions, stands in `told` where they give a number: (all, active).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Published:
    config: dict[str, Any]
    parameters: int
    active: int | None = None  # None: all of them
    told: tuple[float, float | None] | None = None


def llama(width: int, depth: int, heads: int, kv_heads: int, hidden: int, **more: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": width,
        "initializer_range": 0.02,
        "intermediate_size": hidden,
        "max_position_embeddings": 2048,
        "num_attention_heads": heads,
        "num_hidden_layers": depth,
        "num_key_value_heads": kv_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "use_cache": True,
        "vocab_size": 32000,
        **more,
    }


def llama3(width: int, depth: int, heads: int, hidden: int, **more: Any) -> dict[str, Any]:
    newer = {"vocab_size": 128256, "max_position_embeddings": 8192, "rope_theta": 500000.0, "rms_norm_eps": 1e-5}
    newer |= {"attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000, "eos_token_id": 128001}
    return llama(width, depth, heads, 8, hidden, **newer, **more)


LLAMA31 = {
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}


def qwen25(width: int, depth: int, heads: int, kv_heads: int, hidden: int, **more: Any) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "hidden_act": "silu",
        "hidden_size": width,
        "initializer_range": 0.02,
        "intermediate_size": hidden,
        "max_position_embeddings": 131072,
        "max_window_layers": depth,
        "num_attention_heads": heads,
        "num_hidden_layers": depth,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": 152064,
        **more,
    }


SMALL_QWEN = {"vocab_size": 151936, "tie_word_embeddings": True, "max_position_embeddings": 32768}


def qwen3(width: int, depth: int, heads: int, kv_heads: int, hidden: int, **more: Any) -> dict[str, Any]:
    config = qwen25(width, depth, heads, kv_heads, hidden, vocab_size=151936, max_position_embeddings=40960)
    config.pop("use_mrope")
    newer = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False, "head_dim": 128}
    return {**config, **newer, "rope_scaling": None, "sliding_window": None, **more}


def gpt2(width: int, depth: int, heads: int, context: int = 1024) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "attn_pdrop": 0.1,
        "bos_token_id": 50256,
        "embd_pdrop": 0.1,
        "eos_token_id": 50256,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "n_ctx": context,
        "n_embd": width,
        "n_head": heads,
        "n_layer": depth,
        "n_positions": context,
        "resid_pdrop": 0.1,
        "summary_activation": None,
        "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True,
        "summary_type": "cls_index",
        "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "vocab_size": 50257,
    }


def bert(width: int, depth: int, heads: int) -> dict[str, Any]:
    return {
        "architectures": ["BertForMaskedLM"],
        "model_type": "bert",
        "attention_probs_dropout_prob": 0.1,
        "gradient_checkpointing": False,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": width,
        "initializer_range": 0.02,
        "intermediate_size": 4 * width,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "num_attention_heads": heads,
        "num_hidden_layers": depth,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "type_vocab_size": 2,
        "use_cache": True,
        "vocab_size": 30522,
    }


MISTRAL = {
    **llama(4096, 32, 32, 8, 14336),
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
}
del MISTRAL["pretraining_tp"], MISTRAL["rope_scaling"]

MIXTRAL = {
    **MISTRAL,
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "attention_dropout": 0.0,
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
    "output_router_logits": False,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.02,
    "sliding_window": None,
}

QWEN3_MOE = {
    **qwen3(2048, 48, 32, 4, 6144),
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
}

DEEPSEEK_V2 = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV2Config"},
    "aux_loss_alpha": 0.001,
    "bos_token_id": 100000,
    "eos_token_id": 100001,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "initializer_range": 0.02,
    "intermediate_size": 12288,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "moe_intermediate_size": 1536,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 160,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 128,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 60,
    "num_key_value_heads": 128,
    "pretraining_tp": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 16.0,
    "scoring_func": "softmax",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "topk_group": 3,
    "topk_method": "group_limited_greedy",
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 102400,
}

DEEPSEEK_V3 = {
    **DEEPSEEK_V2,
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_nextn_predict_layers": 1,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "vocab_size": 129280,
}
del DEEPSEEK_V3["pretraining_tp"], DEEPSEEK_V3["aux_loss_alpha"], DEEPSEEK_V3["seq_aux"]

MODELS: dict[str, Published] = {
    "llama-7b": Published(llama(4096, 32, 32, 32, 11008), 6_738_415_616, told=(6.7, None)),
    "llama-13b": Published(llama(5120, 40, 40, 40, 13824), 13_015_864_320, told=(13.0, None)),
    "llama-30b": Published(llama(6656, 60, 52, 52, 17920), 32_528_943_616, told=(32.5, None)),
    "llama-65b": Published(llama(8192, 80, 64, 64, 22016, rms_norm_eps=1e-5), 65_285_660_672, told=(65.2, None)),
    "llama-2-70b": Published(
        llama(8192, 80, 64, 8, 28672, max_position_embeddings=4096), 68_976_648_192, told=(70, None)
    ),
    "llama-3-8b": Published(llama3(4096, 32, 32, 14336), 8_030_261_248, told=(8, None)),
    "llama-3-70b": Published(llama3(8192, 80, 64, 28672), 70_553_706_496, told=(70, None)),
    "llama-3.1-405b": Published(llama3(16384, 126, 128, 53248) | LLAMA31, 405_853_388_800, told=(405, None)),
    "qwen2.5-0.5b": Published(qwen25(896, 24, 14, 2, 4864, **SMALL_QWEN), 494_032_768, told=(0.49, None)),
    "qwen2.5-1.5b": Published(qwen25(1536, 28, 12, 2, 8960, **SMALL_QWEN), 1_543_714_304, told=(1.54, None)),
    "qwen2.5-3b": Published(qwen25(2048, 36, 16, 2, 11008, **SMALL_QWEN), 3_085_938_688, told=(3.09, None)),
    "qwen2.5-7b": Published(qwen25(3584, 28, 28, 4, 18944), 7_615_616_512, told=(7.61, None)),
    "qwen2.5-14b": Published(qwen25(5120, 48, 40, 8, 13824), 14_770_033_664, told=(14.7, None)),
    "qwen2.5-32b": Published(qwen25(5120, 64, 40, 8, 27648), 32_763_876_352, told=(32.5, None)),
    "qwen2.5-72b": Published(qwen25(8192, 80, 64, 8, 29568), 72_706_203_648, told=(72.7, None)),
    "qwen3-0.6b": Published(qwen3(1024, 28, 16, 8, 3072, tie_word_embeddings=True), 596_049_920, told=(0.6, None)),
    "qwen3-8b": Published(qwen3(4096, 36, 32, 8, 12288), 8_190_735_360, told=(8.2, None)),
    "gpt2": Published(gpt2(768, 12, 12), 124_439_808, told=(0.124, None)),
    "gpt2-xl": Published(gpt2(1600, 48, 25), 1_557_611_200, told=(1.56, None)),
    # Brown et al. 2020, table 2.1; the form is GPT-2's.
    "gpt-3": Published(gpt2(12288, 96, 96, context=2048), 174_604_259_328, told=(175, None)),
    "bert-base": Published(bert(768, 12, 12), 109_514_298, told=(0.110, None)),
    "bert-large": Published(bert(1024, 24, 16), 335_174_458, told=(0.340, None)),
    "mistral-7b": Published(MISTRAL, 7_241_732_096, told=(7.24, None)),
    "mixtral-8x7b": Published(MIXTRAL, 46_702_792_704, 12_879_925_248, told=(46.7, 12.9)),
    "qwen3-30b-a3b": Published(QWEN3_MOE, 30_532_122_624, 3_353_032_704, told=(30.5, 3.3)),
    "deepseek-v2": Published(DEEPSEEK_V2, 235_741_434_880, 21_375_800_320, told=(236, 21)),
    "deepseek-v3": Published(DEEPSEEK_V3, 671_026_419_200, 37_552_297_472, told=(671, 37)),
}
