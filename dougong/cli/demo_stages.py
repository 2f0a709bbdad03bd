"""What stands between the demo's stages: data for each, and the measure after each."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dougong.align.preferences import Pair
from dougong.align.rewards.sample import Task
from dougong.align.tasks import tasks_of
from dougong.base import DougongError, read_json, write_json
from dougong.data import SKILLS, Conversation, Problem, generate
from dougong.data.skills.context import UNKNOWN_SKILL
from dougong.data.skills.template import BRIEF_TEMPLATE
from dougong.engine import Engine, Sampling
from dougong.evals import accuracy
from dougong.evals.paired import Change, Shift, paired, shifted
from dougong.evals.skills import answer
from dougong.hub import LanguageModel, load, save
from dougong.train.monitor import Progress
from dougong.train.sft import load_for_chat


@dataclass(frozen=True)
class Stage:
    """A stage of learning: its name and what people call it, and the skills that it must raise."""

    name: str
    label: tuple[str, str]
    targets: tuple[str, ...] = ()


STAGES: tuple[Stage, ...] = (
    Stage("before", ("before", "微调前")),
    Stage("sft", ("SFT", "指令微调"), tuple(SKILLS)),
    Stage("prefer", ("prefer", "偏好调优"), ("strings", "lists")),
    Stage("rl", ("GRPO", "GRPO"), ("arithmetic", "lists")),
)
DRAWS = 4
TARGETS = {stage.name: stage.targets for stage in STAGES}


def with_brief_template(model: Path, folder: Path) -> Path:
    """`folder`: the model with a chat template in which tools cost few tokens, and which takes the most probable token
    unless told otherwise: one wrong digit spoils a call."""
    if not (folder / "config.json").is_file():
        lm = load(model)
        assert lm.tokenizer is not None
        lm.tokenizer = lm.tokenizer.with_chat_template(BRIEF_TEMPLATE)
        save(replace(lm, generation={**lm.generation, "do_sample": False}), folder)
    return folder


def skill_conversations(count: int, seed: int) -> list[Conversation]:
    """`count` training problems of every skill with their answers, of "unknown" a third.

    A model that cannot read yet does best by never answering, and with more of them it stays there.
    """
    counts = {skill: max(1, count // 3) if skill == UNKNOWN_SKILL else count for skill in SKILLS}
    return [problem.conversation() for skill in SKILLS for problem in generate(skill, seed, counts[skill])]


def tasks(count: int, seed: int) -> list[Task]:
    """`count` training problems of every skill that reinforcement learning targets."""
    return tasks_of([problem for skill in TARGETS["rl"] for problem in generate(skill, seed, count)])


def own_pairs(model: Path, kept: Path, count: int, seed: int) -> list[Pair]:
    """Pairs made of the model's own mistakes: to `count` training problems of every skill that preference targets it
    gives its most probable answer and DRAWS drawn ones, and the true answer is preferred to each wrong one. Sampled
    once and kept in a file.

    Only problems count of which the model got some right and some wrong: what it can do but does not always do, a
    preference can teach; what it never does, it would learn by heart. Where there are none of these, all count.
    Raises DougongError when there was no mistake.
    """
    problems = [problem for skill in TARGETS["prefer"] for problem in generate(skill, seed, count)]
    told = kept_samples(model, kept, problems, seed, "own answers", DRAWS)
    marks = [[problem.check(text) for text in texts] for problem, texts in zip(problems, told, strict=True)]
    some = any(any(each) and not all(each) for each in marks)
    pairs = [
        Pair(problem.messages, _said(problem.answer), _said(text), source=f"skill:{problem.skill}/{problem.task}")
        for problem, texts, right in zip(problems, told, marks, strict=True)
        if any(right) or not some
        for text in dict.fromkeys(texts)
        if not problem.check(text)
    ]
    if not pairs:
        raise DougongError(
            f"the model got none of {len(problems)} problems wrong, so there is nothing to prefer; raise asked"
        )
    return pairs


def _said(text: str) -> tuple[dict[str, Any], ...]:
    return ({"role": "assistant", "content": text},)


def kept_samples(
    model: Path, kept: Path, problems: Sequence[Problem], seed: int, label: str, draws: int
) -> list[list[str]]:
    """To each problem the model's most probable answer, then `draws` from its own distribution (temperature 1); asked
    once and kept."""
    if not kept.is_file():
        with Progress(label, len(problems)) as bar:
            write_json(kept, _samples(load_for_chat(model), problems, draws, seed, bar))
    return read_json(kept)


def _samples(
    lm: LanguageModel, problems: Sequence[Problem], draws: int, seed: int, bar: Progress, at_once: int = 128
) -> list[list[str]]:
    assert lm.tokenizer is not None
    engine = Engine(lm, max_batch=128)
    found: list[list[str]] = []
    for start in range(0, len(problems), at_once):
        part = problems[start : start + at_once]
        prompts = [lm.tokenizer.render_ids(each.messages, add_generation_prompt=True).ids for each in part]
        best = Sampling(max_tokens=40, temperature=0.0)
        rounds = [[done.text for done in engine.generate(prompts, best)]]
        for number in range(draws):
            first = seed * 1_000_003 + start * draws + number
            how = [Sampling(max_tokens=40, seed=first + at * draws) for at in range(len(part))]
            rounds.append([done.text for done in engine.generate(prompts, how)])
        found += [list(texts) for texts in zip(*rounds, strict=True)]
        bar.update(len(found))
    return found


@dataclass(frozen=True)
class Effect:
    """What a stage did on the skills that it targets, on the same problems before and after it: to the most probable
    answers, and to the share of right ones among answers that are drawn, as in chat."""

    best: Change
    drawn: Shift


def aimed_problems(stage: str, count: int, seed: int) -> list[Problem]:
    """`count` problems of every skill that a stage targets which no stage learned from; all where there are fewer."""
    return [each for skill in TARGETS[stage] for each in generate(skill, seed, count, split="test", fewer=True)]


def effect(
    folder: Path, stage: str, models: tuple[Path, Path], problems: Sequence[Problem], seed: int, draws: int = 1
) -> Effect:
    """Of a stage that makes the second model of the first one; the answers are kept in `folder`."""
    marks: list[list[list[bool]]] = []
    for side, model in zip(("before", "after"), models, strict=True):
        kept = folder / f"{stage}_{side}.json"
        told = kept_samples(model, kept, problems, seed, f"answers {side} {stage}", draws)
        marks.append([[problem.check(text) for text in texts] for problem, texts in zip(problems, told, strict=True)])
    before, after = marks
    best = paired([each[0] for each in before], [each[0] for each in after])
    shares = [[sum(each[1:]) / draws for each in side] for side in (before, after)]
    return Effect(best, shifted(shares[0], shares[1]))


def kept_answers(model: Path, kept: Path, problems: Sequence[Problem], label: str) -> list[str]:
    """The model's answers, asked once and kept in a file."""
    if not kept.is_file():
        with Progress(label, len(problems)) as bar:
            write_json(kept, answer(load_for_chat(model), problems, progress=bar.update))
    return read_json(kept)


def stage_figures(
    problems: Sequence[Problem], answers: dict[str, list[str]], effects: dict[str, Effect]
) -> dict[str, Any]:
    """ "accuracy": of every stage by skill, best answers. "raised": of every stage after the first, the change from the
    one before on the skills that it targets ("target"; with "drawn" where answers were drawn) and on all ("all")."""
    marks = {
        name: [problem.check(text) for problem, text in zip(problems, texts, strict=True)]
        for name, texts in answers.items()
    }
    raised: dict[str, Any] = {}
    for before, after in itertools.pairwise(answers):
        every = paired(marks[before], marks[after])
        row: dict[str, Any] = {"skills": list(TARGETS[after]), "all": _changed(every), "target": _changed(every)}
        if after in effects:
            row |= {"target": _changed(effects[after].best), "drawn": _changed(effects[after].drawn)}
        raised[after] = row
    shares = {name: [asdict(row) for row in accuracy(texts, problems)] for name, texts in answers.items()}
    return {"accuracy": shares, "raised": raised}


def _changed(change: Change | Shift) -> dict[str, Any]:
    return {**asdict(change), "share": change.share}
