"""All that a run cannot know by itself: the clock, the model's answers, the tools' results, yes or no of a person, what
guards find, what long-term memory holds. `Live` asks them; a replay gives back what was written down.

Everything else in a run is a function of these, which is why it can be run again.
"""

from __future__ import annotations

import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, final

from dougong.agent.events import ApprovalAsked, Place
from dougong.agent.guards.guard import Finding, Guard, examine
from dougong.agent.tool import Action, ToolError
from dougong.chat import ChatError, ChatModel, Delta, Message, Tool

if TYPE_CHECKING:
    from dougong.engine import Sampling

R = TypeVar("R")
Approve = Callable[[ApprovalAsked], bool]
Verify = Callable[[str], str | None]
"""What is wrong with an answer; None or "" where nothing is."""


@final
class TimeUp(Exception):
    """The seconds given are over."""


@final
@dataclass(frozen=True)
class Question:
    """What a model is asked. until: seconds since the outermost run began, after which nobody waits."""

    messages: Sequence[Message]
    tools: Sequence[Tool]
    schema: dict[str, Any] | None
    sampling: Sampling | None
    until: float


@final
@dataclass(frozen=True)
class Result:
    """A tool's result, and how long it is: in a replay the text is cut already."""

    text: str
    length: int


@final
@dataclass(frozen=True)
class Remembered:
    """A text of long-term memory; trusted: nothing in it came from outside."""

    text: str
    trusted: bool = True


GRACE = 5.0
"""seconds that guards, memory, a verifier and a person have in any case, also when the run's own are nearly over"""


class Outside(ABC):
    """`who` is the run that asks; within one run the order of questions is fixed, between runs side by side it is
    not. `until`: seconds since the outermost run began, after which nobody waits (GRACE aside)."""

    @abstractmethod
    def now(self, who: str, index: int) -> float:
        """Seconds since the outermost run began; index: of the event of `who` that will carry it."""

    @abstractmethod
    def stream(self, who: str, model: ChatModel, question: Question) -> Iterator[Delta]:
        """The model's answer as it comes. Raises TimeUp, and whatever the model raises."""

    @abstractmethod
    def wait(self, seconds: float) -> None:
        """Wait before the model is asked again."""

    @abstractmethod
    def act(
        self, who: str, number: int, action: Action, arguments: dict[str, Any], until: float, most: float
    ) -> Result:
        """A tool's result, within `most` seconds and before `until`. Raises ToolError, and TimeUp where it is late."""

    @abstractmethod
    def approve(self, asked: ApprovalAsked, approve: Approve | None, until: float) -> str:
        """ "" for yes, otherwise why not."""

    @abstractmethod
    def examine(
        self, who: str, place: Place, number: int, guards: Sequence[Guard], text: str, until: float
    ) -> tuple[str, tuple[Finding, ...]]:
        """The text as it may pass, and what the guards found."""

    @abstractmethod
    def recall(self, who: str, look: Callable[[], list[Remembered]], until: float) -> tuple[list[Remembered], str]:
        """What long-term memory gives; and why it gives nothing, where it failed."""

    @abstractmethod
    def verify(self, who: str, check: Callable[[], str], until: float) -> str:
        """What a verifier says of an answer; one that fails has found nothing right."""

    @abstractmethod
    def keep(self, who: str, save: Callable[[], None], until: float) -> str:
        """Keep what outlasts the run; "", or why it was not kept."""


