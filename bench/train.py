"""Tokens a second of whole training steps (forward, backward, clip, optimizer): dougong against transformers' Llama of
the identical shape with fused AdamW. Each contender lives in a process of its own, as a user would run it; the steps
are interleaved, and medians and ratios are printed.

    python bench/train.py                    # the small shape, all modes
    python bench/train.py --shape large --modes eager --rounds 10
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

SHAPES = {
    "small": {"width": 256, "depth": 4, "heads": 4, "ffn": 704, "vocab": 4096, "batch": 4, "length": 256},
    "large": {"width": 512, "depth": 8, "heads": 8, "ffn": 1408, "vocab": 8192, "batch": 4, "length": 512},
}
CONTENDERS = {
    "transformers": "transformers, as it comes",
    "transformers+malloc": "transformers, with dougong's allocator setting",
    "dougong": "dougong",
}


def worker(contender: str, shape: dict[str, int], mode: str, precision: str, threads: int) -> None:
    """Answer each line on standard input with the seconds of one training step."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    tokens = torch.randint(0, shape["vocab"], (shape["batch"], shape["length"] + 1))
    step = (
        ours(shape, mode, precision, tokens)
        if contender == "dougong"
        else theirs(contender, shape, mode, precision, tokens)
    )
    for _ in range(3):
        step()
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        step()
        print(time.perf_counter() - began, flush=True)


def ours(shape, mode, precision, tokens):
    import torch

    from dougong.base.allocator import keep_memory
    from dougong.data.batch import Batch
    from dougong.model import Model, decoder_spec, initialise
    from dougong.train.loop import Training, _Step, next_token
    from dougong.train.optimizers import Optimizer
    from dougong.train.ranks import Ranks

    keep_memory()
    spec = decoder_spec(
        shape["vocab"], shape["width"], shape["depth"], shape["heads"], 1024, ffn=shape["ffn"], tied=False
    )
    model = initialise(Model(spec))
    training = Training(optimizer=Optimizer(rate=1e-4), precision=precision, compile=mode == "compiled")
    optimizers = training.optimizer.build(model)
    run = _Step(model, training, next_token, Ranks())
    positions = torch.arange(shape["length"]).expand(shape["batch"], -1)
    batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), positions, None)
    return lambda: run(batch, lambda scale: optimizers.step(1.0, scale))


def theirs(contender, shape, mode, precision, tokens):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if contender == "transformers+malloc":
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
    model = LlamaForCausalLM(config)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    forward = torch.compile(model) if mode == "compiled" else model
    inputs = tokens[:, :-1].contiguous()

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = forward(input_ids=inputs, labels=inputs, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


@dataclass
class Contender:
    name: str
    mode: str
    precision: str
    process: subprocess.Popen

    def step(self) -> float:
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def flops(shape: dict[str, int]) -> float:
    """Multiply-adds times two of one step's matrix products: forward once, backward twice, causal attention halved."""
    layer = 4 * shape["width"] ** 2 + 3 * shape["width"] * shape["ffn"]
    weights = shape["depth"] * layer + shape["vocab"] * shape["width"]
    attention = shape["depth"] * shape["width"] * shape["length"]  # (q k and p v) over half the length
    return 6 * shape["batch"] * shape["length"] * (weights + attention)


def peak(threads: int) -> dict[str, float]:
    """Measured operations a second of a large float32 product: by torch.mm, and by dougong's choice of kernel."""
    import torch

    from dougong.base.allocator import keep_memory
    from dougong.parts.matmul import product

    keep_memory()
    torch.set_num_threads(threads)
    x, weight = torch.randn(2048, 1024), torch.randn(1024, 1024)
    rates = {}
    for name, kernel in (("torch.mm", lambda: x @ weight.t()), ("dougong", lambda: product(x, weight))):
        times = []
        for _ in range(12):
            began = time.perf_counter()
            kernel()
            times.append(time.perf_counter() - began)
        rates[name] = 2 * 2048 * 1024 * 1024 / statistics.median(times[2:])
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--modes", nargs="+", default=["eager", "compiled"], choices=["eager", "compiled"])
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    if options.worker:
        worker(options.worker[0], shape, options.worker[1], options.worker[2], options.threads)
        return
    print(f"shape {options.shape}: {shape}, {options.threads} threads")
    rates = peak(options.threads)
    print("GEMM peak: " + ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in rates.items()))
    running = []
    for precision in options.precisions:
        for mode in options.modes:
            for name in CONTENDERS:
                command = [sys.executable, __file__, "--shape", options.shape, "--threads", str(options.threads)]
                command += ["--worker", name, mode, precision]
                pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
                process = subprocess.Popen(command, text=True, **pipes)
                while (line := process.stdout.readline()) and line.strip() != "ready":
                    pass
                if not line:
                    print(f"{name} {mode} {precision}: did not start")
                    continue
                running.append(Contender(name, mode, precision, process))
                print(f"ready: {precision} {mode} {CONTENDERS[name]}", file=sys.stderr)
    times: dict[tuple[str, str, str], list[float]] = {}
    for _ in range(options.rounds):
        for each in running:
            times.setdefault((each.name, each.mode, each.precision), []).append(each.step())
    for each in running:
        each.process.stdin.close()
        each.process.wait()
    count, work = shape["batch"] * shape["length"], flops(shape)
    speed = {key: count / statistics.median(values) for key, values in times.items()}
    base = speed.get(("transformers", "eager", "float32"))
    print(f"{'':48}{'tokens/s':>10}{'x eager':>9}{'% torch.mm peak':>17}{'% best peak':>13}")
    for (name, mode, precision), value in sorted(speed.items(), key=lambda item: item[0][1:] + item[0][:1]):
        share = value / count * work / rates["torch.mm"], value / count * work / max(rates.values())
        label = f"{precision} {mode:9} {CONTENDERS[name]}"
        ratio = f"{value / base:8.2f}x" if base else ""
        print(f"{label:68.68}{value:10.0f}{ratio:>9}{share[0]:10.0%}{share[1]:10.0%}")
    for rival in ("transformers", "transformers+malloc"):
        best = [max((v for k, v in speed.items() if k[0] == name), default=0) for name in ("dougong", rival)]
        if all(best):
            print(f"best mode against best mode, {CONTENDERS[rival]}: {best[0] / best[1]:.2f}x")


if __name__ == "__main__":
    main()
