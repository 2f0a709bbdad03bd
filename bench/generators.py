"""Who generates in `engine.py`: dougong's engine with each storage, and its peers, on one random model."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHAPE = {
    "model_type": "qwen2",
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}
QUICK = {**SHAPE, "num_hidden_layers": 2, "vocab_size": 4096}
# name -> (type of the activations, what `quantize` gets, group)
STORAGES: dict[str, tuple[str, str | None, int]] = {
    "f32": ("float32", "packed", 32),
    "bf16": ("bfloat16", "packed", 32),
    "bf16-plain": ("bfloat16", None, 32),
    "int8": ("float32", "int8", 32),
    "int8-bf16": ("bfloat16", "int8", 32),
    "int4": ("float32", "int4", 32),
    "int4-64": ("float32", "int4", 64),
    "int4-128": ("float32", "int4", 128),
    "int4-bf16": ("bfloat16", "int4", 32),
}
PEERS = {
    "transformers-f32": "transformers",
    "transformers-bf16": "transformers",
    "vllm-bf16": "vllm",
    "llama.cpp-bf16": "llama_cpp",
    "llama.cpp-q8_0": "llama_cpp",
    "llama.cpp-q4_0": "llama_cpp",
    "openvino-int8": "optimum.intel",
    "openvino-int4": "optimum.intel",
}
Prompts = list[list[int]]
Generate = Callable[[Prompts, int], None]


# Contenders: each function gives one that continues every prompt by exactly n tokens, greedily, ignoring ends of text.
def ours(storage: str, shape: dict[str, Any]) -> Generate:
    import torch

    from dougong.base.allocator import keep_memory
    from dougong.compress import fuse, quantize
    from dougong.engine import Engine, Sampling
    from dougong.hub import LanguageModel
    from dougong.hub.families import family_named
    from dougong.model import Model

    kind, method, group = STORAGES[storage]
    model = Model(family_named("qwen2").from_config(shape)).to(getattr(torch, kind))
    fill(model)
    lm = LanguageModel(model, family="qwen2")
    if method is not None:
        fuse(lm)
        quantize(lm, method, group)
    keep_memory()  # as load(..., quantize=...) does, once the floats are gone
    engine = Engine(lm, memory="2GiB", prefix_cache=False)
    return lambda prompts, n: (
        engine.generate(prompts, Sampling(max_tokens=n, temperature=0.0, ignore_eos=True, logprobs=False)) and None
    )


def fill(model: Any) -> None:
    """Matrices of standard deviation 0.02, norms 1, biases 0, in place."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0 if "norm" in name else 0.0)
            else:
                parameter.normal_(0.0, 0.02)


def transformers(name: str, shape: dict[str, Any]) -> Generate:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.set_default_dtype(torch.float32 if name.endswith("f32") else torch.bfloat16)
    model = Qwen2ForCausalLM(Qwen2Config(**{key: value for key, value in shape.items() if key != "model_type"})).eval()
    return padded(model)


def padded(model: Any) -> Generate:
    """Generation by a model with transformers' interface: prompts padded on the left into one batch."""
    import torch

    @torch.inference_mode()
    def generate(prompts: Prompts, n: int) -> None:
        longest = max(map(len, prompts))
        tokens = torch.tensor([[0] * (longest - len(each)) + each for each in prompts])
        mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in prompts])
        model.generate(
            tokens,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=n,
            min_new_tokens=n,
            pad_token_id=0,
            eos_token_id=None,
        )

    return generate


def openvino(name: str, shape: dict[str, Any], folder: str) -> Generate:
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    bits = OVWeightQuantizationConfig(bits=8 if name.endswith("int8") else 4)
    return padded(OVModelForCausalLM.from_pretrained(folder, export=True, quantization_config=bits))


def vllm(name: str, shape: dict[str, Any], folder: str) -> Generate:
    from vllm import LLM, SamplingParams

    settings = {"dtype": "bfloat16", "skip_tokenizer_init": True, "max_model_len": 4096, "enable_prefix_caching": False}
    llm = LLM(model=folder, gpu_memory_utilization=0.3, **settings)  # the share of the memory, on a CPU too

    def generate(prompts: Prompts, n: int) -> None:
        sampling = SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True, detokenize=False)
        llm.generate([{"prompt_token_ids": each} for each in prompts], sampling, use_tqdm=False)

    return generate


