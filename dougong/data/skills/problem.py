"""A problem with a checkable answer, the graders, and how hard the generated problems are."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any, Literal

from dougong.data.chat import Conversation, Message
from dougong.data.documents import hash_fraction

Split = Literal["train", "test"]


@dataclasses.dataclass(frozen=True)
class Difficulty:
    """The ranges from which problems are drawn; the defaults suit a model of a few million parameters.

    Every range is (lowest, highest), both ends included. With `context_sentences`, `tools` and `list_length` the
    prompts grow longer; with the others the answers grow harder.
    """

    addends: tuple[int, int] = (0, 9)
    compared: tuple[int, int] = (0, 20)
    list_length: tuple[int, int] = (3, 4)
    list_values: tuple[int, int] = (0, 9)
    summed_length: tuple[int, int] = (2, 3)
    word_length: tuple[int, int] = (3, 4)
    random_letters: float = 0.5  # share of words that are random letters rather than English
    repeats: tuple[int, int] = (2, 3)
    context_sentences: tuple[int, int] = (1, 2)
    tools: tuple[int, int] = (1, 2)
    phrasings: int = 1  # how many of the English ways to ask are used
    chinese: float = 0.1  # share of prompts in Chinese, in the skills that have them
    test_share: float = 0.1  # share of all problems that only tests may ask


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem: what is asked, the true answer, and the name of the grader that checks an answer.

    skill and task name its kind ("strings", "reverse"). key says what is asked regardless of the words, and decides the
    split: the same sum in other words stays on the same side. tools are JSON schemas of the functions that the prompt
    offers in compact form, empty for other skills.
    """

    skill: str
    task: str
    key: str
    messages: tuple[Message, ...]
    answer: str
    grader: str = "exact"
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def prompt(self) -> str:
        """The text of all messages, one after another."""
        return "\n".join(message["content"] for message in self.messages)

    def check(self, answer: str) -> bool:
        """Whether `answer` is right."""
        return GRADERS[self.grader](answer, self.answer)

    def conversation(self) -> Conversation:
        """The problem with its true answer, to learn from. The tools stay in the prompt's compact form."""
        messages = (*self.messages, {"role": "assistant", "content": self.answer})
        return Conversation(messages, source=f"skill:{self.skill}/{self.task}")


def user(text: str) -> tuple[Message, ...]:
    """The messages of a prompt that is one user turn."""
    return ({"role": "user", "content": text},)


def problem_split(key: str, test_share: float) -> Split:
    """The split of all problems with this key: a hash decides, so no test problem is ever asked in training."""
    return "test" if hash_fraction(f"problem:{key}") < test_share else "train"


def exact(answer: str, truth: str) -> bool:
    """Equal, white space at the ends aside."""
    return answer.strip() == truth.strip()


def json_equal(answer: str, truth: str) -> bool:
    """Equal as JSON values: white space and the order of keys do not matter, types and repeated keys do."""
    try:
        return _same(_parse(answer), _parse(truth))
    except (ValueError, RecursionError):
        return False


def _parse(text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a key occurs twice")
        return dict(pairs)

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    # Python holds True == 1; JSON does not.
    return isinstance(a, bool) == isinstance(b, bool) and a == b


GRADERS: dict[str, Callable[[str, str], bool]] = {"exact": exact, "json": json_equal}
