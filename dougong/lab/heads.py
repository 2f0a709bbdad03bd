"""MHA, GQA, MQA and MLA: what fewer key heads cost, and what they save."""

from __future__ import annotations

from functools import partial

from dougong.lab.experiment import Budget, Experiment, Results, Variant
from dougong.lab.measures import bits, kept_bytes
from dougong.lab.sizes import filled
from dougong.lab.statistics import difference, separates
from dougong.lab.tasks import Bytes
from dougong.model import LayerSpec, Model, ModelSpec
from dougong.parts.attention import Attention
from dougong.parts.embedding import Head
from dougong.parts.feedforward import GatedMLP
from dougong.parts.latent import LatentAttention
from dougong.parts.norm import Norm
from dougong.parts.rope import Rope
from dougong.report import Group, Interval, bar_chart, table

WIDTH, DEPTH, LENGTH, HEADS, SIZE = 96, 3, 128, 8, 12
NORM = Norm("rms", 1e-6)


def _mixers() -> dict[str, Attention | LatentAttention]:
    by_heads = {"MHA": 8, "GQA": 2, "MQA": 1}
    plain = {name: Attention(HEADS, keys, SIZE, position=Rope(SIZE)) for name, keys in by_heads.items()}
    # A latent of 4 head sizes and a shared rotary key of half a one, the published proportions.
    latent = LatentAttention(HEADS, 4 * SIZE, SIZE, SIZE // 2, SIZE, position=Rope(SIZE // 2), norm=NORM)
    return {**plain, "MLA": latent}


def _spec(mixer: Attention | LatentAttention, hidden: int) -> ModelSpec:
    layer = LayerSpec(mixer, GatedMLP(hidden), NORM)
    return ModelSpec(256, WIDTH, LENGTH, (layer,) * DEPTH, norm=NORM, head=Head(tied=False))


def specs() -> dict[str, ModelSpec]:
    """All with as many parameters as MHA: what attention saves, the feed-forward gets (to the nearest column)."""
    mixers = _mixers()
    made = {name: partial(_spec, mixer) for name, mixer in mixers.items()}
    return filled(made, _spec(mixers["MHA"], 256).parameters())


class Heads(Experiment):
    title = ("MHA, GQA, MQA and MLA at equal parameters", "同等参数量下的 MHA、GQA、MQA 与 MLA")
    question = (
        "Of models with as many parameters, what do fewer key heads, or a latent, cost in loss, and save in cache?",
        "参数量相同时，更少的键值头或低秩潜变量在损失上付出多少，在缓存上节省多少？",
    )

    def budget(self) -> Budget:
        return Budget(steps=400, rows=16)

    def variants(self) -> list[Variant]:
        return [Variant(name, spec, Bytes(LENGTH)) for name, spec in specs().items()]

    def measure(self, variant: Variant, model: Model) -> dict[str, float | list[float]]:
        return {
            "bits": bits(model, LENGTH),
            "cache": kept_bytes(model, LENGTH) / LENGTH,
            "parameters": float(variant.spec.parameters()),
        }

    def figures(self, results: Results) -> list[str]:
        groups, rows = [], []
        for name, measured in results.values.items():
            loss = results.mean(name, "bits")
            groups.append(Group(name, [Interval(loss.value, loss.low, loss.high)]))
            rows.append((name, str(loss), int(measured["cache"][0]), int(measured["parameters"][0])))
        return [
            bar_chart(groups, [("bits a byte", "每字节比特")], ("Held-out loss", "留出损失"), ("bits", "比特")),
            table(
                (
                    ("attention", "注意力"),
                    ("bits a byte", "每字节比特"),
                    ("cache, bytes a token", "缓存，每词元字节"),
                    ("parameters", "参数"),
                ),
                rows,
            ),
        ]

    def verdict(self, results: Results) -> list[str]:
        told = []
        whole = results.values["MHA"]
        for name, measured in results.values.items():
            if name == "MHA":
                continue
            gap = difference(measured["bits"], whole["bits"])
            loss = (
                f"{abs(gap.value):.3f} ± {gap.half:.3f} bits {'worse' if gap.value > 0 else 'better'} than MHA"
                if separates(gap)
                else f"not told apart from MHA ({gap.value:+.3f} ± {gap.half:.3f} bits)"
            )
            told.append(f"{name}: {loss}, with {measured['cache'][0] / whole['cache'][0]:.0%} of its cache.")
        return told


EXPERIMENT = Heads()
