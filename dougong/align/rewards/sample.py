"""What rewards judge: an answer to a task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dougong.data.chat import Message


@dataclass(frozen=True)
class Task:
    """Something to be answered.

    answer    what is right, where one text is. solution: a whole right answer with its reasoning, to learn from
    grader    "exact" or "json": how generated problems compare (data/skills)
    facts     whatever else a reward needs: "schema" (JSON schema), "tests" (Python that fails on a wrong answer)
    """

    messages: tuple[Message, ...]
    answer: str = ""
    solution: str = ""
    grader: str = "exact"
    facts: dict[str, Any] = field(default_factory=dict)
    source: str = "unknown"


@dataclass(frozen=True)
class Sample:
    """One answer: its text, its tokens, and whether it came to an end by itself rather than at the limit."""

    task: Task
    text: str
    tokens: tuple[int, ...] = ()
    finished: bool = True


# One number a sample, in their order.
Reward = Callable[[Sequence[Sample]], list[float]]
