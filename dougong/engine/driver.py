"""How a request goes on, step by step: what it wants run, and what it makes of the results.

The scheduler knows requests only as drivers. It may run a driver's work in pieces over several steps (a long prompt in
chunks), and calls `take` when all of it is done. Beam search, contrastive search and speculation are drivers with
several sequences, or several tokens a step; `Plain` is the usual one.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Protocol, runtime_checkable

from dougong.engine.choose import Choice
from dougong.engine.pages import OutOfPages
from dougong.engine.request import Event, FinishReason, Request
from dougong.engine.runner import Runner
from dougong.engine.sequence import Sequence
from dougong.engine.setting import Setting
from dougong.engine.work import Result, Work


@runtime_checkable
class Driver(Protocol):
    """One request's way. `work` may raise OutOfPages, and is then asked again; it must give some work until `finished`.
    After `close` nothing of it is stored. A driver that can begin anew from what it has generated also has `pause()`,
    which gives all state back for now; the others are never preempted."""

    @property
    def finished(self) -> bool: ...

    def work(self) -> list[Work]: ...

    def take(self, results: list[Result]) -> list[Event]: ...

    def close(self) -> None: ...


class Plain:
    """Token after token, for each of a prompt's answers. They share the prompt's pages; tokens are chosen by whoever
    runs the drivers, for all of them at once: `asks` says whose result is whose, `accept` takes the choices.

    keep: how many of the answers are told, the best by mean log-probability; all by default, and then as they come.
    """

    def __init__(
        self, runner: Runner, requests: Many[Request], keep: int | None = None, setting: Setting | None = None
    ):
        self._runner = runner
        self._requests = list(requests)
        self._sequences: list[Sequence | None] = [None] * len(self._requests)
        self._keep = len(self._requests) if keep is None else keep
        self._held: list[list[Event]] = [[] for _ in self._requests]
        self._started = False  # before that, one sequence reads the prompt for all
        self._setting = setting or Setting(runner.model)
        self._working: list[int] = []

    @property
    def finished(self) -> bool:
        return all(request.finished for request in self._requests)

    def work(self) -> list[Work]:
        self._working = [number for number, request in enumerate(self._requests) if not request.finished]
        if not self._started:
            self._working = self._working[:1]
        out = []
        for number in self._working:
            request = self._requests[number]
            seq = self._sequences[number]
            if seq is None:
                text = request.text
                seq = self._sequences[number] = self._open(request, text)
                out.append(Work(seq, text[seq.length :], 1))
            else:
                missing = len(request.virtual) + len(request.prompt) + len(request.output) - seq.length
                own = request.output[-missing:] if missing <= len(request.output) else None
                out.append(Work(seq, own or request.text[seq.length :], 1))
        return out

    def _open(self, request: Request, text: list[int]) -> Sequence:
        return self._setting.open(self._runner, text, request.size)

    def asks(self) -> list[Request]:
        """Whose next token each result of the last work decides. While the prompt is read one result is for all."""
        if not self._started:
            return [request for request in self._requests if not request.finished]
        return [self._requests[number] for number in self._working]

    def accept(self, choices: Many[Choice]) -> list[Event]:
        """Take the tokens chosen for those who asked."""
        asked = self.asks()
        if not self._started:
            self._started = True
            self._part(asked, choices)
        events: list[Event] = []
        for request, choice in zip(asked, choices, strict=True):
            events += self._tell(request.choice, request.accept(choice.token, choice.logprob, choice.top))
            if request.finished:
                self._leave(request.choice)
        return events

    def _part(self, asked: list[Request], choices: Many[Choice]) -> None:
        """The prompt has been read: each answer gets a sequence of its own."""
        first = self._sequences[asked[0].choice]
        assert first is not None
        for request in asked[1:]:
            try:
                self._sequences[request.choice] = self._runner.fork(first)
            except OutOfPages:
                return  # `work` opens the others when there is room

    def _tell(self, number: int, events: list[Event]) -> list[Event]:
        if self._keep == len(self._requests):
            return events
        self._held[number] += events
        if not self.finished:
            return []
        best = sorted(range(len(self._requests)), key=lambda each: -_mean(self._held[each]))[: self._keep]
        return [
            event._replace(choice=place) for place, number in enumerate(sorted(best)) for event in self._held[number]
        ]

    def _leave(self, number: int) -> None:
        seq = self._sequences[number]
        if seq is not None:
            self._runner.close(seq)
            self._sequences[number] = None

    def end(self, reason: FinishReason) -> list[Event]:
        """End all answers that have not ended."""
        events: list[Event] = []
        for request in self._requests:
            if not request.finished:
                events += self._tell(request.choice, request.end(reason))
        self.close()
        return events

    def pause(self) -> None:
        """Give all pages back for now."""
        for number in range(len(self._requests)):
            self._leave(number)

    def scrub(self) -> None:
        """Leave nothing that is no number where others will write."""
        for seq in self._sequences:
            if seq is not None:
                self._runner.scrub(seq)

    def close(self) -> None:
        self.pause()


def _mean(events: list[Event]) -> float:
    """Mean log-probability of an answer's tokens; an answer that failed is the last choice."""
    logprobs = [event.logprob for event in events if event.token is not None]
    failed = not logprobs or events[-1].finish_reason in ("cancelled", "error")
    return float("-inf") if failed else sum(logprobs) / len(logprobs)
