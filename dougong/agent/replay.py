"""A run again, from its trace: the policy works, and the outside answers what it answered then.

Models, tools, people, guards and clocks are not asked: their answers are in the events. What the run makes of them is
computed anew, so a replay shows that the trace is true, and where a change of the code would have gone another way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, final

from dougong.agent.events import (
    ApprovalAsked,
    ApprovalGiven,
    ApprovalRefused,
    Event,
    Finished,
    Guarded,
    Judged,
    ModelAnswered,
    ModelFailed,
    Place,
    Recalled,
    Said,
    Started,
    ToolFailed,
    ToolReturned,
    from_line,
    to_line,
)
from dougong.agent.guards.guard import Finding, Guard
from dougong.agent.outside import Approve, Outside, Question, Remembered, Result, TimeUp
from dougong.agent.tool import Action, ToolError
from dougong.agent.trace import read, record
from dougong.base import DougongError
from dougong.chat import ChatError, ChatModel, Delta

if TYPE_CHECKING:
    from dougong.agent.agent import Agent

__all__ = ["Recorded", "difference", "read", "record", "replay"]

E = TypeVar("E", bound=Event)


def replay(trace: str | Path | Sequence[Event], agent: Agent | None = None) -> Iterator[Event]:
    """The events of a run again, each compared with the one that was recorded.

    agent: who ran; left out, it is made from the trace, which is possible where its policy is one of
    `dougong.agent.patterns` or `dougong.agent.teams`, with settings that JSON can say. A trace that breaks off is
    replayed up to there.
    Raises DougongError at the first event that differs, with its number, its kind and what of it differs.
    """
    recorded = read(trace) if isinstance(trace, (str, Path)) else list(trace)
    if not recorded or not isinstance(recorded[0], Started):
        raise DougongError("the trace does not begin with Started, so there is nothing to replay")
    first = recorded[0]
    if agent is None:
        from dougong.agent.rebuild import rebuilt

        agent = rebuilt(recorded)
    again = agent.begin(first.task, Recorded(recorded), schema=first.schema, history=first.history)
    count = 0
    try:
        for event in again:
            if count >= len(recorded):
                if recorded[-1].kind == "Finished" and recorded[-1].who == first.who:
                    raise DougongError(f"the trace ends with event {count}, but the run goes on with {event.kind}")
                return
            told = difference(recorded[count], event)
            if told:
                raise DougongError(f"event {count + 1}, {told}")
            count += 1
            yield event
    except TraceOver:
        pass  # a trace may end in the middle of a run; whether all of it was repeated is told below
    if count < len(recorded):
        missed = recorded[count]
        raise DougongError(
            f"the run ends after event {count}, but the trace goes on with {missed.kind} by {missed.who}"
        )


def difference(was: Event, now: Event) -> str:
    """What of an event differs from the one that was recorded; "" for nothing. Times and ids do not count."""
    now = from_line(to_line(now))  # as it would be read
    if was.kind != now.kind:
        return f"{was.kind} by {was.who}: the run now has {now.kind} by {now.who}"
    for each in fields(was):
        old, new = getattr(was, each.name), getattr(now, each.name)
        if each.compare and old != new:
            return f"{was.kind} by {was.who}: {each.name} was {old!r:.200}, and is now {new!r:.200}"
    return ""


@final
class TraceOver(BaseException):
    """The trace has no answer to what the run asks: it broke off there. (No Exception: no policy may handle it.)"""


@final
class _Tape:
    """What was recorded of one run."""

    def __init__(self, events: Sequence[Event]):
        self.events = events
        self.answers = [each for each in events if isinstance(each, (Said, ModelAnswered, ModelFailed))]
        self.recalled = iter(_of(events, Recalled))
        self.verdicts = iter([each for each in _of(events, Judged) if each.judge == "verifier"])
        self.results = {each.number: each for each in events if isinstance(each, (ToolReturned, ToolFailed))}
        self.approvals = {each.number: each for each in events if isinstance(each, (ApprovalGiven, ApprovalRefused))}
        self.found: dict[tuple[str, int], list[Guarded]] = defaultdict(list)
        for each in _of(events, Guarded):
            self.found[each.place, each.number].append(each)


def _of(events: Sequence[Event], kind: type[E]) -> list[E]:
    return [each for each in events if isinstance(each, kind)]


@final
class Recorded(Outside):
    """The outside as it was in a trace."""

    def __init__(self, events: Sequence[Event]):
        by_run: dict[str, list[Event]] = defaultdict(list)
        for each in events:
            by_run[each.who].append(each)
        self._tapes = {who: _Tape(each) for who, each in by_run.items()}

    def _tape(self, who: str) -> _Tape:
        if who not in self._tapes:
            raise TraceOver
        return self._tapes[who]

    def now(self, who: str, index: int) -> float:
        # A trace may break off while other runs are at work: the next event of this one is then not there, and what it
        # does next asks the outside, which tells that the trace is over.
        events = self._tape(who).events
        return events[min(index, len(events) - 1)].at

    def stream(self, who: str, model: ChatModel, question: Question) -> Iterator[Delta]:
        answers = self._tape(who).answers
        end = next((place for place, each in enumerate(answers) if not isinstance(each, Said)), len(answers))
        # Taken at once: whoever listens may leave before the end, as it did then.
        pieces, last = answers[:end], answers[end] if end < len(answers) else None
        del answers[: end + 1]
        for piece in pieces:
            assert isinstance(piece, Said)
            yield Delta(content=piece.content, reasoning=piece.reasoning)
        if last is None:
            raise TraceOver
        if isinstance(last, ModelFailed):
            raise TimeUp if last.late else ChatError(last.error, 503 if last.again else 400)
        assert isinstance(last, ModelAnswered)
        yield from _rest(last, bool(pieces))

    def wait(self, seconds: float) -> None:
        """It was waited then."""

    def act(
        self, who: str, number: int, action: Action, arguments: dict[str, Any], until: float, most: float
    ) -> Result:
        result = self._tape(who).results.get(number)
        if result is None:
            raise TraceOver
        if isinstance(result, ToolReturned):
            return Result(result.text, result.length)
        if result.late:
            raise TimeUp
        raise ToolError(result.error)

    def approve(self, asked: ApprovalAsked, approve: Approve | None, until: float) -> str:
        said = self._tape(asked.who).approvals.get(asked.number)
        if said is None:
            raise TraceOver
        return said.why if isinstance(said, ApprovalRefused) else ""

    def examine(
        self, who: str, place: Place, number: int, guards: Sequence[Guard], text: str, until: float
    ) -> tuple[str, tuple[Finding, ...]]:
        found = [
            Finding(each.guard, each.reason, each.action, each.text) for each in self._tape(who).found[place, number]
        ]
        for each in found:
            text = "" if each.action == "block" else text if each.text is None else each.text
        return text, tuple(found)

    def recall(self, who: str, look: Callable[[], list[Remembered]], until: float) -> tuple[list[Remembered], str]:
        found = next(self._tape(who).recalled, None)
        return ([], "") if found is None else (list(map(Remembered, found.texts, found.trusted)), found.fault)

    def verify(self, who: str, check: Callable[[], str], until: float) -> str:
        verdict = next(self._tape(who).verdicts, None)
        if verdict is None:
            raise TraceOver
        return verdict.fault

    def keep(self, who: str, save: Callable[[], None], until: float) -> str:
        last = self._tape(who).events[-1]
        return last.detail if isinstance(last, Finished) and last.reason == "answered" else ""


def _rest(answer: ModelAnswered, said: bool) -> Iterator[Delta]:
    """What of an answer was not said in pieces."""
    message = answer.message
    if not said:
        yield Delta(content=message.content, reasoning=message.reasoning)
    for call in message.tool_calls:
        yield Delta(call=call)
    for note in message.notes:
        yield Delta(note=note)
    yield Delta(finish_reason=message.finish_reason, usage=message.usage)
