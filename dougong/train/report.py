"""report.html of a run: what metrics.jsonl and result.json say, as charts and a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dougong.base import atomic_file, read_json
from dougong.report import Label, Section, Series, code, line_chart, page, table
from dougong.train.monitor import read_metrics

_STEP: Label = ("update", "更新步")


Further = Sequence[tuple[str, Label]]  # a key of the records, and how its chart is called


def curves(records: Sequence[dict[str, Any]], further: Further = ()) -> list[str]:
    """The charts of one training: loss, gradient norm, tokens a second, whatever was evaluated, and `further`."""

    def line(key: str, name: Label, factor: float = 1.0) -> Series:
        chosen = [record for record in records if key in record]
        return Series(name, [record["step"] for record in chosen], [factor * record[key] for record in chosen])

    charts = [
        line_chart([line("loss", ("training", "训练"))], ("Loss", "损失"), _STEP, ("nats a token", "奈特/词元")),
        line_chart(
            [line("gradient_norm", ("before clipping", "裁剪前"))],
            ("Gradient norm", "梯度范数"), _STEP, ("norm", "范数"), log=True,
        ),
        line_chart(
            [line("tokens_per_second", ("all tokens of the batch", "批中全部词元"))],
            ("Speed", "速度"), _STEP, ("tokens a second", "词元/秒"),
        ),
        line_chart(
            [line("rate", ("factor", "系数"))],
            ("Learning rate", "学习率"), _STEP, ("share of the peak", "峰值的比例"),
        ),
    ]  # fmt: skip
    for key, name in (
        ("held_out_bits_per_byte", ("Held-out bits per byte", "留出文本的每字节比特数")),
        ("held_out_loss", ("Held-out loss", "留出数据的损失")),
    ):
        if sum(key in record for record in records) > 1:
            charts.append(line_chart([line(key, ("held out", "留出"))], name, _STEP, name))
    for key, name in further:
        if any(key in record for record in records):
            charts.append(line_chart([line(key, ("training", "训练"))], name, _STEP, name))
    return charts


def write_report(run: Path, title: Label, further: Further = ()) -> Path:
    """Write RUN/report.html from what the run left behind; returns its path."""
    figures = read_json(run / "result.json")
    rows = [(name.replace("_", " "), value) for name, value in figures.items()]
    recipe = (run / "recipe.yaml").read_text(encoding="utf-8")
    sections = [
        Section(("Result", "结果"), [table((("figure", "项目"), ("value", "数值")), rows)]),
        Section(("Training", "训练过程"), curves(read_metrics(run / "metrics.jsonl"), further)),
        Section(("Recipe", "配方"), [code(recipe.splitlines())]),
        Section(("Go on", "下一步"), [code([f"dougong chat {run}", f'dougong generate {run} "..."'])]),
    ]
    with atomic_file(run / "report.html") as stream:
        stream.write(page(title, sections, str(run)))
    return run / "report.html"
