"""Accuracy by skill, with intervals that stay honest for few problems and for shares near 0 and 1."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from dougong.base import DougongError
from dougong.data.skills import Problem

ALL = "all"


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """How many of the problems of one skill were answered rightly, and the 95% interval of the true share."""

    skill: str
    correct: int
    total: int
    low: float
    high: float

    @property
    def share(self) -> float:
        """correct / total."""
        return self.correct / self.total


def wilson(correct: int, total: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """The Wilson (1927) score interval of a share; z = 1.96 covers 95%.

    (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n) with p = correct / total. Raises DougongError unless
    0 <= correct <= total and total > 0.
    """
    if not 0 <= correct <= total or total == 0:
        raise DougongError(f"{correct} right of {total} is no share; expected 0 <= right <= all, and some problems")
    p, n = correct / total, total
    middle = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # Rounding may push the ends a hair beyond the share itself at 0 and 1.
    return max(0.0, min(p, (middle - spread) / scale)), min(1.0, max(p, (middle + spread) / scale))


def accuracy(answers: Sequence[str], problems: Sequence[Problem]) -> list[Accuracy]:
    """A row for each skill, in the order in which the problems name them, and last the row "all".

    answers[i] answers problems[i]. Raises DougongError when their numbers differ or there are none.
    """
    if len(answers) != len(problems) or not problems:
        raise DougongError(f"{len(answers)} answers to {len(problems)} problems; expected one each, and at least one")
    marks: dict[str, list[bool]] = {}
    for answer, problem in zip(answers, problems, strict=True):
        marks.setdefault(problem.skill, []).append(problem.check(answer))
    marks[ALL] = [mark for skill in tuple(marks) for mark in marks[skill]]
    return [Accuracy(skill, sum(row), len(row), *wilson(sum(row), len(row))) for skill, row in marks.items()]
