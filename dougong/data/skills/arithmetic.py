"""Sums, differences and comparisons of small numbers, in English and Chinese."""

from __future__ import annotations

from random import Random

from dougong.data.skills.problem import Difficulty, Problem, user

SKILL = "arithmetic"

PHRASES = {
    "add": ("What is {a} + {b}?", "Add {a} and {b}.", "{a} + {b} ="),
    "subtract": ("What is {a} - {b}?", "Take {b} from {a}.", "{a} - {b} ="),
    "larger": ("Which is larger, {a} or {b}?", "The larger of {a} and {b}?"),
    "smaller": ("Which is smaller, {a} or {b}?", "The smaller of {a} and {b}?"),
}
CHINESE = {
    "add": "{a} 加 {b} 等于多少？",
    "subtract": "{a} 减 {b} 等于多少？",
    "larger": "{a} 和 {b} 哪个大？",
    "smaller": "{a} 和 {b} 哪个小？",
}


def draw(random: Random, difficulty: Difficulty) -> Problem:
    """One problem of this skill."""
    task = random.choice(tuple(PHRASES))
    if task in ("add", "subtract"):
        a, b = (random.randint(*difficulty.addends) for _ in range(2))
        if task == "subtract":
            a, b = max(a, b), min(a, b)
        answer = a + b if task == "add" else a - b
    else:
        low, high = difficulty.compared
        a, b = random.sample(range(low, high + 1), 2)
        answer = max(a, b) if task == "larger" else min(a, b)
    if random.random() < difficulty.chinese:
        phrase = CHINESE[task]
    else:
        phrase = random.choice(PHRASES[task][: difficulty.phrasings])
    return Problem(SKILL, task, f"{task} {a} {b}", user(phrase.format(a=a, b=b)), str(answer))
