"""A chat model that follows a script, for tests: what it is asked is checked, what it answers (or how it fails) is
written down, and a step that nobody asked for is an error."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from dougong.base import DougongError
from dougong.chat.delta import Delta
from dougong.chat.message import Message, Tool, Usage
from dougong.chat.model import ChatError, ChatModel

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from dougong.engine import Sampling


@dataclass(frozen=True)
class Asked:
    """One request as the script saw it. body: the JSON of it where it came over HTTP."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    schema: dict[str, Any] | None = None
    sampling: Sampling | None = None
    body: dict[str, Any] | None = None

    @property
    def last(self) -> str:
        """The text of the last message."""
        return self.messages[-1].content if self.messages else ""


@dataclass(frozen=True)
class Failure:
    """How a step fails in place of an answer.

    kind  status: an HTTP error; hang: no answer for `seconds`; malformed: an answer that is no JSON; cut: the
          connection ends in the middle (of a stream: after its first piece)
    """

    kind: Literal["status", "hang", "malformed", "cut"] = "status"
    status: int = 500
    message: str = "an injected failure"
    retry_after: float | None = None
    seconds: float = 5.0


@dataclass(frozen=True)
class Step:
    """What is answered, and what must have been asked.

    answer   a message, its text, or how to fail
    expects  what the request must be: a text that its last message holds, or a function of the request that returns
             whether it is right (or raises)
    pieces   into how many pieces the content of a streamed answer is cut
    """

    answer: Message | str | Failure
    expects: str | Callable[[Asked], bool | None] | None = None
    pieces: int = 3


@dataclass
class _Log:
    """What happened so far; several threads may ask."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    asked: list[Asked] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class ScriptedChat(ChatModel):
    """Answers with its steps in order; a step may be a text, a message or a failure alone.

    Use it as a context manager: leaving it without an error raises for a step that was not asked for and for a request
    that was not as expected (also where an application swallowed the error). `serve()` is the same over real HTTP.
    """

    def __init__(self, steps: Sequence[Step | Message | str | Failure]):
        self._steps = [step if isinstance(step, Step) else Step(step) for step in steps]
        self._log = _Log()

    @property
    def asked(self) -> list[Asked]:
        """Every request so far."""
        return list(self._log.asked)

    def next_step(self, asked: Asked) -> Step:
        """The step for this request. Raises DougongError when the script is over or expected something else."""
        with self._log.lock:
            number = len(self._log.asked)
            self._log.asked.append(asked)
        try:
            if number >= len(self._steps):
                raise DougongError(f"the script has {len(self._steps)} steps, but was asked again: {asked.last!r:.80}")
            self._check(number, asked)
        except DougongError as error:
            with self._log.lock:
                self._log.wrong.append(str(error))
            raise
        return self._steps[number]

    def _check(self, number: int, asked: Asked) -> None:
        expects = self._steps[number].expects
        if isinstance(expects, str) and expects not in asked.last:
            raise DougongError(f"step {number} expects {expects!r} in the last message, but it is {asked.last!r:.200}")
        if callable(expects):
            try:
                right = expects(asked)
            except Exception as error:
                raise DougongError(f"step {number} refuses the request: {type(error).__name__}: {error}") from error
            if right is False:
                raise DougongError(f"step {number} refuses the request, whose last message is {asked.last!r:.200}")

    def stream(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] | None = None,
        schema: dict[str, Any] | None = None,
        sampling: Sampling | None = None,
    ) -> Iterator[Delta]:
        step = self.next_step(Asked(tuple(messages), tuple(tools or ()), schema, sampling))
        if isinstance(step.answer, Failure):
            if step.answer.kind == "cut":
                yield Delta(content="an answer that is cut")
            raise failure(step.answer)
        yield from deltas(step)

    def check(self) -> None:
        """Raise DougongError for a request that was not as expected, and for steps that were not used."""
        if self._log.wrong:
            raise DougongError(self._log.wrong[0])
        left = self._steps[len(self._log.asked) :]
        if left:
            used = len(self._log.asked)
            raise DougongError(
                f"{len(left)} of {len(self._steps)} steps were not used; the next is {left[0]!r:.120} ({used})"
            )

    def __enter__(self) -> ScriptedChat:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.check()

    def serve(self) -> AbstractContextManager[str]:
        """The script behind an OpenAI-shaped server on a free port of this machine: a context manager that gives its
        URL and `check`s the script at its end."""
        from dougong.chat.scripted_server import serving

        return serving(self)


def failure(how: Failure) -> ChatError:
    """The error that a caller in the same process gets."""
    if how.kind == "status":
        return ChatError(f"the model answered {how.status}: {how.message}", how.status, how.retry_after)
    told = {
        "hang": "the model did not answer in time",
        "malformed": "the answer is no JSON",
        "cut": "the answer broke off",
    }
    return ChatError(f"{told[how.kind]}: {how.message}")


def message_of(step: Step) -> Message:
    """The answer of a step as a message."""
    assert not isinstance(step.answer, Failure)
    return Message("assistant", step.answer) if isinstance(step.answer, str) else step.answer


def deltas(step: Step) -> Iterator[Delta]:
    """The answer of a step in pieces."""
    message = message_of(step)
    for text in cut(message.reasoning, step.pieces):
        yield Delta(reasoning=text)
    for text in cut(message.content, step.pieces):
        yield Delta(content=text)
    for call in message.tool_calls:
        yield Delta(call=call)
    reason = message.finish_reason or ("tool_calls" if message.tool_calls else "stop")
    yield Delta(finish_reason=reason, usage=message.usage or Usage())


def cut(text: str, pieces: int) -> list[str]:
    """The text in up to `pieces` pieces of about equal length."""
    size = max(1, -(-len(text) // max(1, pieces)))
    return [text[start : start + size] for start in range(0, len(text), size)]
