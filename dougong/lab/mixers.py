"""Attention against recurrences: recall of what was read, and speed by length."""

from __future__ import annotations

import statistics
import time

import torch

from dougong.lab.experiment import Budget, Experiment, Results, Variant
from dougong.lab.measures import recalled
from dougong.lab.statistics import difference, separates
from dougong.lab.tasks import Recall
from dougong.model import LayerSpec, Model, ModelSpec
from dougong.model.spec import Mixer
from dougong.parts.attention import Attention
from dougong.parts.decay import SoftplusDecay
from dougong.parts.delta import DeltaNet
from dougong.parts.embedding import Head
from dougong.parts.feedforward import GatedMLP
from dougong.parts.norm import Norm
from dougong.parts.rope import Rope
from dougong.parts.ssd import Mamba2
from dougong.parts.wkv7 import WKV7
from dougong.report import Series, line_chart, table

WIDTH, HEADS, SIZE = 64, 4, 16
LENGTH, PAIRS = 64, (4, 8, 16)
LENGTHS = (256, 1024, 4096)
NORM = Norm("rms", 1e-6)


def mixers() -> dict[str, list[Mixer]]:
    """Two layers of each."""
    rwkv = [WKV7(WIDTH, HEADS, SIZE, layer == 0, 16, 16, 16, 16) for layer in range(2)]
    delta = DeltaNet(HEADS, HEADS, SIZE, SIZE, decay=SoftplusDecay(), norm=NORM, gate="silu")
    return {
        "attention": [Attention(HEADS, HEADS, SIZE, position=Rope(SIZE))] * 2,
        "Mamba-2": [Mamba2(HEADS, 2 * SIZE, 16)] * 2,
        "RWKV-7": list(rwkv),
        "gated DeltaNet": [delta] * 2,
    }


def _spec(layers: list[Mixer], vocab: int) -> ModelSpec:
    made = tuple(LayerSpec(mixer, GatedMLP(128), NORM) for mixer in layers)
    return ModelSpec(vocab, WIDTH, max(LENGTHS), made, norm=NORM, head=Head(tied=False))


class Mixers(Experiment):
    title = ("Attention and recurrences: recall, and speed by length", "注意力与循环：回忆能力与随长度的速度")
    question = (
        "A state of fixed size reads long texts at a constant price. What does it forget, and from what length is it "
        "faster here?",
        "固定大小的状态以恒定代价阅读长文本。它会忘记什么？在这里从多长开始更快？",
    )

    def budget(self) -> Budget:
        return Budget(steps=600, rows=32)

    def variants(self) -> list[Variant]:
        return [
            Variant(f"{name}, {pairs} pairs", _spec(layers, 64), Recall(LENGTH, pairs), group=str(pairs), rate=3e-3)
            for pairs in PAIRS
            for name, layers in mixers().items()
        ]

    def measure(self, variant: Variant, model: Model) -> dict[str, float | list[float]]:
        measured: dict[str, float | list[float]] = {"recalled": recalled(model, variant.task)}
        if variant.group == str(PAIRS[0]):
            measured["seconds"] = [_seconds(model, length) for length in LENGTHS]
        return measured

    def figures(self, results: Results) -> list[str]:
        names = list(mixers())
        recall = [
            Series(name, PAIRS, [results.mean(f"{name}, {pairs} pairs", "recalled").value for pairs in PAIRS])
            for name in names
        ]
        speed = [Series(name, LENGTHS, self._speed(results, name)) for name in names]
        rows = [
            (
                name,
                *(str(results.mean(f"{name}, {pairs} pairs", "recalled")) for pairs in PAIRS),
                *(f"{each:,.0f}" for each in self._speed(results, name)),
            )
            for name in names
        ]
        return [
            line_chart(
                recall, ("Recall by number of pairs", "回忆率，随键值对数"), ("pairs", "对数"), ("share", "比例")
            ),
            line_chart(
                speed, ("Tokens a second, reading", "阅读速度"), ("length", "长度"), ("tokens/s", "词元/秒"), log=True
            ),
            table(
                (
                    ("mixer", "混合器"),
                    *((f"{pairs} pairs", f"{pairs} 对") for pairs in PAIRS),
                    *((f"tokens/s at {length}", f"长度 {length} 词元/秒") for length in LENGTHS),
                ),
                rows,
            ),
        ]

    def _speed(self, results: Results, name: str) -> list[float]:
        """Tokens a second at each length."""
        seconds = results.line(f"{name}, {PAIRS[0]} pairs", "seconds")
        return [length / each.value for length, each in zip(LENGTHS, seconds, strict=True)]

    def verdict(self, results: Results) -> list[str]:
        told = []
        for pairs in PAIRS:
            first = results.values[f"attention, {pairs} pairs"]["recalled"]
            for name in mixers():
                if name == "attention":
                    continue
                gap = difference(results.values[f"{name}, {pairs} pairs"]["recalled"], first)
                word = "more" if gap.value > 0 else "less"
                told.append(
                    f"{pairs} pairs: {name} recalls {abs(gap.value):.0%} ± {gap.half:.0%} {word} than attention."
                    if separates(gap)
                    else f"{pairs} pairs: {name} and attention are not told apart ({gap.value:+.0%} ± {gap.half:.0%})."
                )
        for index, length in enumerate(LENGTHS):
            order = sorted(mixers(), key=lambda name, at=index: -self._speed(results, name)[at])
            told.append(f"Reading {length} tokens, from the fastest: {', '.join(order)}.")
        return told


def _seconds(model: Model, length: int) -> float:
    """The median of three passes over one row."""
    tokens = torch.randint(0, model.spec.vocab, (1, length), generator=torch.Generator().manual_seed(0))
    model(tokens)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        model(tokens)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


EXPERIMENT = Mixers()
