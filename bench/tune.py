"""Seconds of a whole LoRA training step (forward, backward, clip, optimizer): dougong against PEFT on transformers'
Llama of the identical shape, adapters on the same matrices. Each contender lives in a process of its own; the steps are
interleaved, medians and ratios are printed. `--memory` measures the peak of QLoRA on a model of 0.5B parameters.

    python bench/tune.py                     # the small shape: LoRA and DoRA
    python bench/tune.py --shape large --methods lora --rounds 10
    python bench/tune.py --memory
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time

SHAPES = {
    "small": {"width": 256, "depth": 4, "heads": 4, "ffn": 704, "vocab": 4096, "batch": 4, "length": 256},
    "large": {"width": 512, "depth": 8, "heads": 8, "ffn": 1408, "vocab": 8192, "batch": 4, "length": 512},
    # Qwen2.5-0.5B, but for the sharing of keys.
    "0.5B": {"width": 896, "depth": 24, "heads": 14, "ffn": 4864, "vocab": 151936, "batch": 1, "length": 128},
}
CONTENDERS = {
    "peft": "PEFT, as it comes",
    "peft+malloc": "PEFT, with dougong's allocator setting",
    "dougong": "dougong",
}
METHODS = ("lora", "dora", "ia3")
OURS = "q k v o gate up down"


def worker(contender: str, method: str, shape: dict[str, int], rank: int, threads: int) -> None:
    """Answer each line on standard input with the seconds of one training step."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    tokens = torch.randint(0, shape["vocab"], (shape["batch"], shape["length"] + 1))
    make = ours if contender == "dougong" else theirs
    step = make(contender, method, shape, rank, tokens)
    for _ in range(3):
        step()
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        step()
        print(time.perf_counter() - began, flush=True)


def ours(contender, method, shape, rank, tokens, quantize=None):
    import torch

    from dougong.base.allocator import keep_memory
    from dougong.data.batch import Batch
    from dougong.model import Model, decoder_spec, initialise
    from dougong.train.loop import Training, _Step, next_token
    from dougong.train.optimizers import Optimizer
    from dougong.train.ranks import Ranks
    from dougong.tune import IA3, DoRA, LoRA, attach, quantize_base

    keep_memory()
    tied = quantize is not None
    spec = decoder_spec(
        shape["vocab"], shape["width"], shape["depth"], shape["heads"], 1024, ffn=shape["ffn"], tied=tied
    )
    model = initialise(Model(spec))
    if quantize is not None:
        quantize_base(model, quantize)
    chosen = {"lora": LoRA(rank), "dora": DoRA(rank), "ia3": IA3()}[method]
    attach(model, chosen, "k v down" if method == "ia3" else OURS)
    training = Training(optimizer=Optimizer(rate=1e-4, weight_decay=0.0), recompute=quantize is not None)
    optimizers = training.optimizer.build(model, 1000)
    run = _Step(model, training, next_token, Ranks())
    model.train()
    positions = torch.arange(shape["length"]).expand(shape["batch"], -1)
    batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), positions, None)
    return lambda: run(batch, lambda scale: optimizers.step(1.0, scale))


def theirs(contender, method, shape, rank, tokens):
    import peft
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if contender == "peft+malloc":
        from dougong.base.allocator import keep_memory

        keep_memory()
    config = LlamaConfig(
        hidden_size=shape["width"],
        num_hidden_layers=shape["depth"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["heads"],
        intermediate_size=shape["ffn"],
        vocab_size=shape["vocab"],
        max_position_embeddings=1024,
    )
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapter = (
        peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])
        if method == "ia3"
        else peft.LoraConfig(r=rank, lora_alpha=16, target_modules=names, use_dora=method == "dora")
    )
    model = peft.get_peft_model(LlamaForCausalLM(config), adapter)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    inputs = tokens[:, :-1].contiguous()

    def step():
        model(input_ids=inputs, labels=inputs, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def memory(rank: int, threads: int) -> None:
    """Print the peak of resident memory over three QLoRA steps on the 0.5B shape, model building left out of none."""
    import torch

    torch.set_num_threads(threads)
    shape = SHAPES["0.5B"]
    tokens = torch.randint(0, shape["vocab"], (shape["batch"], shape["length"] + 1))
    step = ours("dougong", "lora", shape, rank, tokens, quantize="nf4")
    built = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    began = time.perf_counter()
    for _ in range(3):
        step()
    seconds = (time.perf_counter() - began) / 3
    now = resident()
    print(
        f"QLoRA on the 0.5B shape, {shape['length']} tokens: {now:.2f} GB resident after 3 steps, {seconds:.1f} s each"
    )
    print(f"peak over building (float32, before it is quantised) and training: {built:.2f} GB, then ", end="")
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


def resident() -> float:
    """Gigabytes of resident memory now."""
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * resource.getpagesize() / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--methods", nargs="+", default=["lora", "dora"], choices=METHODS)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        memory(options.rank, options.threads)
        return
    shape = SHAPES[options.shape]
    if options.worker:
        worker(options.worker[0], options.worker[1], shape, options.rank, options.threads)
        return
    print(f"shape {options.shape}: {shape}, rank {options.rank}, {options.threads} threads")
    running = {}
    for method in options.methods:
        for name in CONTENDERS:
            command = [sys.executable, __file__, "--shape", options.shape, "--threads", str(options.threads)]
            command += ["--rank", str(options.rank), "--worker", name, method]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            process = subprocess.Popen(command, text=True, **pipes)
            while (line := process.stdout.readline()) and line.strip() != "ready":
                pass
            if line:
                running[method, name] = process
            else:
                print(f"{name} {method}: did not start (is peft installed?)")
    times = {key: [] for key in running}
    for _ in range(options.rounds):
        for key, process in running.items():
            process.stdin.write("step\n")
            process.stdin.flush()
            times[key].append(float(process.stdout.readline()))
    for process in running.values():
        process.stdin.close()
        process.wait()
    for method in options.methods:
        base = times.get((method, "peft"))
        for name, label in CONTENDERS.items():
            if (method, name) in times:
                seconds = statistics.median(times[method, name])
                ratio = f"{seconds / statistics.median(base):8.2f}x PEFT's time" if base else ""
                print(f"{method:6}{label:42}{1000 * seconds:9.0f} ms{ratio}")


if __name__ == "__main__":
    main()
