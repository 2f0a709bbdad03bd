"""Whatever hangs or fails outside, guards, memory, verifiers, people: a run ends, says why, and can be repeated."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from dougong.agent import Agent, Limits, Recall, Store, reflexion, replay
from dougong.agent import outside as module
from dougong.agent.events import AnswerRejected, Event, Guarded, Judged, Recalled
from dougong.agent.guards.guard import Finding, Guard, places
from dougong.chat import ChatModel, Delta, ScriptedChat
from tests.agent.core.doing import Endless, Post, add, call, calls, last, run


@pytest.fixture(autouse=True)
def short(monkeypatch, unchecked) -> None:
    monkeypatch.setattr(module, "GRACE", 0.2)


def hang(*_: Any) -> Any:
    """Comes back when no test waits any more."""
    threading.Event().wait(30)


def fail(*_: Any) -> Any:
    raise ValueError("no luck")


class Odd(Guard):
    """A guard that does something else than answer, at one place."""

    name = "odd"

    def __init__(self, place: str, act: Any) -> None:
        self.places, self.act = places(place), act

    def check(self, text: str, place: str) -> Finding | None:
        return self.act()


def of(events: list[Event], kind: type) -> Any:
    return next(each for each in events if isinstance(each, kind))


@pytest.mark.parametrize("place", ["input", "output"])
@pytest.mark.parametrize(("act", "said"), [(hang, "it gave no answer in time"), (fail, "ValueError: no luck")])
def test_a_guard_that_does_not_answer_lets_nothing_pass(place, act, said) -> None:
    events = run(Endless(["hello"]), limits=Limits(seconds=0.3), guards=[Odd(place, act)])
    assert last(events).reason == "refused" and last(events).answer == ""
    assert of(events, Guarded).reason == f"the guard failed: {said}"
    assert list(replay(events)) == events


def test_a_guard_of_results_that_hangs_withholds_the_result() -> None:
    post = Post()
    with ScriptedChat([calls(call("send", to="a", text="b")), "done"]) as model:
        agent = Agent(model, [post.send], limits=Limits(seconds=60), guards=[Odd("tool", fail)])
        events = list(agent.run("send b to a"))
    assert last(events).answer == "done" and "the guard failed" in of(events, Guarded).reason
    assert list(replay(events)) == events


@pytest.mark.parametrize(
    ("act", "said"), [(hang, "nobody said yes in time"), (fail, "the approval failed: ValueError")]
)
def test_a_person_who_does_not_answer_has_not_said_yes(act, said) -> None:
    post = Post()
    steps = [calls(call("send", to="a", text="b")), "done"]
    events = run(Endless(steps), tools=[post.send], limits=Limits(seconds=0.3), approve=act, ask="writes")
    assert post.sent == [] and any(said in getattr(each, "why", "") for each in events)
    assert list(replay(events)) == events


@pytest.mark.parametrize(("act", "said"), [(hang, "it gave no answer in time"), (fail, "ValueError: no luck")])
def test_a_verifier_that_does_not_answer_has_found_nothing_right(act, said) -> None:
    policy = partial(reflexion, verify=act, trials=1)
    events = run(Endless(["seven"]), policy=policy, limits=Limits(seconds=0.3))
    assert of(events, Judged).fault == f"the verifier failed: {said}"
    assert list(replay(events)) == events


@pytest.mark.parametrize(("act", "said"), [(hang, "it gave no answer in time"), (fail, "ValueError: no luck")])
def test_a_memory_that_does_not_answer_costs_no_answer(act, said) -> None:
    store = Store()
    store.search, store.add = act, act  # type: ignore[method-assign]
    events = run(Endless(["hello"]), memory=Recall(store), limits=Limits(seconds=0.3 if act is hang else 60))
    assert of(events, Recalled).fault == f"memory failed: {said}"
    if act is fail:
        assert last(events).reason == "answered" and last(events).answer == "hello"
        assert last(events).detail == f"the answer was not remembered: {said}"
    assert list(replay(events)) == events


def test_an_answer_that_never_obeys_its_schema_ends_the_run_with_that_reason() -> None:
    broken = ['{"n": ', "[1, 2", '{"n": "three"}', '```json\n{"n": 1,}\n```', "{" * 50_000]
    for said in broken:
        events = run(Endless([said]), schema={"type": "object", "properties": {"n": {"type": "integer"}}})
        assert last(events).reason == "schema" and last(events).value is None
        assert of(events, AnswerRejected) and list(replay(events)) == events
    events = run(Endless([*broken[:3], '{"n": 3}']), schema={"type": "object", "required": ["n"]})
    assert last(events).reason == "answered" and last(events).value is not None


class Streams(ChatModel):
    """A model whose stream is a function's."""

    def __init__(self, pieces: Any) -> None:
        self.pieces = pieces

    def stream(self, messages: Any, tools: Any = None, schema: Any = None, sampling: Any = None) -> Iterator[Delta]:
        return self.pieces()


def always(piece: Delta) -> Any:
    return lambda: itertools.repeat(piece)


def leaving() -> Iterator[Delta]:
    yield Delta(content="I am off")
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("pieces", "reason", "said"),
    [
        (always(Delta()), "model", "without a word"),
        (always(Delta(finish_reason="stop")), "model", "without a word"),
        (always(Delta(content="x ")), "tokens", "went on and on"),
        (always(Delta(reasoning="hm ")), "tokens", "went on and on"),
        (always(Delta(note="odd")), "tokens", "went on and on"),
        (always(Delta(call=call("add", a=1, b=1))), "tokens", "went on and on"),
        (leaving, "model", "SystemExit: 3"),
    ],
)
def test_a_stream_without_end_ends(pieces, reason: str, said: str) -> None:
    events = run(Streams(pieces), tools=[add], limits=Limits(tokens=3000, retries=0))
    assert last(events).reason == reason and said in last(events).detail
    assert list(replay(events)) == events
