"""Dense against mixture of experts at equal operations a token."""

from __future__ import annotations

from dougong.lab.experiment import Budget, Experiment, Results, Variant
from dougong.lab.measures import bits, operations
from dougong.lab.statistics import difference, separates
from dougong.lab.tasks import Bytes
from dougong.model import LayerSpec, Model, ModelSpec
from dougong.parts.attention import Attention
from dougong.parts.embedding import Head
from dougong.parts.experts import MoE
from dougong.parts.feedforward import GatedMLP
from dougong.parts.norm import Norm
from dougong.parts.rope import Rope
from dougong.report import Group, Interval, bar_chart, table

WIDTH, DEPTH, LENGTH, HIDDEN = 64, 3, 128, 192
NORM = Norm("rms", 1e-6)


def specs() -> dict[str, ModelSpec]:
    feedforwards = {
        "dense": GatedMLP(HIDDEN),
        "4 experts, top 2": MoE(4, 2, HIDDEN // 2),
        "8 experts, top 2": MoE(8, 2, HIDDEN // 2),
        "16 experts, top 2": MoE(16, 2, HIDDEN // 2),
    }
    mixer = Attention(4, 4, 16, position=Rope(16))
    return {
        name: ModelSpec(256, WIDTH, LENGTH, (LayerSpec(mixer, ffn, NORM),) * DEPTH, norm=NORM, head=Head(tied=False))
        for name, ffn in feedforwards.items()
    }


class Experts(Experiment):
    title = ("Dense against experts at equal operations a token", "每词元计算量相同：稠密对混合专家")
    question = (
        "Each token uses as many operations in all of them (but for the router). Do more experts to choose from help?",
        "各模型每词元计算量相同（路由除外）。可选的专家更多，是否更好？",
    )

    def budget(self) -> Budget:
        return Budget(steps=400, rows=16)

    def variants(self) -> list[Variant]:
        return [Variant(name, spec, Bytes(LENGTH)) for name, spec in specs().items()]

    def measure(self, variant: Variant, model: Model) -> dict[str, float | list[float]]:
        spec = variant.spec
        return {
            "bits": bits(model, LENGTH),
            "flops": operations(model, LENGTH),
            "parameters": float(spec.parameters()),
            "active": float(spec.active_parameters()),
        }

    def figures(self, results: Results) -> list[str]:
        groups, rows = [], []
        for name, measured in results.values.items():
            loss = results.mean(name, "bits")
            groups.append(Group(name, [Interval(loss.value, loss.low, loss.high)]))
            rows.append((name, str(loss), *(int(measured[key][0]) for key in ("flops", "parameters", "active"))))
        return [
            bar_chart(groups, [("bits a byte", "每字节比特")], ("Held-out loss", "留出损失"), ("bits", "比特")),
            table(
                (
                    ("feed-forward", "前馈层"),
                    ("bits a byte", "每字节比特"),
                    ("operations a token", "每词元运算"),
                    ("parameters", "参数"),
                    ("active", "激活参数"),
                ),
                rows,
            ),
        ]

    def verdict(self, results: Results) -> list[str]:
        told = []
        dense = results.values["dense"]
        for name, measured in results.values.items():
            if name == "dense":
                continue
            gap = difference(measured["bits"], dense["bits"])
            loss = (
                f"{abs(gap.value):.3f} ± {gap.half:.3f} bits {'worse' if gap.value > 0 else 'better'} than dense"
                if separates(gap)
                else f"not told apart from dense ({gap.value:+.3f} ± {gap.half:.3f} bits)"
            )
            more, work = measured["parameters"][0] / dense["parameters"][0], measured["flops"][0] / dense["flops"][0]
            told.append(f"{name}: {loss}, with {more:.1f} times the parameters and {work:.2f} times the operations.")
        return told


EXPERIMENT = Experts()
