"""Rewards that need nothing but the text: each says what earns 1, and 0 is the rest."""

from __future__ import annotations

import json
import math
import re
from fractions import Fraction

from dougong.align.rewards.sample import Sample
from dougong.align.rewards.schema import violation
from dougong.base import DougongError
from dougong.data.skills import GRADERS

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?(?:\s*/\s*\d+)?|[-+]?\.\d+")
# Where a final answer is said, the strongest sign first: a box, GSM8K's mark, words.
_FINAL = (
    re.compile(r"\\boxed\{([^{}]*)\}"),
    re.compile(r"####\s*(.+)"),
    re.compile(r"(?:answer|result)\s*(?:is|:|=)\s*(.+)", re.IGNORECASE),
)


def exact(sample: Sample) -> float:
    """The answer is the task's, as its grader compares: white space at the ends aside, or as JSON values."""
    return float(GRADERS[sample.task.grader](without_thinking(sample.text), sample.task.answer))


def without_thinking(text: str) -> str:
    """What stands after the last </think>; all of it where there is none."""
    return text.rsplit("</think>", 1)[-1]


def final_answer(text: str) -> str:
    """What a text gives as its answer, its thinking aside: in its last \\boxed{}, else after its last ####, else after
    the last "answer is", else all of it."""
    text = without_thinking(text)
    for pattern in _FINAL:
        found = pattern.findall(text)
        if found:
            return str(found[-1]).strip()
    return text.strip()


def last_number(text: str) -> Fraction | None:
    """The last number in a text, thousands commas and fractions read, exactly; None where there is none."""
    found = _NUMBER.findall(text)
    if not found:
        return None
    try:
        value = Fraction(re.sub(r"[,\s]", "", found[-1]))
    except (ValueError, ZeroDivisionError):
        return None
    return value


def numeric(sample: Sample, tolerance: float = 1e-6, partial: float = 0.0) -> float:
    """The final answer's number is the task's, within a relative `tolerance` unless both are whole. A wrong number
    earns `partial` (ReFT took 0.1: Luong et al. 2024). Raises DougongError when the task's own answer has no number."""
    truth = last_number(final_answer(sample.task.answer))
    if truth is None:
        raise DougongError(f"{sample.task.source}: the answer {sample.task.answer!r} has no number to compare with")
    told = last_number(final_answer(sample.text))
    if told is None:
        return 0.0
    whole = told.denominator == truth.denominator == 1
    near = told == truth if whole else abs(told - truth) <= tolerance * max(abs(truth), 1)
    return 1.0 if near else partial


def pattern(sample: Sample, expression: re.Pattern[str]) -> float:
    """The expression is found in the text; and where it has a group, the last one found is the task's answer."""
    found = list(expression.finditer(sample.text))
    if not found or not expression.groups:
        return float(bool(found))
    return float((found[-1].group(1) or "").strip() == sample.task.answer.strip())


def schema(sample: Sample) -> float:
    """The answer is JSON (alone, or in a fenced block) that its task's facts["schema"] accepts."""
    text = without_thinking(sample.text).strip()
    fenced = re.search(r"```(?:json)?\s*\n(.*?)\n\s*```", text, re.DOTALL)
    try:
        value = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return 0.0
    return float(violation(value, sample.task.facts.get("schema", {})) is None)


def overlong(tokens: int, limit: int, cache: int) -> float:
    """0 up to limit - cache tokens, falling to -1 at the limit (DAPO's soft overlong punishment: Yu et al. 2025,
    equation 13)."""
    if not 0 < cache <= limit:
        raise DougongError(f"the last {cache} tokens of {limit} cannot be punished; expected 1 to {limit}")
    return -min(1.0, max(0.0, (tokens - (limit - cache)) / cache))


def brevity(tokens: int, limit: int) -> float:
    """1 for nothing, 0 at the limit and beyond: the share of the limit that an answer leaves."""
    return max(0.0, 1 - tokens / limit) if math.isfinite(limit) else 0.0