def llama_cpp(name: str, shape: dict[str, Any], folder: str, threads: int) -> Generate:
    import ctypes

    import llama_cpp as lib
    import numpy as np

    lib.llama_backend_init()
    quiet = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(quiet, ctypes.c_void_p(0))
    model = lib.llama_model_load_from_file(
        gguf(Path(folder), name.removeprefix("llama.cpp-")).encode(), lib.llama_model_default_params()
    )
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = 16 * 512, 2048, 512, 16
    params.n_threads = params.n_threads_batch = threads
    context = lib.llama_init_from_model(model, params)
    vocab = shape["vocab_size"]

    def decode(work: list[tuple[int, int, int, bool]]) -> list[int]:
        """One batch of (token, position, sequence, whether its logits are wanted); the best next tokens."""
        batch = lib.llama_batch_init(len(work), 0, 1)
        batch.n_tokens = len(work)
        for row, (token, position, sequence, wanted) in enumerate(work):
            batch.token[row], batch.pos[row], batch.n_seq_id[row] = token, position, 1
            batch.seq_id[row][0], batch.logits[row] = sequence, wanted
        if lib.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")
        rows = [row for row, each in enumerate(work) if each[3]]
        best = [int(np.ctypeslib.as_array(lib.llama_get_logits_ith(context, row), (vocab,)).argmax()) for row in rows]
        lib.llama_batch_free(batch)
        return best

    def generate(prompts: Prompts, n: int) -> None:
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        work = [
            (token, place, number, place + 1 == len(prompt))
            for number, prompt in enumerate(prompts)
            for place, token in enumerate(prompt)
        ]
        tokens = [best for start in range(0, len(work), 2048) for best in decode(work[start : start + 2048])]
        for step in range(n - 1):
            tokens = decode([(token, len(prompts[row]) + step, row, True) for row, token in enumerate(tokens)])

    return generate


def gguf(folder: Path, kind: str) -> str:
    """The checkpoint as a GGUF file of the kind, made once: without a vocabulary, which generation by ids needs not."""
    import gguf as library
    import torch
    from safetensors.torch import load_file

    source = folder / "bf16.gguf"
    if not source.exists():
        config = json.loads((folder / "config.json").read_text())
        writer = library.GGUFWriter(source, "qwen2")
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_embedding_length(config["hidden_size"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(config["num_attention_heads"])
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_rope_freq_base(SHAPE["rope_theta"])
        writer.add_vocab_size(config["vocab_size"])
        writer.add_tokenizer_model("none")
        names = library.get_tensor_name_map(library.MODEL_ARCH.QWEN2, config["num_hidden_layers"])
        for name, tensor in load_file(folder / "model.safetensors").items():
            place = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if tensor.ndim == 1:
                writer.add_tensor(place, tensor.float().numpy())
            else:
                bits = tensor.to(torch.bfloat16).view(torch.uint8).numpy()
                writer.add_tensor(place, bits, raw_dtype=library.GGMLQuantizationType.BF16)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    if kind == "bf16":
        return str(source)
    import llama_cpp as lib

    target = folder / f"{kind}.gguf"
    if not target.exists():
        params = lib.llama_model_quantize_default_params()
        params.ftype = {"q8_0": lib.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_0": lib.LLAMA_FTYPE_MOSTLY_Q4_0}[kind]
        if lib.llama_model_quantize(str(source).encode(), str(target).encode(), params):
            raise RuntimeError(f"llama.cpp could not quantise to {kind}")
    return str(target)


def worker(name: str, shape: dict[str, Any], threads: int, folder: str) -> None:
    """Answer each job on standard input, {"lengths": [...], "n": ..., "seed": ...}, with the seconds it took and the
    process's memory in MB."""
    import random

    import torch

    torch.set_num_threads(threads)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes elsewhere
    if name in STORAGES:
        generate = ours(name, shape)
    elif name.startswith("transformers"):
        generate = transformers(name, shape)
    elif name.startswith("vllm"):
        generate = vllm(name, shape, folder)
    elif name.startswith("openvino"):
        generate = openvino(name, shape, folder)
    else:
        generate = llama_cpp(name, shape, folder, threads)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        draw = random.Random(job["seed"])
        prompts = [[draw.randrange(shape["vocab_size"]) for _ in range(length)] for length in job["lengths"]]
        began = time.perf_counter()
        generate(prompts, job["n"])
        print(json.dumps([time.perf_counter() - began, memory()]), file=answers, flush=True)


def memory() -> float:
    """MB that this process holds now, without pages of files that others could drop."""
    for line in Path("/proc/self/status").read_text().splitlines() if Path("/proc/self/status").exists() else ():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    return math.nan


def checkpoint(folder: str, shape: dict[str, Any]) -> None:
    """The random model as a folder, for peers that open one."""
    import torch

    import dougong
    from dougong.hub.families import family_named
    from dougong.model import Model

    model = Model(family_named("qwen2").from_config(shape)).bfloat16()
    fill(model)
    dougong.save(dougong.LanguageModel(model, family="qwen2", config=dict(shape)), Path(folder) / "model")
    del model
    torch.set_num_threads(1)