@final
class Live(Outside):
    """The world as it is."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def now(self, who: str, index: int) -> float:
        return time.monotonic() - self._start

    def stream(self, who: str, model: ChatModel, question: Question) -> Iterator[Delta]:
        deltas = lambda: model.stream(  # noqa: E731  (made in the thread that reads it)
            list(question.messages), list(question.tools) or None, question.schema, question.sampling
        )
        return _telling(_pieces(deltas, lambda: question.until - self.now(who, 0)))

    def wait(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds))

    def act(
        self, who: str, number: int, action: Action, arguments: dict[str, Any], until: float, most: float
    ) -> Result:
        left = until - self.now(who, 0)
        # An action's own timeout ends its work as it should be ended; ours only stops waiting, so it comes later.
        own = most if action.timeout is None else action.timeout + 1
        try:
            text = within(min(own, left), lambda: action.call(arguments))
        except TimeUp:
            if left <= own:
                raise
            raise ToolError(f"{action.tool.name} gave no result within {own:g} seconds") from None
        return Result(text, len(text))

    def approve(self, asked: ApprovalAsked, approve: Approve | None, until: float) -> str:
        if approve is None:
            return "nobody is there to approve it"
        try:
            return "" if self._bounded(until, lambda: approve(asked)) is True else "it was not approved"
        except TimeUp:
            return "nobody said yes in time"
        except Exception as error:  # no answer is no
            return f"the approval failed: {type(error).__name__}: {error}"

    def examine(
        self, who: str, place: Place, number: int, guards: Sequence[Guard], text: str, until: float
    ) -> tuple[str, tuple[Finding, ...]]:
        found: list[Finding] = []
        for guard in guards:
            try:
                text, new = self._bounded(until, partial(examine, (guard,), text, place))
            except Exception as error:  # a guard that fails lets nothing pass
                name = getattr(guard, "name", type(guard).__name__)
                text, new = "", (Finding(name, f"the guard failed: {_said(error)}"),)
            found += new
            if any(each.action == "block" for each in new):
                break
        return text, tuple(found)

    def recall(self, who: str, look: Callable[[], list[Remembered]], until: float) -> tuple[list[Remembered], str]:
        try:
            return self._bounded(until, look), ""
        except Exception as error:  # a memory that fails is no reason to do nothing
            return [], f"memory failed: {_said(error)}"

    def verify(self, who: str, check: Callable[[], str], until: float) -> str:
        try:
            return self._bounded(until, check)
        except Exception as error:
            return f"the verifier failed: {_said(error)}"

    def keep(self, who: str, save: Callable[[], None], until: float) -> str:
        try:
            self._bounded(until, save)
        except Exception as error:
            return f"the answer was not remembered: {_said(error)}"
        return ""

    def _bounded(self, until: float, work: Callable[[], R]) -> R:
        """What a guard, a memory, a verifier or a person says; TimeUp where it does not come in time."""
        return within(max(GRACE, until - self.now("", 0)), work)


SILENT = 10_000
"""pieces in a row that a model may send without a word in them"""


def _telling(pieces: Iterator[Delta]) -> Iterator[Delta]:
    """The pieces that say something. Raises ChatError where a model sends others without end: they cost nothing, and
    would be kept for as long as there are seconds."""
    silent = 0
    with closing(pieces) as heard:  # pyright: ignore[reportArgumentType]
        for piece in heard:
            silent = 0 if piece.content or piece.reasoning or piece.call or piece.note else silent + 1
            if silent > SILENT:
                raise ChatError(f"the model sent {SILENT:,} pieces without a word", 400)
            if piece != Delta():
                yield piece


def _said(error: Exception) -> str:
    return "it gave no answer in time" if isinstance(error, TimeUp) else f"{type(error).__name__}: {error}"


def within(seconds: float, work: Callable[[], R]) -> R:
    """What `work` returns or raises. Raises TimeUp after `seconds`; what hangs is left behind in its thread."""
    return next(_pieces(lambda: iter([work()]), _left(seconds)))


def _left(seconds: float) -> Callable[[], float]:
    end = time.monotonic() + seconds
    return lambda: end - time.monotonic()


def _pieces(make: Callable[[], Iterator[R]], left: Callable[[], float]) -> Iterator[R]:
    """An iterator that runs in a thread of its own, read as long as there are seconds left; else TimeUp.

    Closing it, or giving up on it, closes the inner iterator at its next piece.
    """
    pieces: queue.Queue[tuple[bool, Any]] = queue.Queue(maxsize=64)
    stopped = threading.Event()
    thread = threading.Thread(target=_fill, args=(make, pieces, stopped), daemon=True)
    thread.start()
    try:
        while True:
            try:
                seconds = left()
                more, value = pieces.get(timeout=min(seconds, threading.TIMEOUT_MAX)) if seconds > 0 else _none()
            except queue.Empty:
                raise TimeUp from None
            if not more:
                if value is not None:
                    raise value
                return
            yield value
    finally:
        stopped.set()


def _none() -> tuple[bool, Any]:
    raise queue.Empty


def _fill(make: Callable[[], Iterator[Any]], pieces: queue.Queue[tuple[bool, Any]], stopped: threading.Event) -> None:
    def put(item: tuple[bool, Any]) -> None:
        while not stopped.is_set():
            try:
                pieces.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    try:
        iterator = make()
        for piece in iterator:
            put((True, piece))
            if stopped.is_set():
                if hasattr(iterator, "close"):
                    iterator.close()  # pyright: ignore[reportAttributeAccessIssue]
                return
        put((False, None))
    except (SystemExit, GeneratorExit) as error:  # of a model's or a guard's code: no reason for this program to end
        put((False, RuntimeError(f"{type(error).__name__}: {error}")))
    except BaseException as error:  # raised again where it is read
        put((False, error))
