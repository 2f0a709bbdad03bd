"""What a run may cost, and what it has cost so far. Whatever the model and the tools do, a run ends at one of these."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields, replace
from typing import Any, final

from dougong.agent.events import Reason
from dougong.base import DougongError


@final
@dataclass(frozen=True)
class Limits:
    """Of one run, with the runs that it starts.

    steps         answers of the model, those to its own questions (plans, critiques, summaries) too
    tokens        read and written, as the model says or, where it does not, as `estimate` says
    seconds       until the run ends, with a model or a tool that hangs too
    repeats       how often the same call may give the same result in one conversation (a new trial and a step of a
                  plan begin another one); asked for once more, the run ends
    result        characters of a tool's result that the model reads; of a longer one the beginning and the end
    tool_seconds  for a tool that has no timeout of its own; after that the run goes on without its result
    parallel      reading tools at work at once
    retries       how often a model that fails is asked again
    corrections   how often an answer that is empty, malformed or against the schema is asked for again
    depth         runs inside runs
    """

    steps: int = 25
    tokens: int = 200_000
    seconds: float = 600.0
    repeats: int = 3
    result: int = 12_000
    tool_seconds: float = 60.0
    parallel: int = 8
    retries: int = 2
    corrections: int = 2
    depth: int = 3

    def __post_init__(self) -> None:
        least = {"result": 200, "retries": 0, "corrections": 0, "depth": 0}
        for each in fields(self):
            value, low = getattr(self, each.name), least.get(each.name, 0 if each.name.endswith("seconds") else 1)
            if not value >= low or (each.name.endswith("seconds") and not value > 0):
                bound = "above 0" if each.name.endswith("seconds") else f"at least {low}"
                raise DougongError(f"the limit {each.name} is {value!r}; expected {bound}")


@final
class Ended(Exception):
    """A run cannot go on: raised inside the loop alone, where it becomes the last event."""

    def __init__(self, reason: Reason, detail: str):
        super().__init__(detail)
        self.reason: Reason = reason
        self.detail = detail


@final
@dataclass
class Meter:
    """What a run has used."""

    limits: Limits
    steps: int = 0
    tokens: int = 0
    seen: dict[str, tuple[str, int]] = field(default_factory=dict)

    def afford(self, prompt: int, now: float) -> None:
        """Raise Ended where another question of `prompt` tokens, `now` seconds after the beginning, is too much."""
        if now >= self.limits.seconds:
            raise Ended("seconds", f"{self.limits.seconds:g} seconds are over")
        if self.steps >= self.limits.steps:
            raise Ended("steps", f"the model has answered {self.steps} times, as often as the limit allows")
        if self.tokens + prompt > self.limits.tokens:
            raise Ended(
                "tokens",
                f"{self.tokens} tokens are used and the next question has {prompt}; {self.limits.tokens} allowed",
            )

    def add(self, steps: int, tokens: int) -> None:
        self.steps += steps
        self.tokens += tokens

    def repeated(self, name: str, arguments: dict[str, Any]) -> int:
        """How often the same call gave the same result in a row, so far."""
        return self.seen.get(_key(name, arguments), ("", 0))[1]

    def saw(self, name: str, arguments: dict[str, Any], result: str) -> None:
        """Remember a call's result; another than the last one counts anew, for then something moved."""
        key = _key(name, arguments)
        before, count = self.seen.get(key, ("", 0))
        self.seen[key] = (result, count + 1 if before == result else 1)

    def share(self, parts: int, now: float) -> Limits:
        """What each of `parts` runs beside each other may use of what is left. Raises Ended where that is nothing."""
        self.afford(0, now)
        steps, tokens = (self.limits.steps - self.steps) // parts, (self.limits.tokens - self.tokens) // parts
        if steps < 1:
            raise Ended("steps", f"{self.limits.steps - self.steps} answers are left, too few for {parts} runs")
        if tokens < 1:
            raise Ended("tokens", f"{self.limits.tokens - self.tokens} tokens are left, too few for {parts} runs")
        return replace(
            self.limits,
            steps=steps,
            tokens=tokens,
            seconds=self.limits.seconds - now,
            depth=max(0, self.limits.depth - 1),
        )


def lower(one: Limits, other: Limits) -> Limits:
    """The stricter of two in each respect."""
    return Limits(**{each.name: min(getattr(one, each.name), getattr(other, each.name)) for each in fields(Limits)})


def weight(text: str) -> float:
    """Tokens of a text, roughly: four ASCII characters make one, any other character is one."""
    ascii_only = len(text.encode("ascii", "ignore"))
    return ascii_only / 4 + (len(text) - ascii_only)


def estimate(text: str) -> int:
    """`weight` as a whole number, one at least for a text that is not empty."""
    return math.ceil(weight(text))


def cut(text: str, most: int) -> str:
    """A text of at most `most` characters: of a longer one its beginning and its end, with a note between them."""
    if len(text) <= most:
        return text
    note = f"\n[... {len(text) - most:,} characters and more left out: ask for less ...]\n"
    room = most - len(note)
    head = room - room // 4
    return text[:head] + note + text[len(text) - room // 4 :]


def _key(name: str, arguments: dict[str, Any]) -> str:
    return f"{name} {json.dumps(arguments, sort_keys=True, ensure_ascii=True, default=str)}"
