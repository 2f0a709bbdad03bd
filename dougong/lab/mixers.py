"""Attention against recurrences: recall of what was read, and speed by length."""

from __future__ import annotations

import statistics
import time
from itertools import pairwise

import torch

from dougong.lab.experiment import Budget, Experiment, Results, Variant
from dougong.lab.measures import kept_bytes, recalled
from dougong.lab.mixers_models import ATTENTION, RECURRENCES, SIZES, kind_of, named, specs
from dougong.lab.statistics import difference, separates
from dougong.lab.tasks import Recall
from dougong.model import Model
from dougong.report import Series, line_chart, table
from dougong.train.optimizers import Optimizer

PAIRS = (2, 4, 8, 16, 32)
LENGTHS = (256, 1024, 4096, 16384)
ASKED = 4096  # keys that are asked in the test of each number of pairs
# Of Muon, for the matrices in the layers: the best of 0.02, 0.04 and 0.08 after 250 updates of a seed that is not
# reported.
RATES = {ATTENTION: 0.02, "Mamba-2": 0.02, "RWKV-7": 0.04, "gated DeltaNet": 0.04}


class Mixers(Experiment):
    title = ("Attention and recurrences: recall, and speed by length", "注意力与循环：回忆能力与随长度的速度")
    question = (
        "A state of fixed size reads long texts at a constant price. What does it forget, and from what length is it "
        "faster here?",
        "固定大小的状态以恒定代价阅读长文本。它会忘记什么？在这里从多长开始更快？",
    )

    def budget(self) -> Budget:
        return Budget(steps=800, rows=20)

    def variants(self) -> list[Variant]:
        task = Recall(PAIRS)
        return [
            Variant(name, spec, task, Optimizer("muon", rate=1e-2, matrix_rate=RATES[kind_of(name)]))
            for name, spec in specs(task.vocab, max(LENGTHS)).items()
        ]

    def measure(self, variant: Variant, model: Model) -> dict[str, float | list[float]]:
        measured: dict[str, float | list[float]] = {
            "recalled": shares(model),
            "parameters": float(variant.spec.parameters()),
            "state": float(kept_bytes(model, 3 * max(PAIRS))),
        }
        if variant.name in timed():
            measured["seconds"] = [seconds(model, length) for length in LENGTHS]
        return measured

    def figures(self, results: Results) -> list[str]:
        charts = []
        for size in SIZES:
            series = [
                Series(name, PAIRS, [each.value for each in results.line(name, "recalled")])
                for name in (ATTENTION, *(named(kind, size) for kind in RECURRENCES))
            ]
            title = (
                f"Recall by number of pairs, states of {size} x {size}",
                f"回忆率，随键值对数，状态 {size} x {size}",
            )
            charts.append(line_chart(series, title, ("pairs", "对数"), ("share", "比例")))
        return [*charts, _recall_table(results), *_speed_figures(results)]

    def verdict(self, results: Results) -> list[str]:
        return [*_forgets(results), *_among_states(results), *_fastest(results)]


def shares(model: Model) -> list[float]:
    """Recalled at each number of pairs."""
    return [recalled(model, Recall((pairs,)), -(-ASKED // pairs)) for pairs in PAIRS]


def seconds(model: Model, length: int) -> float:
    """The median of three passes over one row."""
    tokens = torch.randint(0, model.spec.vocab, (1, length), generator=torch.Generator().manual_seed(0))
    model(tokens)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        model(tokens)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def timed() -> list[str]:
    """Attention, and each recurrence with its smallest state."""
    return [ATTENTION, *(named(kind, min(SIZES)) for kind in RECURRENCES)]


def _at(results: Results, name: str, index: int) -> list[float]:
    """What each seed recalled at the pairs of that index."""
    return [line[index] for line in results.lines[name]["recalled"]]


def _recall_table(results: Results) -> str:
    rows = []
    for name, measured in results.values.items():
        line, state = results.line(name, "recalled"), int(measured["state"][0])
        pairs = line[-1].value * PAIRS[-1]
        each = round(state / pairs) if pairs >= 1 else None
        rows.append((name, int(measured["parameters"][0]), state, *(str(at) for at in line), each))
    headers = (
        ("mixer", "混合器"),
        ("parameters", "参数"),
        (f"state after {3 * PAIRS[-1]} tokens, bytes", f"{3 * PAIRS[-1]} 个词元后的状态，字节"),
        *((f"{pairs} pairs", f"{pairs} 对") for pairs in PAIRS),
        (f"bytes a pair recalled of {PAIRS[-1]}", f"{PAIRS[-1]} 对中每记住一对的字节"),
    )
    return table(headers, rows)


def _speed(results: Results, name: str) -> list[float]:
    """Tokens a second at each length."""
    taken = results.line(name, "seconds")
    return [length / each.value for length, each in zip(LENGTHS, taken, strict=True)]


def _speed_figures(results: Results) -> list[str]:
    series = [Series(name, LENGTHS, _speed(results, name)) for name in timed()]
    rows = [(each.name, *(round(y) for y in each.y)) for each in series]
    title = ("Tokens a second, reading", "阅读速度")
    return [
        line_chart(series, title, ("length", "长度"), ("tokens/s", "词元/秒"), log=True),
        table(
            (
                ("mixer", "混合器"),
                *((f"tokens/s at {length}", f"长度 {length} 词元/秒") for length in LENGTHS),
            ),
            rows,
        ),
    ]


def _forgets(results: Results) -> list[str]:
    """Of each state: from how many pairs on the seeds tell it from attention, and by how much at the most."""
    told = []
    for name in results.values:
        if name == ATTENTION:
            continue
        gaps = [difference(_at(results, name, index), _at(results, ATTENTION, index)) for index in range(len(PAIRS))]
        less = [pairs for pairs, gap in zip(PAIRS, gaps, strict=True) if separates(gap) and gap.value < 0]
        where = (
            f"recalls less than attention at {', '.join(map(str, less))} pairs"
            if less
            else ("is told apart from attention at no number of pairs")
        )
        told.append(f"{name} {where} ({gaps[-1].value:+.0%} ± {gaps[-1].half:.0%} at {PAIRS[-1]}).")
    return told


def _among_states(results: Results) -> list[str]:
    """At the most pairs: equal states against each other, and each mixer's larger one against its smaller one."""
    compared = [
        (named(a, size), named(b, size))
        for size in SIZES
        for index, a in enumerate(RECURRENCES)
        for b in RECURRENCES[index + 1 :]
    ]
    compared += [(named(kind, large), named(kind, small)) for small, large in pairwise(SIZES) for kind in RECURRENCES]
    told = []
    for a, b in compared:
        gap = difference(_at(results, a, -1), _at(results, b, -1))
        more, less = (a, b) if gap.value > 0 else (b, a)
        told.append(
            f"{PAIRS[-1]} pairs: {more} recalls {abs(gap.value):.0%} ± {gap.half:.0%} more than {less}."
            if separates(gap)
            else f"{PAIRS[-1]} pairs: {a} and {b} are not told apart ({gap.value:+.0%} ± {gap.half:.0%})."
        )
    return told


def _fastest(results: Results) -> list[str]:
    told = []
    for index, length in enumerate(LENGTHS):
        order = sorted(timed(), key=lambda name, at=index: -_speed(results, name)[at])
        told.append(f"Reading {length} tokens, from the fastest: {', '.join(order)}.")
    return told


EXPERIMENT = Mixers()
