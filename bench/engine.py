"""Tokens a second of whole generations: dougong's engine against transformers and, where they are installed,
llama.cpp, vLLM and OpenVINO, on random weights of the exact shape of Qwen2.5-0.5B. Each contender lives in a process of
its own, as a user would run it; all take turns within each round, and medians and ratios are printed, with the memory
of each process and, for our storages, the perplexity of a trained small model (DOUGONG_DATA names the data).

    python bench/engine.py                                          # everything that is installed
    python bench/engine.py --arms decode1,prefill --storages bf16,int8 --peers transformers-bf16
    python bench/engine.py --quick                                  # 2 layers, few tokens: that it runs at all

arms       decode1: tokens after the first of one answer; prefill: prompt tokens until the first; decode16: tokens after
           the first of 16 answers to prompts of different lengths at once (transformers and OpenVINO: one padded batch)
storages   f32, bf16 (packed for oneDNN), bf16-plain (as loaded), int8, int4 (groups of 32; -64, -128), with float32
           activations; int8-bf16, int4-bf16 with bfloat16 activations
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
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


class Contender:
    def __init__(self, name: str, options: argparse.Namespace, folder: str):
        self.name = name
        python = options.python.get(PEERS.get(name, ""), sys.executable)
        command = [python, __file__, "--worker", name, "--threads", str(options.threads), "--folder", folder]
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "VLLM_TARGET_DEVICE": "cpu"}
        self.process = subprocess.Popen(
            command + ["--quick"] * options.quick,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if options.verbose else subprocess.DEVNULL,
            env=environment,
        )

    def ready(self) -> bool:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip() == "ready"

    def run(self, lengths: list[int], n: int, seed: int) -> tuple[float, float]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"lengths": lengths, "n": n, "seed": seed}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise EOFError(f"{self.name} ended while it worked; --verbose shows what it said")
        seconds, megabytes = json.loads(line)
        return seconds, megabytes

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(contender: Contender, arm: str, options: argparse.Namespace, seed: int) -> tuple[float, float]:
    """(tokens a second, MB). The prompt's share is taken off by a run of one token, on other prompts of the lengths."""
    prompt, n = options.prompt, options.tokens
    lengths = [prompt] if arm != "decode16" else [prompt // 4 + prompt * row // 20 for row in range(16)]
    first, megabytes = contender.run(lengths, 1, 2 * seed)
    if arm == "prefill":
        return sum(lengths) / first, megabytes
    whole, megabytes = contender.run(lengths, n, 2 * seed + 1)
    return len(lengths) * (n - 1) / (whole - first) if whole > first else math.nan, megabytes


def perplexities(storages: list[str], model: str | None, text: str | None) -> dict[str, str]:
    """Of a trained model on a text, by storage: of stories260K on stories unless others are named."""
    data = Path(os.environ.get("DOUGONG_DATA", "."))
    path = Path(model) if model else data / "weights" / "stories260K" / "stories260K.bin"
    words = Path(text) if text else data / "text" / "tinystories_samples" / "tinystories_sample.txt"
    if not path.exists() or not words.exists():
        print("perplexity: skipped, DOUGONG_DATA does not name the data; --model and --text name others")
        return {}
    import torch

    import dougong
    from dougong.parts.int4 import Int4

    out = {}
    for storage in storages:
        kind, method, group = STORAGES[storage]
        lm = dougong.load(path, dtype=kind, quantize=method, group=group)
        assert lm.tokenizer is not None
        length = min(256, lm.spec.context)
        ids = lm.tokenizer.encode(words.read_text(encoding="utf-8")[:40000])
        rows = torch.tensor(ids[: len(ids) // (length + 1) * (length + 1)]).view(-1, length + 1)[:32]
        with torch.inference_mode():
            scores = lm.model(rows[:, :-1]).logits.float().log_softmax(-1)
            loss = -scores.gather(-1, rows[:, 1:, None]).mean()
        # A small model's matrices may have no room for groups: they are in 8 bits then.
        here = method != "int4" or any(isinstance(each, Int4) for each in lm.model.modules())
        out[storage] = f"{math.exp(float(loss)):.3f}" if here else "no groups"
    return out


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


def report(
    results: dict[tuple[str, str], list[float]], megabytes: dict[str, float], options: argparse.Namespace
) -> None:
    """Medians, then each of ours as multiples of every peer."""
    medians = {key: statistics.median(values) for key, values in results.items()}
    names = list(dict.fromkeys(name for name, _ in medians))
    ppl = perplexities([name for name in names if name in STORAGES], options.model, options.text)
    arms = options.arms
    print(f"{'tokens/s':20}" + "".join(f"{arm:>10}" for arm in arms) + f"{'MB':>8}{'perplexity':>12}")
    for name in names:
        cells = "".join(f"{medians.get((name, arm), math.nan):10.1f}" for arm in arms)
        print(f"{name:20}{cells}{megabytes[name]:8.0f}{ppl.get(name, ''):>12}")
    for arm in arms:
        peers = [name for name in names if name in PEERS and (name, arm) in medians]
        if not peers:
            continue
        print(f"\n{arm}, times the peer:\n{'':20}" + "".join(f"{peer:>19}" for peer in peers))
        for name in names:
            if name in STORAGES and (name, arm) in medians:
                ratios = "".join(f"{medians[name, arm] / medians[peer, arm]:18.2f}x" for peer in peers)
                print(f"{name:20}{ratios}")


def installed(package: str, python: str | None) -> bool:
    if python is not None:
        return not subprocess.run([python, "-c", f"import {package}"], capture_output=True).returncode
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # the package's own parent
        return False


def chosen(options: argparse.Namespace) -> list[str]:
    """The contenders asked for that can run, ours and theirs in turn. Says what is left out."""
    peers = []
    for name in options.peers:
        if installed(PEERS[name], options.python.get(PEERS[name])):
            peers.append(name)
        else:
            print(f"{name}: skipped, {PEERS[name]} is not installed")
    return [*options.storages, *peers]


def several(known: dict[str, Any] | tuple[str, ...]) -> Callable[[str], list[str]]:
    def parse(given: str) -> list[str]:
        names = [name for name in given.split(",") if name]
        if wrong := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{wrong[0]!r} is not known; known: {', '.join(known)}")
        return names

    return parse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arms = ("decode1", "prefill", "decode16")
    parser.add_argument("--arms", type=several(arms), default=list(arms))
    parser.add_argument("--storages", type=several(STORAGES), default=["f32", "bf16", "int8", "int4"])
    parser.add_argument("--peers", type=several(PEERS), default=list(PEERS))
    parser.add_argument(
        "--python",
        type=lambda given: tuple(given.split("=", 1)),
        action="append",
        default=[],
        metavar="PACKAGE=PATH",
        help="the interpreter that has a peer's package, where its requirements do not go with ours",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", help="whose perplexity is shown (default: stories260K of DOUGONG_DATA)")
    parser.add_argument("--text", help="the text for it")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--verbose", action="store_true", help="show what the contenders print")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.python = dict(options.python)
    shape = QUICK if options.quick else SHAPE
    if options.worker:
        worker(options.worker, shape, options.threads, options.folder)
        return
    if options.quick:
        options.rounds, options.prompt, options.tokens = min(options.rounds, 2), 32, 8
    names = chosen(options)
    with tempfile.TemporaryDirectory() as folder:
        if any(PEERS.get(name, "transformers") != "transformers" for name in names):
            checkpoint(folder, shape)
        race(names, options, str(Path(folder) / "model"))


def race(names: list[str], options: argparse.Namespace, folder: str) -> None:
    running = []
    for name in names:
        contender = Contender(name, options, folder)
        if contender.ready():
            running.append(contender)
            print(f"ready: {name}", file=sys.stderr)
        else:
            print(f"{name}: did not start; --verbose shows why")
            contender.close()
    results: dict[tuple[str, str], list[float]] = {}
    megabytes: dict[str, float] = {}
    for number in range(options.rounds + 1):  # the first round is to warm up
        for arm in options.arms:
            for contender in running:
                speed, megabytes[contender.name] = measure(contender, arm, options, number)
                if number:
                    results.setdefault((contender.name, arm), []).append(speed)
    for contender in running:
        contender.close()
    report(results, megabytes, options)


if __name__ == "__main__":
    main()
