"""Debate: agents answer, read each other's answers and answer again; a judge concludes (Du et al. 2023,
arXiv:2305.14325; the judge after Liang et al. 2023, arXiv:2305.19118)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dougong.agent.delegate import delegate, stopped
from dougong.agent.limits import Ended
from dougong.agent.patterns.native import conclude
from dougong.agent.teams.names import alike, names

if TYPE_CHECKING:
    from dougong.agent.agent import Agent
    from dougong.agent.run import Run, Steps


def debate(run: Run, *, members: Sequence[Agent], rounds: int = 2) -> Steps[str]:
    """`rounds` rounds of answers, each member seeing those of the round before; then the run's own model judges.

    It ends early where all agree, and their answer needs no judge. A member that gives no answer is silent in the next
    round. Raises Ended where nobody answers.
    """
    said: dict[str, str] = {}
    called = names(members)
    for _ in range(max(1, rounds)):
        tasks = [(member, _task(run.task, name, said)) for member, name in zip(members, called, strict=True)]
        ended = yield from delegate(run, tasks)
        answers = {
            name: each.answer.strip()
            for name, each in zip(called, ended, strict=True)
            if each.reason == "answered" and each.answer.strip()
        }
        if not answers and not said:
            raise Ended("error", f"no member gave an answer: {'; '.join(map(stopped, ended))}")
        said = answers or said
        run.draft = next(iter(said.values()))
        if len(said) == len(members) and len({alike(each) for each in said.values()}) == 1:
            return next(iter(said.values()))
    run.begin(
        run.form,
        task=f"Task: {run.task}\n\nThese answers were given:\n\n{_listed(said)}\n\nYou are the judge. Weigh the "
        "reasons, and give the right answer to the task, whole. Most votes do not make an answer right.",
    )
    return (yield from conclude(run))


def _task(task: str, name: str, said: dict[str, str]) -> str:
    others = {other: answer for other, answer in said.items() if other != name}
    if not others:
        return task
    own = f"Your own answer was:\n{said[name]}\n\n" if name in said else ""
    return (
        f"{task}\n\n{own}Others answered:\n\n{_listed(others)}\n\nLook for mistakes in all of them, your own too, "
        "and answer the task again."
    )


def _listed(said: dict[str, str]) -> str:
    return "\n\n".join(f"{name}: {answer}" for name, answer in said.items())
