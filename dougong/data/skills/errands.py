"""Errands: requests that a tool serves. Long sums for a calculator, questions about texts for a search.

An errand knows the call that serves it and the answer that a true result holds; the result itself comes from whoever
runs the tool. So training and measuring see the same tools that an agent will use.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from random import Random
from typing import Any

from dougong.base import DougongError
from dougong.data.chat import Conversation, Message
from dougong.data.skills.arithmetic import CHINESE as ARITHMETIC_CHINESE
from dougong.data.skills.arithmetic import PHRASES
from dougong.data.skills.context import RELATIONS
from dougong.data.skills.problem import Problem, Split, exact, problem_split, user
from dougong.data.skills.words import NAMES

CALCULATOR, SEARCH = "calculator", "search"
PASSAGES = 1  # asked for in a search: a small model cannot yet choose among several
TEST_SHARE = 0.1
CHINESE = 0.35  # share of the sums; of 0.15 a small model learned none
_DIGITS = 5
_SUM, _CHINESE_SUM = PHRASES["add"][0], ARITHMETIC_CHINESE["add"]


@dataclasses.dataclass(frozen=True)
class Errand:
    """What is asked, the tool and the arguments that serve it, and the true answer.

    task: "sum" or "fact". key says what is asked or told regardless of the words, and decides the split.
    """

    task: str
    key: str
    asked: str
    tool: str
    arguments: dict[str, Any]
    answer: str

    @property
    def messages(self) -> tuple[Message, ...]:
        """The prompt: one user turn."""
        return user(self.asked)

    def check(self, answer: str) -> bool:
        """Whether `answer` is right, white space at its ends aside."""
        return exact(answer, self.answer)

    def served(
        self, tools: Sequence[dict[str, Any]], result: str, system: str = "", answer: str | None = None
    ) -> Conversation:
        """The errand done with a tool: question, call, result, answer (None: the true one)."""
        function = {"name": self.tool, "arguments": self.arguments}
        call = {"id": "000000000", "type": "function", "function": function}
        messages: tuple[Message, ...] = (
            *_system(system),
            *self.messages,
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": result, "tool_call_id": "000000000", "name": self.tool},
            {"role": "assistant", "content": self.answer if answer is None else answer},
        )
        return Conversation(messages, tuple(tools), f"errand:{self.task}")

    def alone(self, answer: str) -> Conversation:
        """The errand without a tool, answered with `answer`."""
        return Conversation((*self.messages, {"role": "assistant", "content": answer}), source=f"errand:{self.task}")


def idle(problem: Problem, tools: Sequence[dict[str, Any]], system: str = "") -> Conversation:
    """A problem that needs no tool, answered at once although some are on offer."""
    done = problem.conversation()
    return Conversation((*_system(system), *done.messages), tuple(tools), done.source)


def _system(text: str) -> tuple[Message, ...]:
    return ({"role": "system", "content": text},) if text else ()


def sums(seed: int, count: int, split: Split = "train", digits: int = _DIGITS) -> list[Errand]:
    """`count` sums of two numbers of so many digits, most of them asked for in English."""
    random = Random(f"sums/{split}/{seed}")
    found: dict[str, Errand] = {}
    while len(found) < count:
        a, b = (random.randint(10 ** (digits - 1), 10**digits - 1) for _ in range(2))
        key = f"{a} + {b}"
        if problem_split(key, TEST_SHARE) == split:
            phrase = _CHINESE_SUM if random.random() < CHINESE else _SUM
            found[key] = Errand("sum", key, phrase.format(a=a, b=b), CALCULATOR, {"expression": key}, str(a + b))
    return list(found.values())


@dataclasses.dataclass(frozen=True)
class Story:
    """Passages of one text, each a fact, and the questions that they answer."""

    passages: tuple[str, ...]
    errands: tuple[Errand, ...]


# What a search looks for beside the person; a friend would be found under both names.
_SOUGHT = {"place": "lives", "colour": "{thing}", "number": "{thing}", "food": "likes"}


def story(seed: int, facts: int, split: Split = "train") -> Story:
    """A text of so many facts about people, no two of which answer the same question; what a test tells is never told
    in training. Raises DougongError for more facts than there are."""
    random = Random(f"story/{split}/{seed}")
    passages: list[str] = []
    errands: list[Errand] = []
    asked: set[str] = set()
    fruitless = 0
    while len(errands) < facts:
        task, name = random.choice(tuple(_SOUGHT)), random.choice(NAMES)
        relation = RELATIONS[task]
        thing, value = random.choice(relation.things), random.choice(relation.values)
        told = relation.told.format(name=name, value=value, thing=thing)
        query = f"{name} {_SOUGHT[task].format(thing=thing)}"
        if query in asked or problem_split(f"story:{told}", TEST_SHARE) != split:
            fruitless += 1
            if fruitless > 100_000:
                raise DougongError(f"only {len(errands)} of {facts} facts exist for one text; ask for fewer")
            continue
        asked.add(query)
        passages.append(told)
        question = relation.asked.format(name=name, thing=thing)
        errands.append(Errand("fact", told, question, SEARCH, {"query": query, "passages": PASSAGES}, value))
    return Story(tuple(passages), tuple(errands))
