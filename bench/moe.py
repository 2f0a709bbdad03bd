"""Tokens a second of a mixture of experts (8 experts, 2 a token) against transformers' Mixtral block, as ratios.

    python bench/moe.py [--tokens 512 1024 2048] [--rounds 9] [--threads 2]

transformers has a loop over experts ("eager": what a block by itself does) and "grouped_mm" (what its whole models do
where PyTorch has the kernel). All sides run in turn within each round, so that they meet the same state of the machine;
medians are compared. Above 1 is in our favour. Weights are the same; outputs are checked to agree first. Few tokens
come with another text in every step, as in decoding: other experts are chosen, whose weights lie in no cache.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from dougong.base.allocator import keep_memory
from dougong.parts.context import Context
from dougong.parts.experts import MoE

WIDTH, HIDDEN, EXPERTS, TOP_K = 512, 1408, 8, 2
THEIRS = ("eager", "grouped_mm")


def theirs(implementation: str) -> nn.Module:
    config = MixtralConfig(
        hidden_size=WIDTH, intermediate_size=HIDDEN, num_local_experts=EXPERTS, num_experts_per_tok=TOP_K
    )
    config._experts_implementation = implementation
    block = MixtralSparseMoeBlock(config)
    torch.manual_seed(0)
    for parameter in block.parameters():
        nn.init.normal_(parameter, 0.0, 0.03)
    return block


def ours(block: nn.Module) -> nn.Module:
    """The same weights in our layer."""
    layer = MoE(EXPERTS, TOP_K, HIDDEN).build(WIDTH)
    gate, up = block.experts.gate_up_proj.chunk(2, 1)
    with torch.no_grad():
        layer.router.logits.weight.copy_(block.gate.weight)
        for linear, weight in ((layer.experts.gate, gate), (layer.experts.up, up)):
            linear.weight.copy_(weight)
        layer.experts.down.weight.copy_(block.experts.down_proj)
    return layer


def call(module: nn.Module, x: Tensor) -> Tensor:
    if isinstance(module, MixtralSparseMoeBlock):
        return module(x)
    return module(x, Context.of(torch.zeros(x.shape[:2], dtype=torch.int64)))


def forward(module: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        call(module, x)


def forward_backward(module: nn.Module, x: Tensor) -> None:
    module.zero_grad(set_to_none=True)
    call(module, x.detach().requires_grad_()).sum().backward()


def texts(tokens: int, dtype: torch.dtype) -> list[Tensor]:
    """One text, or as many short ones as make up 64 tokens."""
    seeds = range(1, 1 + max(1, 64 // tokens))
    return [torch.randn(1, tokens, WIDTH, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in seeds]


def each_of(step: Callable[[nn.Module, Tensor], None], block: nn.Module, xs: list[Tensor]) -> Callable[[], None]:
    def run() -> None:
        for x in xs:
            step(block, x)

    return run


def medians(rounds: int, sides: dict[str, Callable[[], None]]) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in sides}
    for round_number in range(rounds + 2):
        for name, run in sides.items():
            began = time.perf_counter()
            run()
            if round_number >= 2:
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(each) for name, each in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 16, 64, 256, 512, 1024, 2048])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_memory()
    print("type      tokens  pass               ours tok/s   over eager   over grouped_mm")
    for dtype in (torch.float32, torch.bfloat16):
        blocks: dict[str, nn.Module] = {name: theirs(name) for name in THEIRS}
        blocks["ours"] = ours(blocks["eager"])
        for block in blocks.values():
            block.to(dtype)
        for tokens in options.tokens:
            xs = texts(tokens, dtype)
            x = xs[0]
            with torch.no_grad():
                torch.testing.assert_close(call(blocks["ours"], x), call(blocks["eager"], x), rtol=0.05, atol=0.02)
            for name, step in (("forward", forward), ("forward+backward", forward_backward)):
                if tokens == 1 and step is forward_backward:
                    continue
                took = medians(options.rounds, {each: each_of(step, block, xs) for each, block in blocks.items()})
                ratios = [f"{took[each] / took['ours']:.2f}" for each in THEIRS]
                kind, speed = str(dtype).removeprefix("torch."), len(xs) * tokens / took["ours"]
                print(f"{kind:<9} {tokens:>6}  {name:<17} {speed:>11.0f} {ratios[0]:>12} {ratios[1]:>17}", flush=True)


if __name__ == "__main__":
    main()
