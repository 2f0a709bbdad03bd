"""`dougong pretrain`: text to model."""

from __future__ import annotations

from dougong.cli.recipes import parse_recipe, run_job
from dougong.train.pretrain import pretrain
from dougong.train.ranks import Ranks
from dougong.train.recipe import Pretrain
from dougong.train.report import write_report


def run(args: list[str]) -> int:
    recipe, resume = parse_recipe(Pretrain, args, "pretrain")
    status = run_job(lambda: pretrain(recipe, resume), recipe.run, "pretrain")
    if status == 0 and Ranks.join().first:
        write_report(recipe.run, ("Pretraining", "预训练"))
    return status
