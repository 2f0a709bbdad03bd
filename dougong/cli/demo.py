"""`dougong demo`: the main job from end to end, offline: text, tokenizer, model, answers, report."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from dougong.base import DougongError, atomic_directory, read_json, write_json
from dougong.cli.demo_report import print_result, write_demo_report
from dougong.cli.recipes import parse_recipe
from dougong.data import SKILLS, Conversation, Problem, generate
from dougong.data.skills.context import UNKNOWN_SKILL
from dougong.evals import Accuracy, accuracy, baselines
from dougong.evals.skills import answer, unseen_problems
from dougong.train import Optimizer, Schedule, Stopped, Training
from dougong.train.monitor import Progress
from dougong.train.pretrain import collect, pretrain
from dougong.train.recipe import Architecture, ChatData, Pretrain, Sft, TokenizerChoice, at_least, open_run
from dougong.train.sft import load_for_chat, sft


def _text() -> Pretrain:
    training = Training(
        steps=400,
        optimizer=Optimizer("muon", rate=0.01, matrix_rate=0.02, weight_decay=0.1),
        schedule=Schedule("wsd", warmup=20, final=0.0, decay=0.4),
        checkpoint=50,
        evaluate=200,
        precision="auto",
    )
    model = Architecture(width=192, depth=4, heads=3, ffn=512)
    return Pretrain(tokenizer=TokenizerChoice(vocab=4096), model=model, training=training, batch=8, length=256)


def _chat() -> Sft:
    training = Training(
        steps=900,
        optimizer=Optimizer("adamw", rate=2.5e-3, weight_decay=0.0),
        schedule=Schedule("linear", warmup=10, final=0.0),
        checkpoint=50,
        evaluate=450,
        precision="auto",
    )
    return Sft(data=ChatData(held_out=0.01), training=training, batch=4, length=256)


@dataclass(frozen=True)
class Demo:
    """From raw text to a model you can talk to, offline, in minutes. Killed at any moment, --resume ends in the same
    weights.

    text  pretraining on the standard library of the running Python. chat: instruction tuning on generated problems
    problems, unseen  problems of every skill to learn from, and others to be measured on

    examples:
      dougong demo
      dougong demo --run runs/longer --text.training.steps 2000 --resume
    """

    run: Path = Path("runs/demo")
    text: Pretrain = field(default_factory=_text)
    chat: Sft = field(default_factory=_chat)
    problems: int = 6000
    unseen: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, problems=1, unseen=1)
        reach = max(self.text.model.context, self.text.length)
        if self.chat.length > reach:
            raise DougongError(f"chat.length is {self.chat.length}, but the model is made for {reach} tokens; lower it")

    def stages(self) -> Demo:
        """The same recipe with the stages' folders inside the run's."""
        text = replace(self.text, run=self.run / "text")
        return replace(self, text=text, chat=replace(self.chat, model=text.run / "model", run=self.run / "chat"))


def run(args: list[str]) -> int:
    recipe, resume = parse_recipe(Demo, args, "demo")
    try:
        demo(recipe.stages(), resume)
    except Stopped as stopped:
        print(f"demo: {stopped}: dougong demo --run {recipe.run} --resume", file=sys.stderr)
        return 130
    return 0


def demo(recipe: Demo, resume: bool) -> None:
    """Run what is not done yet; every stage leaves its result whole in the run folder."""
    folder = open_run(recipe, resume)
    began = time.monotonic()
    _say("1-3  collect, tokenize, pretrain")
    text = pretrain(recipe.text, resume=(recipe.text.run / "recipe.yaml").is_file())
    measured = folder / "baselines.json"
    if not measured.is_file():
        _say("     baselines: unigram, order-n bytes, xz")
        train, held_out = collect(recipe.text.data)
        sides = ("".join(document.text for document in side).encode() for side in (train, held_out))
        write_json(measured, [asdict(each) for each in baselines(*sides)])
    problems = unseen_problems(recipe.unseen, recipe.seed)
    before = _answers(recipe.text.run / "model", folder / "before.json", problems, "answers before")
    _say("4    instruct")
    conversations = skill_conversations(recipe.problems, recipe.seed)
    chat = sft(recipe.chat, conversations, resume=(recipe.chat.run / "recipe.yaml").is_file())
    after = _answers(recipe.chat.run / "model", folder / "after.json", problems, "answers after")
    if not (folder / "model").is_dir():
        with atomic_directory(folder / "model") as temporary:
            shutil.copytree(recipe.chat.run / "model", temporary, dirs_exist_ok=True)
    scores: tuple[list[Accuracy], list[Accuracy]] = accuracy(before, problems), accuracy(after, problems)
    write_json(
        folder / "result.json",
        {"text": text, "chat": chat, "before": [asdict(x) for x in scores[0]], "after": [asdict(x) for x in scores[1]]},
    )
    _say("5    report")
    page = write_demo_report(folder, recipe.text.run, recipe.chat.run, problems, before, after)
    print_result(folder, read_json(folder / "result.json"), read_json(measured))
    print(f'\nreport   {page}\ntalk     dougong chat {folder}\nwrite    dougong generate {folder} "def main("')
    print(f"\nthis call took {time.monotonic() - began:.0f} s")


def skill_conversations(count: int, seed: int) -> list[Conversation]:
    """`count` training problems of every skill with their answers, of "unknown" a third.

    A model that cannot read yet does best by never answering, and with more of them it stays there.
    """
    counts = {skill: max(1, count // 3) if skill == UNKNOWN_SKILL else count for skill in SKILLS}
    return [problem.conversation() for skill in SKILLS for problem in generate(skill, seed, counts[skill])]


def _answers(model: Path, kept: Path, problems: list[Problem], label: str) -> list[str]:
    """The model's answers, asked once and kept in a file."""
    if not kept.is_file():
        with Progress(label, len(problems)) as bar:
            write_json(kept, answer(load_for_chat(model), problems, progress=bar.update))
    return read_json(kept)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
