"""Reflexion: trials, and lessons from those that failed (Shinn et al. 2023, arXiv:2303.11366)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dougong.agent.events import Lesson
from dougong.agent.limits import Ended
from dougong.agent.outside import Verify
from dougong.agent.patterns.native import Pattern
from dougong.agent.patterns.react import react

if TYPE_CHECKING:
    from dougong.agent.run import Run, Steps

HEADING = "Lessons from earlier attempts at this task:"


def reflexion(run: Run, *, verify: Verify, base: Pattern = react, trials: int = 3) -> Steps[str]:
    """Try; let `verify` say what is wrong; write down what is to be done differently; try again from the beginning.

    verify: an answer to what is wrong with it, None for a right one: from outside the model (a test, a check of the
    world), for models judge themselves too kindly. A trial that goes round in circles (the limit of repeats) has failed
    too, unless it is the last. Lessons stand in the instructions of all later trials. After the last trial the last
    answer is returned, as the best there is; the Judged event before it says what is wrong.
    """
    if trials < 1:
        raise Ended("error", f"reflexion has {trials} trials; give at least 1")
    notes, lessons, answer = list(run.notes), [], ""
    for trial in range(1, trials + 1):
        run.notes = [*notes, "\n".join([HEADING, *(f"- {each}" for each in lessons)])] if lessons else notes
        try:
            answer = yield from base(run)
        except Ended as end:
            if end.reason != "repeats" or trial == trials:
                raise
            answer, fault = "", end.detail
            run.drop_open_calls()
        else:
            fault = yield from run.judge(verify, answer)
        if not fault:
            break
        if trial < trials:
            lessons.append((yield from _lesson(run, trial, answer, fault)))
    return answer


def _lesson(run: Run, trial: int, answer: str, fault: str) -> Steps[str]:
    said = f"Your answer was: {answer}\nIt is wrong: {fault}" if answer else f"You came to no answer: {fault}"
    run.tell(
        f"{said}\nIn one or two sentences: what was the mistake, and what "
        "will you do differently in the next attempt? Do not answer the task now."
    )
    said = yield from run.think(tools=False, purpose="lesson")
    text = " ".join(said.content.split()) or (f"The answer {answer!r:.80} is wrong: {fault}" if answer else fault)
    yield run.event(Lesson, trial=trial, text=text)
    return text
