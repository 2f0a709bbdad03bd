"""`dougong demo`: the main job from end to end, offline: text, tokenizer, model, answers, rewards, tools, report."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dougong.align.prefer import prefer
from dougong.align.rl import rl
from dougong.base import atomic_directory, read_json, write_json
from dougong.cli.demo_print import print_result
from dougong.cli.demo_recipe import Demo
from dougong.cli.demo_report import write_demo_report
from dougong.cli.demo_stages import (
    aimed_problems,
    effect,
    kept_answers,
    own_pairs,
    skill_conversations,
    stage_figures,
    tasks,
    with_brief_template,
)
from dougong.cli.demo_tools import errand_conversations, kept_trials, tool_figures, trials
from dougong.cli.recipes import parse_recipe
from dougong.data import Conversation
from dougong.evals import baselines
from dougong.evals.skills import unseen_problems
from dougong.train import Stopped
from dougong.train.pretrain import collect, pretrain
from dougong.train.recipe import open_run, read_recipe
from dougong.train.sft import sft


def run(args: list[str]) -> int:
    recipe, resume = parse_recipe(Demo, args, "demo")
    try:
        if not resume and finished(recipe.stages()):
            show(recipe.run)
            print(f"\nthe run is finished; delete {recipe.run} to start anew, or name another folder with --run")
        else:
            demo(recipe.stages(), resume)
    except Stopped as stopped:
        print(f"demo: {stopped}: dougong demo --run {recipe.run} --resume", file=sys.stderr)
        return 130
    return 0


def finished(recipe: Demo) -> bool:
    """Whether the folder holds a whole run of just this recipe."""
    folder = recipe.run
    whole = all((folder / name).is_file() for name in ("recipe.yaml", "result.json", "baselines.json", "report.html"))
    return whole and read_recipe(Demo, folder / "recipe.yaml") == recipe


def demo(recipe: Demo, resume: bool) -> None:
    """Run what is not done yet; every stage leaves its result whole in the run folder."""
    folder = open_run(recipe, resume)
    began = time.monotonic()
    _say("1-3  collect, tokenize, pretrain")
    text = pretrain(recipe.text, resume=_begun(recipe.text.run))
    if not (folder / "baselines.json").is_file():
        _say("     baselines: unigram, order-n bytes, xz")
        train, held_out = collect(recipe.text.data)
        sides = ("".join(document.text for document in side).encode() for side in (train, held_out))
        write_json(folder / "baselines.json", [asdict(each) for each in baselines(*sides)])
    problems = unseen_problems(recipe.unseen, recipe.seed)
    answers: dict[str, list[str]] = {}
    kept = folder / "answers"

    def measure(name: str, model: Path) -> None:
        answers[name] = kept_answers(model, kept / f"{name}.json", problems, f"answers {name}")

    def learn(name: str, label: str, job: Callable[[], dict[str, float]], run: Path) -> dict[str, float]:
        _say(label)
        figures = job()
        measure(name, run / "model")
        return figures

    measure("before", with_brief_template(recipe.text.run / "model", folder / "start"))

    def instruct() -> dict[str, float]:
        conversations = [] if (recipe.chat.run / "result.json").is_file() else _conversations(recipe)
        return sft(recipe.chat, conversations, resume=_begun(recipe.chat.run))

    def choose() -> dict[str, float]:
        pairs = own_pairs(recipe.prefer.model, kept / "own.json", recipe.asked, recipe.seed + 1)
        return prefer(recipe.prefer, pairs, resume=_begun(recipe.prefer.run))

    def practise() -> dict[str, float]:
        return rl(recipe.rl, tasks(recipe.tasks, recipe.seed + 2), resume=_begun(recipe.rl.run))

    figures: dict[str, Any] = {
        "text": text,
        "chat": learn("sft", "4    instruct", instruct, recipe.chat.run),
        "prefer": learn("prefer", "5    prefer", choose, recipe.prefer.run),
        "rl": learn("rl", "6    reinforce", practise, recipe.rl.run),
    }
    if not (folder / "model").is_dir():
        with atomic_directory(folder / "model") as temporary:
            shutil.copytree(recipe.rl.run / "model", temporary, dirs_exist_ok=True)
    effects = {
        name: effect(
            kept, name, (stage.model, stage.run / "model"), aimed_problems(name, recipe.aimed, recipe.seed), recipe.seed
        )
        for name, stage in (("prefer", recipe.prefer), ("rl", recipe.rl))
    }
    _say("7    tools")
    errands = trials(recipe.unseen, recipe.seed)
    told = kept_trials(folder / "model", kept / "tools.json", errands)
    result = {**figures, **stage_figures(problems, answers, effects), "tools": tool_figures(errands, told)}
    write_json(folder / "result.json", result)
    _say("8    report")
    write_demo_report(folder, problems, answers, errands, told)
    show(folder)
    print(f"\nthis call took {time.monotonic() - began:.0f} s")


def show(folder: Path) -> None:
    """Print the result of a finished run, and what to do with its model."""
    print_result(folder, read_json(folder / "result.json"), read_json(folder / "baselines.json"))
    print(f"\nreport   {folder / 'report.html'}\ntalk     dougong chat {folder}")
    print(f'act      dougong agent run "What is 48291 + 99372?" --model {folder}')
    print(f'write    dougong generate {folder} "def main(" --temperature 0.8')


def _conversations(recipe: Demo) -> list[Conversation]:
    skills = skill_conversations(recipe.problems, recipe.seed)
    return skills + errand_conversations(recipe.errands, recipe.seed)


def _begun(run: Path) -> bool:
    return (run / "recipe.yaml").is_file()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
