"""Seconds of whole fine-tuning steps (forward, backward, clip, optimizer): adapters against PEFT's, DPO and GRPO
against TRL's trainers, on transformers' Llama of the identical shape, in float32. Each contender lives in a process of
its own, as its users would run it, and theirs once more with dougong's allocator setting; the steps are interleaved,
medians and ratios are printed. `--memory` measures the peak of QLoRA at 0.5B.

    python bench/tune.py                     # the small shape: LoRA, DoRA, DPO, GRPO
    python bench/tune.py --shape large --methods lora --rounds 10
    python bench/tune.py --memory
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from workers import Worker, serve

Shape = dict[str, int]
Step = Callable[[], Any]

SHAPES: dict[str, Shape] = {
    "small": {"width": 256, "depth": 4, "heads": 4, "ffn": 704, "vocab": 4096, "batch": 4, "length": 256},
    "large": {"width": 512, "depth": 8, "heads": 8, "ffn": 1408, "vocab": 8192, "batch": 4, "length": 512},
    # Qwen2.5-0.5B, but for the sharing of keys.
    "0.5B": {"width": 896, "depth": 24, "heads": 14, "ffn": 4864, "vocab": 151936, "batch": 1, "length": 128},
}
ADAPTERS = ("lora", "dora", "ia3")
# dpo: the reference's log-probabilities computed before; dpo-copy: by a second model in every step; grpo: one update on
# answers that are there already, with the reference's log-probabilities.
ALIGNMENT = ("dpo", "dpo-copy", "grpo")
RATE = 1e-5
PEER = {True: "PEFT", False: "TRL"}
CONTENDERS = {
    "theirs": "{}, as it comes",
    "theirs+malloc": "{}, with dougong's allocator setting",
    "dougong": "dougong",
}


def our_model(shape: Shape, tied: bool = False) -> Any:
    from dougong.model import Model, decoder_spec, initialise

    spec = decoder_spec(
        shape["vocab"], shape["width"], shape["depth"], shape["heads"], 1024, ffn=shape["ffn"], tied=tied
    )
    return initialise(Model(spec))


def their_model(shape: Shape) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=shape["width"],
        num_hidden_layers=shape["depth"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["heads"],
        intermediate_size=shape["ffn"],
        vocab_size=shape["vocab"],
        max_position_embeddings=1024,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def our_step(model: Any, objective: Any, make: Callable[[], Any], recompute: bool = False) -> Step:
    """A step of the trainer on the batch that `make` gives."""
    from dougong.train.loop import Training, _Step
    from dougong.train.optimizers import Optimizer
    from dougong.train.ranks import Ranks

    training = Training(optimizer=Optimizer(rate=RATE, weight_decay=0.0), recompute=recompute)
    optimizers = training.optimizer.build(model, 1000)
    run = _Step(model, training, objective, Ranks())
    model.train()
    return lambda: run(make(), lambda scale: optimizers.step(1.0, scale))


def their_step(model: Any, loss: Callable[[], Any]) -> Step:
    """Backward, clipping and the fused optimizer around a loss, as transformers' trainer has them."""
    import torch

    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def step() -> None:
        loss().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def our_adapter(method: str, shape: Shape, rank: int, quantize: Any = None) -> Step:
    import torch

    from dougong.data.batch import Batch
    from dougong.train.loop import next_token
    from dougong.tune import IA3, DoRA, LoRA, attach, quantize_base

    if quantize is None:
        model = our_model(shape)
    else:  # as `dougong sft` does it: from the checkpoint's bfloat16, and in float32 what is left
        torch.set_default_dtype(torch.bfloat16)
        model = our_model(shape, tied=True)
        torch.set_default_dtype(torch.float32)
        quantize_base(model, quantize)
        model.float()
    chosen = {"lora": LoRA(rank), "dora": DoRA(rank), "ia3": IA3()}[method]
    attach(model, chosen, "k v down" if method == "ia3" else "q k v o gate up down")
    tokens = tokens_of(shape)
    positions = torch.arange(shape["length"]).expand(shape["batch"], -1)
    batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), positions, None)
    return our_step(model, next_token, lambda: batch, recompute=quantize is not None)


def their_adapter(method: str, shape: Shape, rank: int) -> Step:
    import peft

    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapter = (
        peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])
        if method == "ia3"
        else peft.LoraConfig(r=rank, lora_alpha=16, target_modules=names, use_dora=method == "dora")
    )
    model = peft.get_peft_model(their_model(shape), adapter)
    inputs = tokens_of(shape)[:, :-1].contiguous()
    return their_step(model, lambda: model(input_ids=inputs, labels=inputs, use_cache=False).loss)


