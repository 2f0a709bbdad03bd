"""Which positions carry a model beyond the length it was trained on?"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from dougong.lab.experiment import Budget, Experiment, Results, Variant
from dougong.lab.measures import bits_by_place
from dougong.lab.statistics import difference, mean, separates
from dougong.lab.tasks import Bytes
from dougong.model import LayerSpec, Model, ModelSpec
from dougong.parts.attention import Attention
from dougong.parts.embedding import Embedding, Head
from dougong.parts.feedforward import GatedMLP
from dougong.parts.norm import Norm
from dougong.parts.position import Alibi, Learned, Sinusoidal
from dougong.parts.rope import Rope, Yarn
from dougong.report import Series, line_chart, table

TRAINED, REACHED, STEP = 128, 512, 32
HEADS, SIZE = 4, 16


def _spec(position=None, embedding=None) -> ModelSpec:
    norm = Norm("rms", 1e-6)
    mixer = Attention(HEADS, HEADS, SIZE, position=position)
    layer = LayerSpec(mixer, GatedMLP(192), norm)
    return ModelSpec(256, HEADS * SIZE, TRAINED, (layer,) * 3, Embedding(embedding), norm, Head(tied=False))


def with_yarn(spec: ModelSpec) -> ModelSpec:
    """The same weights, their rotary positions stretched by YaRN without further training."""
    layers = []
    for layer in spec.layers:
        mixer = layer.mixer
        assert isinstance(mixer, Attention) and isinstance(mixer.position, Rope)
        scaled = replace(mixer.position, scaling=Yarn(REACHED / TRAINED, TRAINED))
        layers.append(replace(layer, mixer=replace(mixer, position=scaled)))
    return replace(spec, layers=tuple(layers))


class Positions(Experiment):
    title = ("Positions inside and beyond the training length", "训练长度之内与之外的位置编码")
    question = (
        f"Models trained on {TRAINED} bytes read {REACHED}. Where does the loss leave the ground?",
        f"用 {TRAINED} 字节训练的模型读 {REACHED} 字节时，损失从何处开始失控？",
    )

    def budget(self) -> Budget:
        return Budget(steps=400, rows=16)

    def variants(self) -> list[Variant]:
        specs = {
            "none": _spec(),
            "sinusoidal": _spec(embedding=Sinusoidal()),
            "learned": _spec(embedding=Learned(TRAINED)),
            "ALiBi": _spec(Alibi()),
            "RoPE": _spec(Rope(SIZE)),
        }
        return [Variant(name, spec, Bytes(TRAINED)) for name, spec in specs.items()]

    def measure(self, variant: Variant, model: Model) -> dict[str, float | list[float]]:
        reach = TRAINED if variant.name == "learned" else REACHED  # there is no row for a later position
        measured = _by_stretch("", bits_by_place(model, reach))
        if variant.name == "RoPE":
            stretched = Model(with_yarn(variant.spec)).eval()
            stretched.load_state_dict(model.state_dict())
            measured |= _by_stretch("YaRN ", bits_by_place(stretched, REACHED))
        return measured

    def figures(self, results: Results) -> list[str]:
        series, rows = [], []
        for name, prefix in _told(results):
            line = [each.value for each in results.line(name, f"{prefix}by place")]
            series.append(
                Series(f"{name}{' + YaRN' if prefix else ''}", [STEP * (i + 0.5) for i in range(len(line))], line)
            )
            inside = results.mean(name, f"{prefix}inside")
            beyond = results.mean(name, f"{prefix}beyond") if f"{prefix}beyond" in results.values[name] else None
            rows.append((series[-1].name, str(inside), str(beyond) if beyond else ("impossible", "无法")))
        return [
            line_chart(series, ("Bits a byte by place", "各位置的每字节比特数"), ("place", "位置"), ("bits", "比特")),
            table((("position", "位置编码"), ("inside", "之内"), ("beyond", "之外")), rows),
        ]

    def verdict(self, results: Results) -> list[str]:
        told = [f"Inside the {TRAINED} bytes (~: not told apart): {_ranked(results, 'inside')}."]
        told.append(f"Beyond, up to {REACHED}: {_ranked(results, 'beyond')}; learned positions have no row there.")
        for name, prefix in _told(results):
            if f"{prefix}beyond" in results.values[name]:
                gap = difference(results.values[name][f"{prefix}beyond"], results.values[name][f"{prefix}inside"])
                word = "loses" if gap.value > 0 else "gains"
                sure = "" if separates(gap) else ", which the seeds do not separate from nothing"
                told.append(f"{name}{' + YaRN' if prefix else ''} {word} {abs(gap.value):.2f} bits beyond{sure}.")
        return told


def _told(results: Results) -> list[tuple[str, str]]:
    return [*((name, "") for name in results.values), ("RoPE", "YaRN ")]


def _by_stretch(prefix: str, places: list[float]) -> dict[str, float | list[float]]:
    """Inside: the second half of the trained length, where every model has context. Beyond: what follows it."""
    stretches = [sum(places[start : start + STEP]) / STEP for start in range(0, len(places), STEP)]
    inside = places[TRAINED // 2 : TRAINED]
    measured: dict[str, float | list[float]] = {
        f"{prefix}by place": stretches,
        f"{prefix}inside": sum(inside) / len(inside),
    }
    if len(places) > TRAINED:
        measured[f"{prefix}beyond"] = sum(places[TRAINED:]) / (len(places) - TRAINED)
    return measured


def _ranked(results: Results, measure: str) -> str:
    """From the best; neighbours that the seeds do not tell apart stand with a "~" between them, others with a "<"."""
    found = sorted(
        (
            (f"{name}{' + YaRN' if prefix else ''}", results.values[name][prefix + measure])
            for name, prefix in _told(results)
            if prefix + measure in results.values[name]
        ),
        key=lambda each: mean(each[1]).value,
    )
    said = f"{found[0][0]} {mean(found[0][1])}"
    for (_, better), (name, values) in pairwise(found):
        said += f" {'<' if separates(difference(values, better)) else '~'} {name} {mean(values)}"
    return said


EXPERIMENT = Positions()
