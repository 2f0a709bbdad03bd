"""`dougong sft`: conversations to a model that answers."""

from __future__ import annotations

from dougong.cli.recipes import parse_recipe, run_job
from dougong.train.ranks import Ranks
from dougong.train.recipe import Sft
from dougong.train.report import write_report
from dougong.train.sft import sft
from dougong.tune import METHODS


def run(args: list[str]) -> int:
    recipe, resume = parse_recipe(Sft, args, "sft")
    whole = recipe.tune.method == "none" or METHODS[recipe.tune.method].whole
    told = (
        ""
        if whole
        else f"the adapter is {recipe.run / 'adapter'}; make a model of it with\n  dougong merge {recipe.run}"
    )
    status = run_job(lambda: sft(recipe, resume=resume), recipe.run, "sft", told)
    if status == 0 and Ranks.join().first:
        write_report(recipe.run, ("Fine-tuning", "微调"))
    return status
