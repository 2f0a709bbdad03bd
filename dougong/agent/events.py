"""What happens in an agent's run: frozen events, each of them one line of JSON.

The stream of a run is its log, its memory and its trace, and enough to run it again (`replay`). Every event says who:
"agent", or "agent/writer#2" for the second run of a worker, one level deeper; and when: seconds since the run began,
which do not count when two events are compared.
"""

from __future__ import annotations

import json
from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, final, get_args

from dougong.base import DougongError, nearest, record_from, record_to
from dougong.chat import Message, Tool, ToolCall

Place = Literal["input", "tool", "output"]
Reason = Literal["answered", "steps", "tokens", "seconds", "repeats", "refused", "schema", "model", "error"]
"""Why a run ended: with an answer; at a limit (steps, tokens, seconds, repeats); stopped by a guard (refused); without
an answer that obeys the schema; because the model did not answer; because of a fault."""
REASONS: tuple[str, ...] = get_args(Reason)


@dataclass(frozen=True)
class Event(ABC):
    """Something that happened. who: the run it happened in; at: seconds since the outermost run began."""

    who: str
    at: float = field(compare=False)

    @property
    def depth(self) -> int:
        """0 for the agent that was started, 1 for those that it started, ..."""
        return self.who.count("/")

    @property
    def kind(self) -> str:
        return type(self).__name__


@final
@dataclass(frozen=True)
class Described:
    """A tool as it is written down: what the model is told of it, and what using it means. agent: it is another one."""

    tool: Tool
    effect: Literal["read", "write"]
    trusted: bool
    timeout: float | None = None
    agent: bool = False


@final
@dataclass(frozen=True)
class Started(Event):
    """A run begins. setup: the policy's name and settings, limits, memory and guards, as far as JSON can say them."""

    task: str
    instructions: str = ""
    history: tuple[Message, ...] = ()
    tools: tuple[Described, ...] = ()
    schema: dict[str, Any] | None = None
    setup: dict[str, Any] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class Recalled(Event):
    """Texts that long-term memory gave. trusted: which of them hold nothing from outside; fault: why there are none,
    where memory failed."""

    texts: tuple[str, ...]
    trusted: tuple[bool, ...]
    fault: str = ""


@final
@dataclass(frozen=True)
class ModelAsked(Event):
    """The model is asked. purpose: answer, or what else (plan, critique, ...); digest: of the messages, the tools and
    the schema, so that a replay sees where a prompt differs; prompt: its tokens, estimated."""

    purpose: str
    messages: int
    prompt: int
    digest: str


@final
@dataclass(frozen=True)
class Said(Event):
    """A piece of the answer as it comes, or of the reasoning before it."""

    content: str = ""
    reasoning: str = ""


@final
@dataclass(frozen=True)
class ModelAnswered(Event):
    """The whole answer. tokens: what it cost, read and written; estimated: the model did not say."""

    message: Message
    tokens: int
    estimated: bool = False


@final
@dataclass(frozen=True)
class ModelFailed(Event):
    """No answer came; pieces of it that were said do not count. late: the run's seconds were over; again: it is asked
    once more."""

    error: str
    late: bool = False
    again: bool = False


@final
@dataclass(frozen=True)
class ToolCalled(Event):
    """The model asks for a tool. number: of the call in this run, from 1."""

    number: int
    call: ToolCall


@final
@dataclass(frozen=True)
class ApprovalAsked(Event):
    """A call that changes things needs a yes. reasons: why it is asked for."""

    number: int
    call: ToolCall
    reasons: tuple[str, ...]


@final
@dataclass(frozen=True)
class ApprovalGiven(Event):
    """The call may be made."""

    number: int


@final
@dataclass(frozen=True)
class ApprovalRefused(Event):
    """The call is not made, and the model is told why."""

    number: int
    why: str


@final
@dataclass(frozen=True)
class ToolReturned(Event):
    """What a call gave, as the model will read it. length: in characters, before a flood was cut; trusted: false where
    it may hold what strangers wrote."""

    number: int
    name: str
    text: str
    length: int
    trusted: bool = True


@final
@dataclass(frozen=True)
class ToolFailed(Event):
    """A call gave no result. late: the run's seconds were over."""

    number: int
    name: str
    error: str
    late: bool = False


@final
@dataclass(frozen=True)
class Guarded(Event):
    """A guard found something. number: of the call (0 for the task, or of the answer); text: as redacted."""

    place: Place
    number: int
    guard: str
    reason: str
    action: Literal["block", "flag", "redact"]
    text: str | None = None


@final
@dataclass(frozen=True)
class Summarised(Event):
    """The oldest messages were replaced by a summary."""

    messages: int
    text: str


@final
@dataclass(frozen=True)
class Planned(Event):
    """The steps that are to be done, the first plan or a new one."""

    steps: tuple[str, ...]


@final
@dataclass(frozen=True)
class Judged(Event):
    """An answer was checked, by `judge`: "critic" or "verifier". fault: what is wrong with it; "" for nothing."""

    judge: str
    fault: str


@final
@dataclass(frozen=True)
class Lesson(Event):
    """What a failed trial taught."""

    trial: int
    text: str


@final
@dataclass(frozen=True)
class Voted(Event):
    """The ballots of a team, and the answer that won."""

    ballots: dict[str, str]
    winner: str


@final
@dataclass(frozen=True)
class AnswerRejected(Event):
    """The answer does not obey the schema, and is asked for again. forced: this time held to it."""

    problem: str
    forced: bool = False


@final
@dataclass(frozen=True)
class Finished(Event):
    """The run is over: always the last event of its `who`. value: the answer as JSON, where a schema was given."""

    reason: Reason
    answer: str = ""
    value: Any = None
    detail: str = ""
    steps: int = 0
    tokens: int = 0


EVENTS: dict[str, type[Event]] = {
    kind.__name__: kind
    for kind in (
        *(Started, Recalled, ModelAsked, Said, ModelAnswered, ModelFailed, ToolCalled, ApprovalAsked, ApprovalGiven),
        *(ApprovalRefused, ToolReturned, ToolFailed, Guarded, Summarised, Planned, Judged, Lesson, Voted),
        *(AnswerRejected, Finished),
    )
}


def to_line(event: Event) -> str:
    """One line of JSON, without its end. Lone surrogates are escaped, so that any text goes through."""
    data = {"event": event.kind, **record_to(event)}
    text = json.dumps(data, ensure_ascii=False, default=str)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(data, default=str)
    return text


def from_line(line: str, where: str = "the line") -> Event:
    """Read what `to_line` wrote. Raises DougongError that names `where` and the key."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        raise DougongError(f"{where} is no JSON: {line[:60]!r}") from None
    name = data.get("event") if isinstance(data, Mapping) else data
    if not isinstance(data, Mapping) or not isinstance(name, str) or name not in EVENTS:
        raise DougongError(f"{where} is no event of an agent: {str(name)[:60]!r}{nearest(str(name)[:60], EVENTS)}")
    return record_from(EVENTS[name], {key: value for key, value in data.items() if key != "event"}, where)
