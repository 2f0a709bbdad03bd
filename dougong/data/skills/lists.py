"""Operations on short lists of small numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from dougong.data.skills.problem import Difficulty, Problem, user

SKILL = "lists"


def _written(values: Sequence[int]) -> str:
    return " ".join(map(str, values))


TASKS: dict[str, tuple[tuple[str, ...], str, Callable[[Sequence[int]], str]]] = {
    "sort": (("Sort: {values}", "Put in order: {values}"), "排序：{values}", lambda v: _written(sorted(v))),
    "reverse": (("Reverse: {values}", "Turn around: {values}"), "倒序：{values}", lambda v: _written(v[::-1])),
    "max": (("Maximum of: {values}", "Largest of: {values}"), "最大的数：{values}", lambda v: str(max(v))),
    "min": (("Minimum of: {values}", "Smallest of: {values}"), "最小的数：{values}", lambda v: str(min(v))),
    "sum": (("Sum of: {values}", "Add up: {values}"), "求和：{values}", lambda v: str(sum(v))),
    "first": (("First of: {values}", "First number: {values}"), "第一个数：{values}", lambda v: str(v[0])),
    "last": (("Last of: {values}", "Last number: {values}"), "最后一个数：{values}", lambda v: str(v[-1])),
    "length": (("How many numbers: {values}", "Count: {values}"), "有几个数：{values}", lambda v: str(len(v))),
}


def draw(random: Random, difficulty: Difficulty) -> Problem:
    """One problem of this skill."""
    task = random.choice(tuple(TASKS))
    length = random.randint(*(difficulty.summed_length if task == "sum" else difficulty.list_length))
    values = [random.randint(*difficulty.list_values) for _ in range(length)]
    phrases, chinese, solve = TASKS[task]
    phrase = chinese if random.random() < difficulty.chinese else random.choice(phrases[: difficulty.phrasings])
    written = _written(values)
    return Problem(SKILL, task, f"{task} {written}", user(phrase.format(values=written)), solve(values))
