"""The demo's result in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dougong.cli.demo_stages import STAGES
from dougong.data import SKILLS
from dougong.report import bar

MODEL = "this model"


def print_result(folder: Path, result: Mapping[str, Any], measured: Sequence[Mapping[str, Any]]) -> None:
    """Bits per byte beside the baselines, accuracy by skill after every stage, what each raised, tools."""
    from rich.console import Console

    console = Console()
    for table in (_bits(folder, result, measured), _skills(result), _raised(result), _tools(result)):
        console.print(table)


def model_row(result: Mapping[str, Any]) -> dict[str, Any]:
    """The model among the baselines."""
    text = result["text"]
    how = f"{text['parameters']:,} parameters, half a row of context before each counted token"
    return {"name": MODEL, "bits_per_byte": text["held_out_bits_per_byte"], "how": how}


def share(row: Mapping[str, Any]) -> float:
    return row["correct"] / row["total"]


def between(row: Mapping[str, Any], signed: bool = False) -> str:
    """The interval of a share, or of a difference of shares, in words."""
    return f"{row['low']:+.0%} to {row['high']:+.0%}" if signed else f"{row['low']:.0%} to {row['high']:.0%}"


def verdict(row: Mapping[str, Any]) -> tuple[str, str]:
    """What the interval of a difference says of it, in English and Chinese."""
    if row["low"] > 0:
        return "raised", "已提高"
    return ("lowered", "已降低") if row["high"] < 0 else ("no difference shown", "未显出差别")


def _table(title: str, *columns: str) -> Any:
    from rich.table import Table

    return Table(*columns, title=title, title_justify="left")


def _bits(folder: Path, result: Mapping[str, Any], measured: Sequence[Mapping[str, Any]]) -> Any:
    table = _table(f"What {folder} learned", "held-out text", "bits per byte")
    for each in sorted([*measured, model_row(result)], key=lambda row: -row["bits_per_byte"]):
        table.add_row(each["name"], f"{each['bits_per_byte']:.3f}", style="bold" if each["name"] == MODEL else "")
    return table


def _skills(result: Mapping[str, Any]) -> Any:
    stages = [stage for stage in STAGES if stage.name in result["accuracy"]]
    names = [stage.label[0] for stage in stages]
    table = _table("Accuracy on unseen problems after each stage", "skill", *names, "", "95% interval", "n")
    for rows in zip(*(result["accuracy"][stage.name] for stage in stages), strict=True):
        last = rows[-1]
        shares = [f"{share(row):.0%}" for row in rows]
        table.add_row(last["skill"], *shares, bar(share(last), 8), between(last), str(last["total"]))
    return table


def _raised(result: Mapping[str, Any]) -> Any:
    table = _table(
        "What each stage did to what it targets (same problems, paired)",
        "stage",
        "targets",
        "best answers",
        "drawn answers",
        "best, all",
    )
    for stage in STAGES:
        if stage.name in result["raised"]:
            change = result["raised"][stage.name]
            on, every = change["target"], change["all"]
            targets = "all" if len(stage.targets) == len(SKILLS) else ", ".join(stage.targets)
            free = change.get("drawn")
            table.add_row(stage.label[0], targets, _change(on), _change(free) if free else "", f"{every['share']:+.1%}")
    return table


def _change(row: Mapping[str, Any]) -> str:
    return f"{row['share']:+.1%} ({between(row, True)}): {verdict(row)[0]}"


def _tools(result: Mapping[str, Any]) -> Any:
    table = _table("What tools are worth", "questions", "tool", "alone", "with", "95% interval", "n")
    for row in result["tools"]:
        alone, helped = row["alone"], row["with"]
        table.add_row(
            row["label"][0], row["tool"], f"{share(alone):.0%}", f"{share(helped):.0%}", between(helped),
            str(helped["total"]),
        )  # fmt: skip
    return table
