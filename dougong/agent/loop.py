"""The loop: one run from its task to its end, as a generator of events. It always ends, and says why.

    task -> guards -> policy (asks the model, calls tools, ...) -> answer -> schema -> guards -> Finished

The policy says how the answer comes about; all that is common to policies is here: memory before and after, guards on
what goes in and out, the answer held to its schema, and the reason of the end, whatever happened.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from dougong.agent.answers import parsed
from dougong.agent.delegate import Delegate
from dougong.agent.events import AnswerRejected, Described, Event, Finished, Guarded, Place, Started
from dougong.agent.guards.guard import Finding
from dougong.agent.held import loosened
from dougong.agent.limits import Ended
from dougong.base import DougongError, record_to
from dougong.chat import Message

if TYPE_CHECKING:
    from dougong.agent.agent import Agent
    from dougong.agent.run import Run, Steps


CUT = "the answer was cut at the most tokens that the model may write"


def events(run: Run) -> Iterator[Event]:
    """What happens in a run, as it happens; the last event is its Finished."""
    run.tick()
    passed, found = run.outside.examine(run.who, "input", 0, run.agent.guards, run.task, run.until)
    if not _blocked(found):  # what a guard took out is not in the trace either; what it refused is
        run.accept(passed)
    yield started(run)
    answer, value, detail = "", None, ""
    try:
        yield from _told(run, "input", found)
        yield from run.agent.memory.begin(run)
        run.begin()
        answer = yield from run.agent.policy(run)
        if run.schema is not None:
            answer, value = yield from _obeying(run, run.schema, answer)
        passed, found = run.outside.examine(run.who, "output", 0, run.agent.guards, answer, run.until)
        yield from _told(run, "output", found)
        if run.schema is not None and passed != answer:
            value, problem = parsed(passed, run.schema)
            if problem:
                raise Ended("schema", f"what guards took out left no valid answer: {problem}")
        answer, reason = passed, "answered"
        # That memory failed is no reason to lose the answer.
        kept = run.outside.keep(run.who, partial(run.agent.memory.end, run, passed), run.until)
        cut = CUT if run.messages and run.messages[-1].finish_reason == "length" else ""
        detail = kept if cut in kept else "; ".join(filter(None, (cut, kept)))  # a replay keeps what it was told
    except Ended as end:
        reason, detail = end.reason, end.detail
        answer, value = _draft(run) if reason != "refused" else "", None
    except Exception as error:  # of a policy, a memory: the run is lost, but whoever reads the events learns why
        reason, answer, value = "error", _draft(run), None
        detail = str(error) if isinstance(error, DougongError) else f"{type(error).__name__}: {error}"
    meter = run.meter
    yield run.event(
        Finished, reason=reason, answer=answer, value=value, detail=detail, steps=meter.steps, tokens=meter.tokens
    )


def started(run: Run) -> Started:
    """The event that begins a run, with all that a replay needs to know."""
    tools = tuple(
        Described(action.tool, action.effect, action.trusted, action.timeout, isinstance(action, Delegate))
        for action in run.tools.values()
    )
    return run.event(
        Started,
        task=run.task,
        instructions=run.agent.instructions,
        history=run.history,
        tools=tools,
        schema=run.schema,
        setup=setup(run.agent),
    )


def setup(agent: Agent) -> dict[str, Any]:
    """An agent's policy, memory, guards and limits as JSON has them; null for a setting that JSON cannot say."""
    policy = _plain(agent.policy)
    return {
        "policy": policy["function"],
        "settings": policy.get("settings", {}),
        "memory": {"kind": type(agent.memory).__name__, **agent.memory.settings()},
        "guards": [
            {"name": getattr(guard, "name", type(guard).__name__), "places": sorted(guard.places)}
            for guard in agent.guards
        ],
        "limits": record_to(agent.limits),
        "ask": agent.ask,
        "mark": agent.mark,
    }


def _plain(value: Any) -> Any:
    """A setting of a policy: a scalar as it is, a function with its own settings, agents by their names."""
    from dougong.agent.agent import Agent

    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Agent):
        return {"agent": value.name}
    if isinstance(value, (list, tuple)) and value and all(isinstance(each, Agent) for each in value):
        return {"agents": [each.name for each in value]}
    if not callable(value):
        return None
    settings: dict[str, Any] = {}
    while isinstance(value, partial):
        settings = {**value.keywords, **settings}
        value = value.func
    name = getattr(value, "__name__", type(value).__name__)
    more = {"settings": {key: _plain(each) for key, each in settings.items()}} if settings else {}
    return {"function": name, **more}


def _told(run: Run, place: Place, found: Sequence[Finding]) -> Steps[None]:
    """What guards found, as events. Raises Ended where one lets nothing pass."""
    for each in found:
        yield run.event(Guarded, place=place, number=0, **vars(each))
    blocked = _blocked(found)
    if blocked:
        raise Ended("refused", f"{blocked.guard}: {blocked.reason}")


def _blocked(found: Sequence[Finding]) -> Finding | None:
    return next((each for each in found if each.action == "block"), None)


def _draft(run: Run) -> str:
    """What was said last, for a run without an answer; nothing where guards would have had to see it."""
    return "" if any("output" in guard.places for guard in run.agent.guards) else run.draft


def _obeying(run: Run, schema: dict[str, Any], answer: str) -> Steps[tuple[str, Any]]:
    """The answer as JSON that obeys `schema`: asked for again with what is wrong, then held to it by the model itself.
    Raises Ended where that does not help either."""
    for _ in range(run.limits.corrections):
        value, problem = parsed(answer, schema)
        if not problem:
            return json.dumps(value, ensure_ascii=False), value
        yield run.event(AnswerRejected, problem=problem)
        _reject(run, answer, problem, schema)
        answer = (yield from run.think(tools=False)).content
    value, problem = parsed(answer, schema)
    if problem:
        yield run.event(AnswerRejected, problem=problem, forced=True)
        _reject(run, answer, problem, schema)
        value, problem = parsed((yield from _held(run, schema)), schema)
    if problem:
        raise Ended("schema", problem)
    return json.dumps(value, ensure_ascii=False), value


def _held(run: Run, schema: dict[str, Any]) -> Steps[str]:
    """An answer that the model itself is held to: to the schema, or, where it cannot be, to what it can."""
    shown = yield from run.agent.memory.view(run)
    loose = loosened(schema)
    try:
        return (yield from run.ask(shown, schema=schema)).content
    except Ended as end:
        if end.reason != "model" or loose == schema:
            raise
    return (yield from run.ask(shown, schema=loose)).content


def _reject(run: Run, answer: str, problem: str, schema: dict[str, Any]) -> None:
    if run.messages[-1].role != "assistant":
        run.messages.append(Message("assistant", answer))
    run.tell(f"{problem}\nAnswer again, with JSON of this schema alone:\n{json.dumps(schema)}")