def tokens_of(shape: Shape) -> Any:
    import torch

    size = (shape["batch"], shape["length"] + 1)
    return torch.randint(1, shape["vocab"], size, generator=torch.Generator().manual_seed(0))


def texts(shape: Shape, count: int) -> list[tuple[list[int], list[int]]]:
    """(prompt, answer) ids: prompts of a quarter of the length in pairs, answers up to what is left of it."""
    draw = random.Random(0)

    def ids(size: int) -> list[int]:
        return [draw.randrange(1, shape["vocab"]) for _ in range(size)]

    quarter, found = shape["length"] // 4, []
    for number in range(count):
        prompt = ids(quarter) if number % 2 == 0 else found[-1][0]
        found.append((prompt, ids(draw.randint(quarter, 3 * quarter))))
    return found


def our_dpo(shape: Shape, copied: bool) -> Step:
    import torch

    from dougong.align.heads import frozen_copy
    from dougong.align.objectives import objective
    from dougong.align.prepare import Prepared, Preparer
    from dougong.align.recipe import Prefer
    from dougong.align.segments import Segment, arrange
    from dougong.data.batch import IGNORED
    from dougong.train.ranks import Ranks

    model = our_model(shape)
    segments = [
        Segment((prompt + answer)[:-1], [IGNORED] * (len(prompt) - 1) + answer)
        for prompt, answer in texts(shape, 2 * shape["batch"])
    ]
    length = 2 * shape["length"]
    rows = arrange([tuple(segments[at : at + 2]) for at in range(0, len(segments), 2)], length)
    prepared = Prepared(rows, {})
    recipe = Prefer(batch=shape["batch"], length=length)
    preparer = Preparer(recipe, model, frozen_copy(model) if copied else None, prepared, low=False)
    if not copied:
        preparer.use(torch.full((len(segments),), -100.0))
    chosen = [(0, row) for row in range(rows.count)]
    return our_step(model, objective("dpo", recipe.loss), lambda: preparer(rows.build(chosen), Ranks()))


def padded(shape: Shape, count: int) -> dict[str, Any]:
    """Prompts and answers as TRL lays them out, all answers padded to the longest."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    found = texts(shape, count)
    prompts = torch.tensor([prompt for prompt, _ in found])
    answers = pad_sequence([torch.tensor(answer) for _, answer in found], batch_first=True)
    return {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": answers,
        "completion_mask": (answers > 0).long(),
    }


def word_tokenizer() -> Any:
    """The least that TRL's trainers ask for."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1, "a": 2}
    base = Tokenizer(models.WordLevel(words, unk_token="a"))
    base.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=base, pad_token="<pad>", eos_token="<eos>")


def their_dpo(shape: Shape, copied: bool) -> Step:
    import torch
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    model = their_model(shape)
    rows = Dataset.from_list([{"prompt": "a a", "chosen": "a", "rejected": "a a"}] * 2)
    config = DPOConfig(tempfile.mkdtemp(), use_cpu=True, report_to=[], bf16=False, gradient_checkpointing=False)
    trainer = DPOTrainer(model, their_model(shape), args=config, train_dataset=rows, processing_class=word_tokenizer())
    trainer.precompute_ref_logps = not copied
    parts = padded(shape, 2 * shape["batch"])
    order = torch.arange(2 * shape["batch"]).view(-1, 2).t().flatten()  # all chosen, then all rejected
    pair = torch.full((shape["batch"],), -100.0)
    inputs = {
        "input_ids": torch.cat([parts["prompt_ids"], parts["completion_ids"]], 1)[order],
        "attention_mask": torch.cat([parts["prompt_mask"], parts["completion_mask"]], 1)[order],
        "completion_mask": torch.cat([0 * parts["prompt_mask"], parts["completion_mask"]], 1)[order],
        **({} if copied else {"ref_chosen_logps": pair, "ref_rejected_logps": pair}),
    }
    return their_step(trainer.model, lambda: trainer.compute_loss(trainer.model, dict(inputs)))


