"""Pre- against post-norm, LayerNorm against BatchNorm, by depth."""

from __future__ import annotations

from typing import Literal

from dougong.lab.experiment import Budget, Experiment, Results, Variant
from dougong.lab.measures import bits
from dougong.lab.statistics import difference, separates
from dougong.lab.tasks import Bytes
from dougong.model import LayerSpec, Model, ModelSpec
from dougong.model.spec import Wiring
from dougong.parts.attention import Attention
from dougong.parts.embedding import Head
from dougong.parts.feedforward import MLP
from dougong.parts.norm import Norm
from dougong.parts.rope import Rope
from dougong.report import Series, line_chart, table

DEPTHS, LENGTH = (2, 6, 12), 64
# Where the norm stands, which it is, and how large the matrices start that write onto the residual path: 0 as in this
# package, so that every layer begins as the identity, or 1 as in the Transformer that post-norm comes from.
KINDS: dict[str, tuple[Wiring, Literal["layer", "batch"], float]] = {
    "pre-LN": ("pre", "layer", 0.0),
    "post-LN": ("post", "layer", 0.0),
    "pre-BN": ("pre", "batch", 0.0),
    "post-BN": ("post", "batch", 0.0),
    "pre-LN, random start": ("pre", "layer", 1.0),
    "post-LN, random start": ("post", "layer", 1.0),
}
COMPARED = (
    ("pre-LN", "post-LN"),
    ("pre-LN, random start", "post-LN, random start"),
    ("pre-LN", "pre-BN"),
    ("post-LN", "post-BN"),
)


def _spec(wiring: Wiring, kind: Literal["layer", "batch"], depth: int) -> ModelSpec:
    norm = Norm(kind, 1e-5, bias=True)
    layer = LayerSpec(Attention(4, 4, 12, position=Rope(12)), MLP(128, "gelu"), norm, wiring)
    return ModelSpec(256, 48, LENGTH, (layer,) * depth, norm=norm if wiring == "pre" else None, head=Head(tied=False))


class Norms(Experiment):
    title = ("Where the norm stands, and which, by depth", "归一化的位置与种类，随深度")
    question = (
        "At one rate for all, which of pre- and post-norm, LayerNorm and BatchNorm still train when layers are added?",
        "学习率相同，层数增加时，pre/post、LayerNorm/BatchNorm 中哪些仍能训练？",
    )

    def budget(self) -> Budget:
        return Budget(steps=250, rows=16)

    def variants(self) -> list[Variant]:
        return [
            Variant(f"{name} {depth}", _spec(wiring, kind, depth), Bytes(LENGTH), outputs=outputs)
            for depth in DEPTHS
            for name, (wiring, kind, outputs) in KINDS.items()
        ]

    def measure(self, variant: Variant, model: Model) -> dict[str, float | list[float]]:
        return {"bits": bits(model, LENGTH), "bits with batch statistics": _as_in_training(model)}

    def figures(self, results: Results) -> list[str]:
        series = [
            Series(name, DEPTHS, [results.mean(f"{name} {depth}", "bits").value for depth in DEPTHS]) for name in KINDS
        ]
        rows = [
            (
                f"{name} {depth}",
                str(results.mean(f"{name} {depth}", "bits")),
                str(results.mean(f"{name} {depth}", "bits with batch statistics")),
            )
            for name in KINDS
            for depth in DEPTHS
        ]
        return [
            line_chart(
                series,
                ("Held-out bits a byte by depth", "留出文本每字节比特，随深度"),
                ("layers", "层数"),
                ("bits", "比特"),
            ),
            table(
                (
                    ("norm and layers", "归一化与层数"),
                    ("held out", "留出"),
                    ("statistics of the test batch", "用测试批次的统计量"),
                ),
                rows,
            ),
        ]

    def verdict(self, results: Results) -> list[str]:
        told = []
        for depth in DEPTHS:
            for a, b in COMPARED:
                gap = difference(results.values[f"{a} {depth}"]["bits"], results.values[f"{b} {depth}"]["bits"])
                better, worse = (a, b) if gap.value < 0 else (b, a)
                sure = (
                    f"{better} is {abs(gap.value):.2f} bits better than {worse}"
                    if separates(gap)
                    else f"{a} and {b} are not told apart"
                )
                told.append(f"{depth} layers: {sure} (± {gap.half:.2f}).")
        return told


def _as_in_training(model: Model) -> float:
    """With BatchNorm in training mode: the batch's own statistics, which a model that generates does not have, and
    which let every token see the ones after it through the batch's mean."""
    model.train()
    try:
        return bits(model, LENGTH)
    finally:
        model.eval()


EXPERIMENT = Norms()
