"""Calls of tools: who may, in which order, and what becomes of the results.

Neighbouring calls of reading tools run side by side; a writing one waits for those before it and runs alone. Events and
results come in the order of the calls, whoever is ready first, so that a run can be repeated.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, final

from dougong.agent.delegate import Delegate, Ending, Inside, stopped, too_deep
from dougong.agent.events import (
    ApprovalAsked,
    ApprovalGiven,
    ApprovalRefused,
    Event,
    Guarded,
    ToolCalled,
    ToolFailed,
    ToolReturned,
)
from dougong.agent.limits import Ended, cut
from dougong.agent.outside import Result, TimeUp
from dougong.agent.side import side_by_side
from dougong.agent.taint import marked
from dougong.agent.tool import Action, ToolError
from dougong.base import nearest
from dougong.chat import Message, ToolCall

if TYPE_CHECKING:
    from dougong.agent.run import Run, Steps


@final
@dataclass(frozen=True)
class _Job:
    """A call that will be made. inside: of an action that is a run itself, what that run is given."""

    number: int
    call: ToolCall
    action: Action
    inside: Inside | None = None


@final
@dataclass(frozen=True)
class _Done:
    """How a call ended: with a result, an error, or late. ending: of a run inside it."""

    result: Result | None = None
    error: str = ""
    late: bool = False
    ending: Ending | None = None


def perform(run: Run, calls: Sequence[ToolCall]) -> Steps[list[Message]]:
    """The results of `calls` as messages, in their order. Raises Ended where a call was repeated too often, and where
    the run's seconds are over."""
    numbered = [(run.calls + place, call) for place, call in enumerate(calls, start=1)]
    run.calls += len(numbered)
    run.tick()
    for number, call in numbered:
        yield run.event(ToolCalled, number=number, call=call)
    results: list[Message] = []
    for group in _groups(run, numbered):
        results += yield from _group(run, group)
    return results


def _groups(run: Run, numbered: Sequence[tuple[int, ToolCall]]) -> Iterator[list[tuple[int, ToolCall]]]:
    """Neighbours that only read together, as many as may; every other call alone."""
    group: list[tuple[int, ToolCall]] = []
    for number, call in numbered:
        action = run.tools.get(call.name)
        reads = action is None or action.effect == "read"
        if group and (not reads or len(group) >= run.limits.parallel):
            yield group
            group = []
        group.append((number, call))
        if not reads:
            yield group
            group = []
    if group:
        yield group


def _group(run: Run, group: Sequence[tuple[int, ToolCall]]) -> Steps[list[Message]]:
    run.tick()
    refused: dict[int, str] = {}
    jobs: list[_Job] = []
    for number, call in group:
        action = run.tools.get(call.name)
        if action is None:
            refused[number] = f"there is no tool {call.name!r:.60}{nearest(call.name[:60], run.tools)}"
            continue
        if run.meter.repeated(call.name, call.arguments) >= run.limits.repeats:
            what = f"{call.name} was called with the same arguments and gave the same result"
            raise Ended("repeats", f"{what} {run.limits.repeats} times, and was called so again")
        why = (yield from _asked(run, number, call, action)) if action.effect == "write" else None
        if why is None and isinstance(action, Delegate) and run.limits.depth < 1:
            why = too_deep(run)
        if why is not None:
            refused[number] = why
        else:
            jobs.append(_Job(number, call, action, _inside(run, action, len(group))))
    works = [partial(_do, run, job) for job in jobs]
    results: list[Message] = []
    with closing(side_by_side(works)) as ready:  # pyright: ignore[reportArgumentType]
        for number, call in group:
            if number in refused:
                results.append((yield from _failed(run, number, call, refused[number], ours=True)))
            else:
                done = yield from next(ready)
                results.append((yield from _told(run, number, call, done)))
    return results


def _asked(run: Run, number: int, call: ToolCall, action: Action) -> Steps[str | None]:
    """Ask whether a writing call may be made, if that is in question; why it may not, or None."""
    reasons = run.taint.reasons(call.arguments, action.tool.parameters)
    if run.agent.ask == "writes":
        reasons = (f"{call.name} changes things", *reasons)
    if not reasons:
        return None
    asked = run.event(ApprovalAsked, number=number, call=call, reasons=reasons)
    yield asked
    why = run.outside.approve(asked, run.approve, run.until)
    run.tick()
    if why:
        yield run.event(ApprovalRefused, number=number, why=why)
        return f"this call was refused, for {why} ({'; '.join(reasons)})"
    yield run.event(ApprovalGiven, number=number)
    return None


