"""What a model sees of a long conversation (a window, with a running summary), and what outlasts a run (`recall`).

A turn is an answer of the model with all that follows up to its next answer: results are never parted from their calls.
The beginning (system message, earlier conversation, task) always stays.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple, final

from dougong.agent.events import Event, Recalled, Summarised
from dougong.agent.limits import Ended, estimate, weight
from dougong.agent.outside import Remembered
from dougong.agent.taint import RULE, marked
from dougong.base import DougongError
from dougong.chat import Message

if TYPE_CHECKING:
    from dougong.agent.recall import Store
    from dougong.agent.run import Run, Steps


class Memory(ABC):
    """What is shown of a run's conversation. Memories are frozen; what they know of a run is in the run."""

    def begin(self, run: Run) -> Iterator[Event]:
        """Before the conversation begins: put into `run.notes` what is known from before."""
        yield from ()

    @abstractmethod
    def view(self, run: Run) -> Steps[list[Message]]:
        """The messages that the model sees next."""

    def end(self, run: Run, answer: str) -> None:  # noqa: B027  (most keep nothing)
        """After an answer: keep what later runs may want to know."""

    def settings(self) -> dict[str, Any]:
        """What a trace says of it: numbers and texts."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}  # pyright: ignore[reportArgumentType]
        return {name: value for name, value in values.items() if isinstance(value, (int, float, str))}


@final
@dataclass(frozen=True)
class Window(Memory):
    """The beginning and as many of the last turns as fit.

    tokens: of all that is shown, as `limits.estimate` counts; the last turn is shown however long it is.
    """

    tokens: int = 16_000

    def view(self, run: Run) -> Steps[list[Message]]:
        yield from ()
        return split(run.messages, run.task_at).shown(self.tokens)


@final
@dataclass(frozen=True)
class Summary(Memory):
    """The beginning, a summary of the turns that went out of sight, and the last turns.

    Once the conversation has more than `tokens`, all but the last `keep` turns are replaced by a summary that the model
    writes from them (and from the summary before). Whatever the summary's length, it is cut to half of `tokens`, and to
    the length of what it replaces. Where the model writes none, the end of what it had to summarise stands there. Once
    the model has read what others wrote, a summary may hold it, and is marked as they are.
    """

    tokens: int = 16_000
    keep: int = 2

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise DougongError(f"a summary keeps {self.keep} turns; expected at least 1")

    def view(self, run: Run) -> Steps[list[Message]]:
        parts = split(run.messages, run.task_at)
        old = parts.turns[: -self.keep]
        # A summary alone is not summarised again, also where the last turns are too long by themselves.
        new = old[1:] if old and old[0][0].content.startswith(_HEADING) else old
        if new and size([run.messages]) > self.tokens:
            text = yield from self._summarised(run, _joined(old))
            yield run.event(Summarised, messages=len(_joined(old)), text=text)
            if run.taint.seen and run.agent.mark:
                text = marked(text, "the conversation")
            # As an answer of the model it is a turn of its own, and the roles go on alternating.
            said = [Message("assistant", f"{_HEADING}\n{text}"), Message("user", "Go on.")]
            run.messages[run.task_at + 1 :] = [*said, *_joined(parts.turns[-self.keep :])]
            parts = split(run.messages, run.task_at)
        return parts.shown(self.tokens)

    def _summarised(self, run: Run, old: Sequence[Message]) -> Steps[str]:
        told = _last("\n".join(_line(message) for message in old), self.tokens * 3 // 4)
        marks = run.taint.seen and run.agent.mark
        rule = f"{RULE}\n\n" if marks else ""
        happened = marked(told, "the conversation") if marks else told  # a mark in it may have lost its beginning
        prompt = (
            f"{rule}The task: {run.task}\n\nWhat happened so far:\n{happened}\n\n"
            "Summarise this for whoever goes on with the task: what was done, "
            "what was found (with names and numbers), what is still open. Leave out the rest."
        )
        try:
            text = (yield from run.ask([Message("user", prompt)], purpose="summary")).content.strip()
        except Ended as end:
            if end.reason != "model":
                raise
            text = ""  # the task may still be done without it
        return _last(text or told, min(self.tokens // 2, size([old])))


_HEADING = "Summary of what happened so far:"


@final
@dataclass(frozen=True)
class Recall(Memory):
    """Long-term memory: texts of earlier runs that are near to the task are put into the system message, and each
    answered task is kept. What came from outside stays marked, in later runs too.

    store: of vectors; k: how many texts; base: what is shown of the conversation itself.
    """

    store: Store
    k: int = 3
    base: Memory = Window()

    def begin(self, run: Run) -> Iterator[Event]:
        yield from self.base.begin(run)
        found, fault = run.outside.recall(run.who, lambda: self.store.search(run.task, self.k), run.until)
        run.tick()
        if not found and not fault:
            return
        texts, trusted = tuple(each.text for each in found), tuple(each.trusted for each in found)
        yield run.event(Recalled, texts=texts, trusted=trusted, fault=fault)
        if not found:
            return
        for each in found:
            if not each.trusted:
                run.taint.distrust(each.text, "memory")
        run.notes.append("From earlier work:\n" + "\n".join(_remembered(each, run.agent.mark) for each in found))

    def view(self, run: Run) -> Steps[list[Message]]:
        return (yield from self.base.view(run))

    def settings(self) -> dict[str, Any]:
        return {"k": self.k, "base": {"kind": type(self.base).__name__, **self.base.settings()}}

    def end(self, run: Run, answer: str) -> None:
        self.base.end(run, answer)
        self.store.add(Remembered(f"Task: {run.task}\nAnswer: {answer}", trusted=not run.taint.seen))


def _remembered(each: Remembered, mark: bool) -> str:
    return marked(each.text, "memory") if mark and not each.trusted else each.text


def _line(message: Message) -> str:
    calls = "".join(f" calls {call.name}({call.arguments})" for call in message.tool_calls)
    return f"{message.role}: {message.content}{calls}"


class Parts(NamedTuple):
    """A conversation in parts: what always stays (system, task), and the turns before and after the task."""

    system: list[Message]
    earlier: list[list[Message]]
    task: list[Message]
    turns: list[list[Message]]

    def shown(self, tokens: int) -> list[Message]:
        """What stays, and the last turns that fit beside it; the very last one in any case."""
        left = tokens - size([self.system, self.task])
        kept = 0
        for turn in reversed([*self.earlier, *self.turns]):
            left -= size([turn])
            if left < 0 and kept:
                break
            kept += 1
        after = min(kept, len(self.turns))
        before = self.earlier[len(self.earlier) - (kept - after) :]
        turns = self.turns[len(self.turns) - after :]
        return [*self.system, *_joined(before), *self.task, *_joined(turns)]


def split(messages: Sequence[Message], task_at: int) -> Parts:
    """The parts of a conversation whose task is message `task_at`. Earlier turns begin with the user, later ones with
    the model."""
    first = int(messages[0].role == "system")
    return Parts(
        list(messages[:first]),
        _turns(messages[first:task_at], "user"),
        [messages[task_at]],
        _turns(messages[task_at + 1 :], "assistant"),
    )


def _turns(messages: Sequence[Message], opens: str) -> list[list[Message]]:
    turns: list[list[Message]] = []
    for message in messages:
        if message.role == opens or not turns:
            turns.append([])
        turns[-1].append(message)
    return turns


def _joined(turns: Sequence[Sequence[Message]]) -> list[Message]:
    return [message for turn in turns for message in turn]


def size(parts: Sequence[Sequence[Message]]) -> int:
    """Estimated tokens."""
    return sum(
        estimate(each.content) + sum(estimate(str(call.arguments)) + 4 for call in each.tool_calls)
        for part in parts
        for each in part
    )


def _last(text: str, tokens: int) -> str:
    """The end of a text, of at most that many tokens (one character at least)."""
    if weight(text) <= tokens:
        return text
    short, long = 1, len(text)  # the longest end that fits: `weight` grows with each character
    while short < long:
        middle = (short + long + 1) // 2
        short, long = (middle, long) if weight(text[-middle:]) <= tokens else (short, middle - 1)
    return text[-short:]
