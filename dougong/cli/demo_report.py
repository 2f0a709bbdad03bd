"""What the demo leaves for people to look at: report.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dougong.base import atomic_file, read_json
from dougong.cli.demo_print import between, model_row, share, verdict
from dougong.cli.demo_stages import STAGES
from dougong.cli.demo_tools import Trial
from dougong.cli.prefer import CHARTS as PREFER_CHARTS
from dougong.cli.rl import CHARTS as RL_CHARTS
from dougong.data import SKILLS, Problem
from dougong.evals.attention import attention_map
from dougong.hub import load
from dougong.report import (
    Group,
    Interval,
    Sample,
    Section,
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

Told = Mapping[str, Mapping[str, Sequence[Any]]]


def write_demo_report(
    folder: Path,
    problems: Sequence[Problem],
    answers: Mapping[str, Sequence[str]],
    trials: Sequence[Trial],
    told: Told,
) -> Path:
    """Write FOLDER/report.html; returns its path. answers: of every stage; told: of every trial of a tool."""
    result = read_json(folder / "result.json")
    baselines = read_json(folder / "baselines.json")

    def metrics(stage: str) -> list[dict[str, Any]]:
        return read_metrics(folder / stage / "metrics.jsonl")

    sections = [
        Section(("At a glance", "一览"), [_glance(result)]),
        Section(("What pretraining learned", "预训练学到了什么"), _bits([*baselines, model_row(result)])),
        Section(("What each stage taught", "每一阶段教会了什么"), _stages(result)),
        Section(("Tools", "工具"), _tools(result, trials, told)),
        Section(("Problems and answers", "题目与回答"), [samples(_samples(problems, answers))]),
        Section(("Pretraining", "预训练过程"), curves(metrics("text"))),
        Section(("Instruction tuning", "微调过程"), curves(metrics("chat"))),
        Section(("Preference tuning", "偏好调优过程"), curves(metrics("prefer"), PREFER_CHARTS)),
        Section(("Reinforcement learning", "强化学习过程"), curves(metrics("rl"), RL_CHARTS)),
        Section(("Attention", "注意力"), _attention(folder, problems)),
        Section(("Go on", "下一步"), [code(_commands(folder))]),
    ]
    with atomic_file(folder / "report.html") as stream:
        stream.write(page(("dougong demo: from text to answers", "斗拱演示：从文本到回答"), sections, str(folder)))
    return folder / "report.html"


def _commands(folder: Path) -> list[str]:
    return [
        f"dougong chat {folder}",
        f'dougong agent run "What is 48291 + 99372?" --model {folder}',
        f'dougong generate {folder} "def main(" --temperature 0.8',
    ]


def _glance(result: Mapping[str, Any]) -> str:
    facts, stages = result["text"], result["accuracy"]
    first, last = (share(stages[name][-1]) for name in (STAGES[0].name, STAGES[-1].name))
    megabytes = f"{facts['train_bytes'] / 1e6:.1f} MB"
    shown = [
        (("Parameters", "参数"), facts["parameters"], ""),
        (("Text learned from", "训练文本"), megabytes, ("Python's own library", "Python 标准库")),
        (("Bytes a token", "每词元字节"), facts["bytes_per_token"], ("our own BPE", "自训练 BPE")),
        (
            ("Held-out bits per byte", "留出文本每字节比特"),
            facts["held_out_bits_per_byte"],
            ("lower is better", "越低越好"),
        ),
        (("Unseen problems solved", "未见题目正确率"), f"{last:.0%}", (f"{first:.0%} before", f"微调前 {first:.0%}")),
    ]
    for row in result["tools"][:1]:
        alone, helped = (f"{share(row[side]):.0%}" for side in ("alone", "with"))
        shown.append((("Long sums with a tool", "用工具算大数"), helped, (f"{alone} alone", f"不用 {alone}")))
    return tiles(shown)


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


def _interval(row: Mapping[str, Any]) -> Interval:
    return Interval(share(row), row["low"], row["high"])


def _stages(result: Mapping[str, Any]) -> list[str]:
    stages = [stage for stage in STAGES if stage.name in result["accuracy"]]
    by_skill = list(zip(*(result["accuracy"][stage.name] for stage in stages), strict=True))
    groups = [Group(rows[0]["skill"], [_interval(row) for row in rows]) for rows in by_skill]
    names = [stage.label for stage in stages]
    title = ("Accuracy on unseen problems, 95% intervals", "未见题目的正确率（95% 区间）")
    note = (
        "Every stage begins with the model of the one before and is measured on the same problems, which no stage "
        "learned from. Preference tuning prefers true answers to the model's own wrong ones; GRPO rewards answers "
        "that a checker finds right. Both sharpen what the model draws by chance; its most probable answers, which the "
        "chart counts, need not change.",
        "每一阶段都从上一阶段的模型开始，用同一批任何阶段都没学过的题目衡量。偏好调优让模型偏好正确答案而非自己的错误回答；"
        "GRPO 奖励检查通过的回答。二者首先改善随机采样的回答；图中统计的最可能回答不一定变化。",
    )
    return [
        paragraph(note),
        bar_chart(groups, names, title, ("accuracy", "正确率"), percent=True),
        table(
            (("skill", "技能"), *names, ("problems", "题数")),
            [
                (rows[0]["skill"], *(f"{share(r):.0%} ({between(r)})" for r in rows), rows[0]["total"])
                for rows in by_skill
            ],
        ),
        _raised(result),
    ]


def _raised(result: Mapping[str, Any]) -> str:
    rows = []
    for stage in STAGES:
        if stage.name not in result["raised"]:
            continue
        change = result["raised"][stage.name]
        on = change["target"]
        told = _verdict(on)
        moves = f"+{on['won']} −{on['lost']}"
        every = _verdict(change["all"])
        free = change.get("drawn")
        loose = _verdict(free, f"{free['before']:.1%} → {free['after']:.1%}, ") if free else ""
        targets = ("all", "全部") if len(stage.targets) == len(SKILLS) else ", ".join(stage.targets)
        rows.append((stage.label, targets, told, moves, loose, on["total"], every))
    return table(
        (
            ("stage", "阶段"),
            ("targets", "目标技能"),
            ("most probable answers, on its targets", "目标上的最可能回答"),
            ("now right, now wrong", "变对与变错"),
            ("answers drawn at temperature 1, on its targets", "目标上温度 1 采样的回答"),
            ("problems", "题数"),
            ("most probable answers, on all skills", "全部技能的最可能回答"),
        ),
        rows,
    )


def _verdict(row: Mapping[str, Any], before: str = "") -> tuple[str, str]:
    """A difference with its interval, and plainly whether it is one."""
    told, (en, zh) = f"{before}{row['share']:+.1%} ({between(row, True)})", verdict(row)
    return f"{told}: {en}", f"{told}：{zh}"


def _tools(result: Mapping[str, Any], trials: Sequence[Trial], told: Told) -> list[str]:
    sides = ("alone", "with")
    rows = list(zip(trials, result["tools"], strict=True))
    groups = [Group(trial.label, [_interval(row[side]) for side in sides]) for trial, row in rows]
    title = ("Right answers without and with a tool, 95% intervals", "不用与用工具的正确率（95% 区间）")
    note = (
        "The agent asks the model, runs the calculator or the search that it calls, and shows it the result. Training "
        "named nobody and nothing that these questions ask about.",
        "智能体询问模型，执行它调用的计算器或搜索，再把结果给它看。这些问题中的人与事在训练中从未出现。",
    )
    names = [("alone", "不用"), ("with the tool", "用工具")]
    cells = [
        (trial.label, row["tool"], *(f"{share(row[side]):.0%} ({between(row[side])})" for side in sides))
        for trial, row in rows
    ]
    totals = [row["with"]["total"] for _, row in rows]
    headers = (("questions", "问题"), ("tool", "工具"), *names, ("n", "题数"))
    parts = [
        paragraph(note),
        bar_chart(groups, names, title, ("right", "正确率"), percent=True),
        table(headers, [(*row, total) for row, total in zip(cells, totals, strict=True)]),
    ]
    for trial in trials:
        for errand, lines in zip(trial.errands, told[trial.name]["shown"], strict=False):
            said = [("question", errand.asked), *lines, ("truth", errand.answer)]
            parts.append(code([line for who, text in said for line in _line(who, text)]))
    return parts


def _line(who: str, text: str) -> list[str]:
    """Who said what, the further lines of a text below its first."""
    first, *rest = text.splitlines() or [""]
    return [f"{who:>9}  {first}", *(f"{'':>9}  {line}" for line in rest)]


def _samples(problems: Sequence[Problem], answers: Mapping[str, Sequence[str]], each: int = 3) -> list[Sample]:
    """The first few problems of every skill, right or wrong as they come: before all stages, and after."""
    shown: dict[str, int] = {}
    items: list[Sample] = []
    first, last = (answers[stage.name] for stage in (STAGES[0], STAGES[-1]))
    for problem, old, new in zip(problems, first, last, strict=True):
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