# -- doing it ----------------------------------------------------------------------------------------------------------


def _inside(run: Run, action: Action, parts: int) -> Inside | None:
    if not isinstance(action, Delegate):
        return None
    return Inside.of(run, action.agent, run.meter.share(parts, run.elapsed))


def _do(run: Run, job: _Job) -> Generator[Event, None, _Done]:
    """Make a call. Another run's events join ours; its answer is the result, or why it has none the error."""
    if isinstance(job.action, Delegate) and job.inside is not None:
        try:
            task = job.action.task(job.call.arguments)
        except ToolError as error:
            return _Done(error=str(error))
        ending = yield from job.inside.run(task)
        if ending.finished.reason != "answered":
            return _Done(error=stopped(ending.finished), ending=ending)
        return _Done(Result(ending.finished.answer, len(ending.finished.answer)), ending=ending)
    try:
        result = run.outside.act(
            run.who, job.number, job.action, job.call.arguments, run.until, run.limits.tool_seconds
        )
    except TimeUp:
        return _Done(error="the run's seconds were over before the result", late=True)
    except ToolError as error:
        return _Done(error=str(error))
    except Exception as error:  # an action that keeps not to its contract
        return _Done(error=f"{job.call.name} failed: {type(error).__name__}: {error}")
    return _Done(result)


# -- what the model is told --------------------------------------------------------------------------------------------


def _told(run: Run, number: int, call: ToolCall, done: _Done) -> Steps[Message]:
    run.tick()
    if done.ending is not None:
        done.ending.charge(run)
    if done.result is None:
        message = yield from _failed(run, number, call, done.error, done.late)
        if done.late:
            raise Ended("seconds", f"{call.name} gave no result within the {run.limits.seconds:g} seconds")
        return message
    action = run.tools[call.name]
    outside = not action.trusted or (done.ending is not None and done.ending.outside)
    # What a trusted tool makes of words that nobody can trace is as little the user's as they are.
    doubtful = outside or bool(run.taint.reasons(call.arguments, action.tool.parameters))
    text = cut(done.result.text, run.limits.result)
    text, blocked = yield from guarded(run, number, text)
    run.meter.saw(call.name, call.arguments, text)
    yield run.event(
        ToolReturned, number=number, name=call.name, text=text, length=done.result.length, trusted=not doubtful
    )
    if doubtful:
        run.taint.distrust(text, call.name)
    else:
        run.taint.trust(text)
    shown = marked(text, call.name) if outside and not blocked and run.agent.mark else text
    if run.meter.repeated(call.name, call.arguments) == run.limits.repeats > 1:
        shown += f"\n(This call has given the same result {run.limits.repeats} times. Do something else.)"
    return Message("tool", shown, tool_call_id=call.id, name=call.name)


def guarded(run: Run, number: int, text: str) -> Steps[tuple[str, bool]]:
    """A result as guards let it pass, and whether they withheld it."""
    text, found = run.outside.examine(run.who, "tool", number, run.agent.guards, text, run.until)
    for each in found:
        yield run.event(Guarded, place="tool", number=number, **vars(each))
    blocked = next((each for each in found if each.action == "block"), None)
    return (f"[withheld: {blocked.reason}]", True) if blocked else (text, False)


def _failed(
    run: Run, number: int, call: ToolCall, error: str, late: bool = False, *, ours: bool = False
) -> Steps[Message]:
    """A call without a result. ours: the loop itself says so, not the tool."""
    error = cut(error, run.limits.result)
    if not ours:
        error, _ = yield from guarded(run, number, error)
    yield run.event(ToolFailed, number=number, name=call.name, error=error, late=late)
    action = run.tools.get(call.name)
    run.meter.saw(call.name, call.arguments, f"error: {error}")
    text = f"error: {error}"
    if action is not None and not ours and (not action.trusted or run.taint.seen):  # errors repeat what was given
        run.taint.distrust(error, call.name)
        text = marked(text, call.name) if run.agent.mark and not action.trusted else text
    return Message("tool", text, tool_call_id=call.id, name=call.name)