def our_grpo(shape: Shape) -> Step:
    import torch

    from dougong.align.rl import objective
    from dougong.align.rl_recipe import Rl, Rollout
    from dougong.align.rollout import rows_of
    from dougong.engine import Completion

    model = our_model(shape)
    recipe = Rl(method="grpo", rollout=Rollout(samples=shape["batch"]))
    done = [
        Completion(prompt=prompt, tokens=answer, text="", logprobs=[0.0] * len(answer), finish_reason="stop")
        for prompt, answer in texts(shape, 2 * shape["batch"])
    ]
    batch = rows_of(done, 0)
    rows, places = batch.tokens.shape
    further = {
        "advantages": torch.linspace(-1, 1, rows)[:, None].expand(rows, places),
        "reference": torch.full((rows, places), -8.0),
        "coefficient": torch.full((rows,), recipe.coefficient),
        "stats": torch.zeros(rows, 0),
    }
    whole = replace(batch, further=further)
    return our_step(model, objective(recipe, None, []), lambda: whole)


def their_grpo(shape: Shape) -> Step:
    import torch
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    count = 2 * shape["batch"]
    config = GRPOConfig(
        tempfile.mkdtemp(), use_cpu=True, report_to=[], bf16=False, gradient_checkpointing=False,
        loss_type="grpo", num_generations=count, per_device_train_batch_size=count,
    )  # fmt: skip
    trainer = GRPOTrainer(
        their_model(shape), reward_funcs=lambda completions, **_: [0.0] * len(completions), args=config,
        train_dataset=Dataset.from_list([{"prompt": "a a"}] * count), processing_class=word_tokenizer(),
    )  # fmt: skip
    trainer.beta = 0.04  # given to the trainer it would look for the reference's files
    trainer.current_gradient_accumulation_steps = 1
    inputs = padded(shape, count)
    inputs["advantages"] = torch.linspace(-1, 1, count)
    inputs["ref_per_token_logps"] = torch.full(inputs["completion_ids"].shape, -8.0)
    return their_step(trainer.model, lambda: trainer.compute_loss(trainer.model, dict(inputs)))


def built(contender: str, method: str, shape: Shape, rank: int) -> Step:
    """The step of a contender: theirs, theirs+malloc (with our allocator setting) or dougong."""
    from dougong.base.allocator import keep_memory

    if contender != "theirs":
        keep_memory()
    ours, copied = contender == "dougong", method == "dpo-copy"
    if method in ADAPTERS:
        return (our_adapter if ours else their_adapter)(method, shape, rank)
    if method == "grpo":
        return (our_grpo if ours else their_grpo)(shape)
    return (our_dpo if ours else their_dpo)(shape, copied)


def memory(rank: int) -> None:
    """Print the peak of resident memory over building the 0.5B shape, quantising it and three steps of QLoRA."""
    shape = SHAPES["0.5B"]
    step = our_adapter("lora", shape, rank, quantize="nf4")
    built = peak()
    began = time.perf_counter()
    for _ in range(3):
        step()
    seconds = (time.perf_counter() - began) / 3
    print(f"QLoRA on the 0.5B shape, {shape['length']} tokens: {seconds:.1f} s a step")
    print(f"peak of resident memory: {built:.2f} GB to build and quantise, {peak():.2f} GB with three steps")


def peak() -> float:
    """The largest resident memory of this process so far, in gigabytes (VmHWM)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--methods", nargs="+", default=["lora", "dora", *ALIGNMENT], choices=(*ADAPTERS, *ALIGNMENT))
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    shape = SHAPES[options.shape]
    if options.worker:
        serve(built(*options.worker, shape, options.rank))
        return
    if options.memory:  # the floats go back to the system before a step's memory is asked for, as in a run of a recipe
        memory(options.rank)
        return
    print(f"shape {options.shape}: {shape}, rank {options.rank}, {options.threads} threads")
    common = ["--shape", options.shape, "--rank", str(options.rank), "--threads", str(options.threads)]
    for method in options.methods:
        try:
            workers = {name: Worker([__file__, *common, "--worker", name, method]) for name in CONTENDERS}
        except RuntimeError as error:
            print(f"{method}: {error}; pip install 'dougong[dev]'")
            continue
        report(method, measured({name: worker.step for name, worker in workers.items()}, options.rounds))
        for worker in workers.values():
            worker.close()


def measured(steps: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds that the steps tell, one after the other, after two rounds that do not count."""
    found = [{name: step() for name, step in steps.items()} for _ in range(rounds + 2)][2:]
    return {name: [each[name] for each in found] for name in steps}


def report(method: str, times: dict[str, list[float]]) -> None:
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    for name, median in medians.items():
        ratios = " ".join(f"{median / medians[base]:.2f}x" for base in ("theirs", "theirs+malloc"))
        label = CONTENDERS[name].format(PEER[method in ADAPTERS])
        print(f"{method:9}{label:44}{1000 * median:6.0f} ms  {ratios}")


if __name__ == "__main__":
    main()
