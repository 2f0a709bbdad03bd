"""What the demo shows at its end: a table in the terminal, and report.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dougong.base import atomic_file, read_json
from dougong.data import Problem
from dougong.evals.attention import attention_map
from dougong.hub import load
from dougong.report import (
    Group,
    Interval,
    Sample,
    Section,
    bar,
    bar_chart,
    code,
    heat_map,
    page,
    paragraph,
    samples,
    table,
    tiles,
)
from dougong.train.monitor import read_metrics
from dougong.train.report import curves


def print_result(folder: Path, result: Mapping[str, Any], measured: Sequence[Mapping[str, Any]]) -> None:
    """The two tables: bits per byte beside the baselines, accuracy by skill before and after."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    bits = Table("held-out text", "bits per byte", title=f"What {folder} learned", title_justify="left")
    for each in sorted([*measured, _model_row(result)], key=lambda row: -row["bits_per_byte"]):
        style = "bold" if each["name"] == _MODEL else ""
        bits.add_row(each["name"], f"{each['bits_per_byte']:.3f}", style=style)
    console.print(bits)
    skills = Table(
        "unseen problems", "before", "after", "", "95% interval", title="Accuracy by skill", title_justify="left"
    )
    for before, after in zip(result["before"], result["after"], strict=True):
        share = after["correct"] / after["total"]
        skills.add_row(
            after["skill"],
            f"{before['correct'] / before['total']:.0%}",
            f"{share:.0%}",
            bar(share, 16),
            f"{after['low']:.0%} to {after['high']:.0%}",
        )
    console.print(skills)


_MODEL = "this model"


def _model_row(result: Mapping[str, Any]) -> dict[str, Any]:
    text = result["text"]
    how = f"{text['parameters']:,} parameters, half a row of context before each counted token"
    return {"name": _MODEL, "bits_per_byte": text["held_out_bits_per_byte"], "how": how}


def write_demo_report(
    folder: Path, text: Path, chat: Path, problems: Sequence[Problem], before: Sequence[str], after: Sequence[str]
) -> Path:
    """Write FOLDER/report.html; returns its path."""
    result = read_json(folder / "result.json")
    baselines = read_json(folder / "baselines.json")
    sections = [
        Section(("At a glance", "一览"), [_glance(result)]),
        Section(("What pretraining learned", "预训练学到了什么"), _bits([*baselines, _model_row(result)])),
        Section(
            ("What instruction taught", "指令微调教会了什么"),
            [_skills(result), samples(_samples(problems, before, after))],
        ),
        Section(("Pretraining", "预训练过程"), curves(read_metrics(text / "metrics.jsonl"))),
        Section(("Instruction tuning", "微调过程"), curves(read_metrics(chat / "metrics.jsonl"))),
        Section(("Attention", "注意力"), _attention(folder, problems)),
        Section(("Go on", "下一步"), [code([f"dougong chat {folder}", f'dougong generate {folder} "def main("'])]),
    ]
    with atomic_file(folder / "report.html") as stream:
        stream.write(page(("dougong demo: from text to answers", "斗拱演示：从文本到回答"), sections, str(folder)))
    return folder / "report.html"


def _glance(result: Mapping[str, Any]) -> str:
    facts = result["text"]
    after, before = (result[side][-1]["correct"] / result[side][-1]["total"] for side in ("after", "before"))
    bits = facts["held_out_bits_per_byte"]
    megabytes = f"{facts['train_bytes'] / 1e6:.1f} MB"
    return tiles(
        [
            (("Parameters", "参数"), facts["parameters"], ""),
            (("Text learned from", "训练文本"), megabytes, ("Python's own library", "Python 标准库")),
            (("Bytes a token", "每词元字节"), facts["bytes_per_token"], ("our own BPE", "自训练 BPE")),
            (("Held-out bits per byte", "留出文本每字节比特"), bits, ("lower is better", "越低越好")),
            (
                ("Unseen problems solved", "未见题目正确率"),
                f"{after:.0%}",
                (f"{before:.0%} before", f"微调前 {before:.0%}"),
            ),
        ]
    )


def _bits(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = sorted(rows, key=lambda row: row["bits_per_byte"])
    unit = ("bits per byte", "每字节比特")
    groups = [Group(row["name"], [Interval(row["bits_per_byte"])]) for row in rows]
    return [
        bar_chart(groups, [unit], ("Held-out text, beside honest baselines", "留出文本与基线对照"), unit),
        table(
            (("model", "模型"), unit, ("how", "说明")),
            [(row["name"], row["bits_per_byte"], row["how"]) for row in rows],
        ),
    ]


def _skills(result: Mapping[str, Any]) -> str:
    groups = [
        Group(
            before["skill"],
            [Interval(each["correct"] / each["total"], each["low"], each["high"]) for each in (before, after)],
        )
        for before, after in zip(result["before"], result["after"], strict=True)
    ]
    title = ("Accuracy on unseen problems, 95% intervals", "未见题目的正确率（95% 区间）")
    names = [("before", "微调前"), ("after", "微调后")]
    return bar_chart(groups, names, title, ("accuracy", "正确率"), percent=True)


def _samples(problems: Sequence[Problem], before: Sequence[str], after: Sequence[str], each: int = 3) -> list[Sample]:
    """The first few problems of every skill, right or wrong as they come."""
    shown, items = {}, []
    for problem, old, new in zip(problems, before, after, strict=True):
        shown[problem.skill] = shown.get(problem.skill, 0) + 1
        if shown[problem.skill] <= each:
            right = problem.check(old), problem.check(new)
            items.append(Sample(problem.prompt, problem.answer, old, new, right))
    return items


def _attention(folder: Path, problems: Sequence[Problem]) -> list[str]:
    """The attention of one head while the model reads a question about a context: the head that looks back furthest."""
    lm = load(folder)
    assert lm.tokenizer is not None
    problem = next(each for each in problems if each.skill == "context")
    ids = lm.tokenizer.render_ids(problem.messages, add_generation_prompt=True).ids
    best, chosen = -1.0, (0, 0)
    maps = [attention_map(lm.model, ids, layer) for layer in range(len(lm.model.layers))]
    for layer, weights in enumerate(maps):
        # The last row chooses the answer's first token: which head looks most sharply at one earlier place?
        sharpest = weights[:, -1, 1:-4].max(-1).values
        if float(sharpest.max()) > best:
            best, chosen = float(sharpest.max()), (layer, int(sharpest.argmax()))
    layer, head = chosen
    labels = [lm.tokenizer.decode([index], skip_special=False) for index in ids]
    title = (f"Layer {layer}, head {head}", f"第 {layer} 层，第 {head} 个头")
    note = (
        "Each row is a token, each column one it may look at. The last row chooses the first token of the answer; of "
        "all heads this one looks most sharply at a single place there.",
        "每行是一个词元，每列是它能看到的词元。最后一行决定回答的第一个词元；在所有注意力头中，这个头在该处看得最集中。",
    )
    return [paragraph(note), heat_map(maps[layer][head].tolist(), labels, labels, title)]
