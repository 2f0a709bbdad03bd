"""`dougong lab`: experiments that measure what textbooks claim."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dougong.base import DougongError, atomic_file
from dougong.cli.options import Flag, hint, parse


@dataclass(frozen=True)
class Lab:
    """An experiment: small models of several kinds and seeds, trained and compared; a figure, a table, plain words.

    experiments: positions, norms, heads, experts, mixers, tuning, retrieval, rlhf

    examples:
      dougong lab positions
      dougong lab norms --seeds 2 --steps 100 --out runs/lab/quick
    """

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """of the experiment"""
    out: Annotated[Path | None, hint("runs/lab/NAME")] = None
    """folder for its trials and report.html; finished trials in it are not run again"""
    seeds: Annotated[int | None, hint("3")] = None
    """trials of each variant"""
    steps: Annotated[int | None, hint("the experiment's own")] = None
    """updates of each trial"""
    quiet: Flag = False
    """no progress"""


def run(args: list[str]) -> int:
    options = parse(Lab, args, "lab")
    for name in ("seeds", "steps"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise DougongError(f"--{name} is {value}; expected at least 1")
    from dougong.lab import experiment
    from dougong.lab.experiment import Budget, run_experiment
    from dougong.report import Section, page, paragraph
    from dougong.train import Stopped

    chosen = experiment(options.name)
    usual = chosen.budget()
    budget = Budget(options.steps or usual.steps, usual.rows, options.seeds or usual.seeds)
    folder = options.out or Path("runs/lab") / options.name
    try:
        results = run_experiment(chosen, folder, budget, options.quiet)
    except Stopped as stopped:
        done = str(stopped).partition(";")[0]
        print(f"lab {options.name}: {done}; the same command goes on from there", file=sys.stderr)
        return 130
    words = chosen.verdict(results)
    how = f"{budget.seeds} seeds, {budget.steps} updates of {budget.rows} rows; intervals are Student's 95% over seeds"
    sections = [
        Section(("Question", "问题"), [paragraph(chosen.question), paragraph(how)]),
        Section(("Figures", "图"), chosen.figures(results)),
        Section(("What the numbers say", "数字说了什么"), [paragraph(each) for each in words]),
    ]
    with atomic_file(folder / "report.html") as file:
        file.write(page(chosen.title, sections))
    print("\n".join(words))
    print(f"\nreport   {folder / 'report.html'}")
    return 0
