"""Preference data in the formats that people publish: pairs, single answers with a verdict, steps with verdicts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dougong.base import DougongError
from dougong.data.chat import Message, asked, conversation_from
from dougong.data.readers import read_records

_PROMPTS = ("prompt", "question", "conversations", "messages", "instruction")


@dataclass(frozen=True)
class Pair:
    """Two ways to go on after `prompt`, the first preferred; by how much (`margin`), where the data say so."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    margin: float = 0.0
    tools: tuple[dict[str, Any], ...] = ()
    source: str = "unknown"

    @property
    def equal(self) -> bool:
        """Both sides are the same: nothing is preferred."""
        return self.chosen == self.rejected


@dataclass(frozen=True)
class Verdict:
    """One answer that somebody found good or bad."""

    prompt: tuple[Message, ...]
    answer: tuple[Message, ...]
    good: bool
    tools: tuple[dict[str, Any], ...] = ()
    source: str = "unknown"


@dataclass(frozen=True)
class Steps:
    """A chain of thought with a verdict on each step."""

    prompt: tuple[Message, ...]
    steps: tuple[str, ...]
    right: tuple[bool, ...]
    source: str = "unknown"


def verdicts_of(pairs: Iterable[Pair]) -> list[Verdict]:
    """Each pair as a good answer and a bad one. Equal sides say nothing and are left out."""
    return [
        Verdict(pair.prompt, side, side is pair.chosen, pair.tools, pair.source)
        for pair in pairs
        if not pair.equal
        for side in (pair.chosen, pair.rejected)
    ]


def read_preferences(paths: str | Path | Iterable[str | Path]) -> Iterator[Pair | Verdict | Steps]:
    """The preferences of .json and .jsonl files (or .gz of them), the format of each told by its keys.

    pairs: chosen and rejected (or chosen_messages, rejected_messages), each a text, a message, or a list of messages,
    after `prompt` (text or messages), `conversations` (sharegpt) or `instruction` and `input` (alpaca); without any of
    these both sides are whole conversations, whose common beginning is the prompt: lists of messages, or HH-RLHF's text
    of "Human:" and "Assistant:" turns. `margin`, or score_chosen and score_rejected, may say by how much.
    verdicts: `label` (true: good) beside `messages`, `conversations`, or prompt and completion.
    steps: prompt, completions (a list of texts) and labels (a list of true and false).

    Raises DougongError that names the file, the number of the example (from 1) and what is wrong.
    """
    return read_records(paths, preference_from, "preferences")


def preference_from(row: Any, source: str, where: str = "") -> Pair | Verdict | Steps:
    """One preference from one row of data; `where` names the row in errors. See read_preferences."""
    where = where or source
    if not isinstance(row, Mapping):
        raise DougongError(f"{where} is {type(row).__name__}; expected an object with chosen and rejected")
    keys = row.keys()
    if isinstance(row.get("completions"), list) and isinstance(row.get("labels"), list):
        return _steps(row, source, where)
    for chosen, rejected in (("chosen", "rejected"), ("chosen_messages", "rejected_messages")):
        if {chosen, rejected} <= keys:
            return _pair(row, row[chosen], row[rejected], source, where)
    if isinstance(row.get("label"), bool):
        data = {key: value for key, value in row.items() if key != "label"}
        conversation = conversation_from(data, source, where)
        prompt, answer = _last_answer(conversation.messages, where)
        return Verdict(prompt, answer, row["label"], conversation.tools, source)
    raise DougongError(
        f"{where} has the keys {', '.join(map(str, keys)) or 'none'}; expected chosen and rejected, a true or false "
        "label, or completions and labels"
    )


def _pair(row: Mapping[str, Any], chosen: Any, rejected: Any, source: str, where: str) -> Pair:
    prompt = asked(row, _PROMPTS)  # None: each side is a whole conversation
    sides = [
        _conversation(side, prompt, row, source, f"{where}, {name}")
        for name, side in (("chosen", chosen), ("rejected", rejected))
    ]
    messages = [conversation.messages for conversation in sides]
    common = len(prompt) if prompt is not None else _common(*messages)
    first, second = (side[common:] for side in messages)
    for name, side in (("chosen", first), ("rejected", second)):
        if not side or side[-1]["role"] != "assistant":
            raise DougongError(f"{where}: the {name} side does not end in the assistant's words")
    return Pair(messages[0][:common], first, second, _margin(row, where), sides[0].tools, source)


def _common(a: Sequence[Message], b: Sequence[Message]) -> int:
    """Messages at the beginning of both, but never all of either: the last one is an answer."""
    count = 0
    while count < min(len(a), len(b)) - 1 and a[count] == b[count]:
        count += 1
    return count


def _conversation(side: Any, prompt: list[Any] | None, row: Mapping[str, Any], source: str, where: str) -> Any:
    if isinstance(side, Mapping):
        side = [side]
    if isinstance(side, str):
        side = [{"role": "assistant", "content": side}] if prompt is not None else _hh_turns(side, where)
    if not isinstance(side, list):
        raise DougongError(f"{where} is {type(side).__name__}; expected a text or messages")
    return conversation_from({"messages": [*(prompt or []), *side], "tools": row.get("tools")}, source, where)


def _hh_turns(text: str, where: str) -> list[dict[str, str]]:
    """HH-RLHF's one text: turns that begin with "\\n\\nHuman:" or "\\n\\nAssistant:"."""
    parts = re.split(r"(?:^|\n\n)(Human|Assistant):", text)
    if len(parts) < 3 or parts[0].strip():
        raise DougongError(
            f"{where} is a text without a prompt beside it, and no turns of Human: and Assistant: in it; add a prompt"
        )
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[name], "content": said.strip()} for name, said in zip(parts[1::2], parts[2::2], strict=True)]


def _margin(row: Mapping[str, Any], where: str) -> float:
    value: Any = row.get("margin")
    if value is None and "score_chosen" in row and "score_rejected" in row:
        try:
            value = row["score_chosen"] - row["score_rejected"]
        except TypeError:
            value = "not numbers"
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise DougongError(f"{where}: the margin is {value!r}; expected a number")
    return float(value)


def _last_answer(messages: tuple[Message, ...], where: str) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    if messages[-1]["role"] != "assistant":
        raise DougongError(f"{where} does not end in the assistant's words, which the label judges")
    return messages[:-1], messages[-1:]


def _steps(row: Mapping[str, Any], source: str, where: str) -> Steps:
    steps, labels = row["completions"], row["labels"]
    if len(steps) != len(labels) or not steps:
        raise DougongError(f"{where} has {len(steps)} steps and {len(labels)} labels; expected as many, and some")
    if not all(isinstance(step, str) for step in steps) or not all(label in (0, 1) for label in labels):
        raise DougongError(f"{where}: expected texts in completions, true or false in labels")
    data = {"messages": [*(asked(row, _PROMPTS) or []), {"role": "assistant", "content": "".join(steps)}]}
    messages = conversation_from(data, source, where).messages
    return Steps(messages[:-1], tuple(steps), tuple(map(bool, labels)), source)
