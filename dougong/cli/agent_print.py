"""An agent's events for people to read: beside the answer, which alone goes to standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import final

from dougong.agent.events import (
    AnswerRejected,
    ApprovalAsked,
    ApprovalGiven,
    ApprovalRefused,
    Event,
    Finished,
    Guarded,
    Judged,
    Lesson,
    ModelAnswered,
    ModelFailed,
    Planned,
    Recalled,
    Said,
    Started,
    Summarised,
    ToolCalled,
    ToolFailed,
    ToolReturned,
    Voted,
)
from dougong.chat import ToolCall

WIDTH = 200
"""characters of a result that are shown"""


@final
class Printer:
    """Writes events as they come: what the model says piece by piece, everything else a line each."""

    def __init__(self, write: Callable[[str], object] | None = None):
        self._write = write or _to_stderr
        self._said = ""
        self._open = False

    @property
    def said(self) -> str:
        """What the model said last, as far as it was shown."""
        return self._said

    def __call__(self, event: Event) -> None:
        if isinstance(event, Said):
            if not self._open:
                self._said = ""
            self._said += event.content
            self._open = True
            self._write(event.content or event.reasoning)
            return
        line = told(event)
        if self._open:
            self._write("\n")
            self._open = False
        if line:
            self._write(f"{'  ' * event.depth}{line}\n")


def told(event: Event) -> str:
    """An event in a line; "" for those that say nothing to a reader of the others."""
    match event:
        case Started():
            tools = ", ".join(each.tool.name for each in event.tools) or "no tools"
            return f"{event.who}: {short(event.task)}  [{tools}]"
        case Recalled():
            return event.fault or f"remembers {len(event.texts)} texts"
        case ModelAnswered() if event.message.content and not event.message.tool_calls:
            return ""
        case ModelFailed():
            return f"the model failed: {short(event.error)}" + ("; it is asked again" if event.again else "")
        case ToolCalled():
            return f"-> {call(event.call)}"
        case ToolReturned():
            cut = f" (cut from {event.length:,} characters)" if len(event.text) < event.length else ""
            return f"<- {short(event.text)}{cut}" + ("" if event.trusted else "  [from outside]")
        case ToolFailed():
            return f"<- failed: {short(event.error)}"
        case ApprovalAsked():
            return f"?? {call(event.call)} needs a yes: {'; '.join(event.reasons)}"
        case ApprovalGiven():
            return "?? approved"
        case ApprovalRefused():
            return f"?? refused: {event.why}"
        case Guarded():
            return f"!! {event.guard} ({event.place}, {event.action}): {event.reason}"
        case Summarised():
            return f"{event.messages} messages summarised: {short(event.text)}"
        case Planned():
            return "plan: " + "; ".join(f"{number}. {step}" for number, step in enumerate(event.steps, start=1))
        case Judged():
            return f"{event.judge}: {short(event.fault) if event.fault else 'nothing is wrong'}"
        case Lesson():
            return f"lesson of trial {event.trial}: {short(event.text)}"
        case Voted():
            return f"{len(event.ballots)} votes: {short(event.winner)}"
        case AnswerRejected():
            return f"not as the schema asks: {short(event.problem)}"
        case Finished():
            detail = f": {short(event.detail)}" if event.detail else ""
            return (
                f"{event.who} {event.reason}{detail} ({event.steps} steps, {event.tokens:,} tokens, {event.at:.1f} s)"
            )
    return ""


def call(made: ToolCall) -> str:
    """A call as it would be written in a program."""
    arguments = ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in made.arguments.items())
    return short(f"{made.name}({arguments})")


def short(text: str) -> str:
    """A text in one line, cut at WIDTH."""
    line = " ".join(text.split())
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 4]} ..."


def _to_stderr(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
