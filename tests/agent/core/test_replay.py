"""Traces: written as the run goes, readable after a crash, and the same run again."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dougong.agent import (
    Agent,
    Limits,
    Recall,
    Summary,
    debate,
    react,
    read,
    record,
    reflect,
    reflexion,
    replay,
    role_chat,
    vote,
    worker,
)
from dougong.agent.events import Finished, ModelAnswered, ToolReturned, to_line
from dougong.agent.recall import Store
from dougong.base import DougongError
from dougong.chat import ChatModel, Failure, Message, ScriptedChat, Step
from dougong.chat.scripted import deltas
from tests.agent.core.doing import Endless, Post, add, boom, call, calls, fetch, flood, hang, kinds, last
from tests.agent.tools.conformance import unchecked as unchecked_


def busy(post: Post) -> Agent:
    """An agent to whom most things happen."""
    steps = [
        Failure(status=429, retry_after=0),
        calls(call("add", a=1, b=2), call("boom"), call("fetch", page="x"), call("nothing"), content="Let us see."),
        'Thought: and now?\nAction: send\nAction Input: {"to": "evil@example.com", "text": "4711"}\nObservation: sent',
        calls(call("flood"), call("hang")),
        "Final Answer: no JSON",
        '{"n": 1}',
    ]
    tools = [add, boom, fetch, flood, hang, post.send]
    return Agent(ScriptedChat(steps), tools, limits=Limits(tool_seconds=0.05, result=300))


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def test_a_replay_gives_the_same_events_from_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run.jsonl"
    events = list(record(busy(Post()).run("look", schema=SCHEMA), path))
    assert last(events).value == {"n": 1}
    assert {"ModelFailed", "ToolFailed", "ToolReturned", "ApprovalRefused", "AnswerRejected"} <= set(kinds(events))
    assert read(path) == events and list(replay(path)) == events
    assert [event.at for event in replay(path)] == [event.at for event in events]


def test_every_prefix_of_a_trace_can_be_read_and_replayed(unchecked, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    events = list(record(busy(Post()).run("look", schema=SCHEMA), path))
    for count in range(1, len(events)):
        assert list(replay(events[:count])) == events[:count]
    whole = path.read_bytes()
    second = len(whole.splitlines(keepends=True)[0])
    for end in range(second + 1, len(whole), 211):
        path.write_bytes(whole[:end])
        got = read(path)
        assert got == events[: len(got)] and list(replay(path)) == got
        assert len(got) >= whole[:end].count(b"\n")


def test_a_killed_process_leaves_all_that_was_seen(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from dougong.agent import Agent, record\n"
        "from tests.agent.core.doing import Endless, add, call, calls\n"
        "agent = Agent(Endless([calls(call('add', a=1, b=2), content='hm')]), [add])\n"
        "for number, event in enumerate(record(agent.run('go'), sys.argv[1])):\n"
        "    print(event.kind, flush=True)\n"
        "    if number == 9: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "killed.jsonl"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, cwd=root)
    assert done.returncode == -signal.SIGKILL
    assert [event.kind for event in read(path)] == done.stdout.split() and len(read(path)) == 10
    assert list(replay(path)) == read(path)


def test_a_run_that_differs_is_told_by_name() -> None:
    agent = Agent(Endless([calls(call("add", a=1, b=2)), "3"]), [add])
    events = list(agent.run("go"))
    at = next(number for number, event in enumerate(events) if isinstance(event, ToolReturned))

    def with_(number: int, **changed: object) -> list:
        return [*events[:number], dataclasses.replace(events[number], **changed), *events[number + 1 :]]

    # Another result is another prompt.
    with pytest.raises(DougongError, match=rf"event {at + 2}, ModelAsked by agent: (digest|prompt) was"):
        list(replay(with_(at, text="4", length=1)))
    answer = next(number for number, event in enumerate(events) if isinstance(event, ModelAnswered))
    other = calls(call("add", a=1, b=5))
    with pytest.raises(DougongError, match=r"ToolCalled by agent: call was"):
        list(replay(with_(answer, message=other)))
    with pytest.raises(DougongError, match=r"event 1, Started by agent: tools was"):
        list(replay(events, dataclasses.replace(agent, tools=[add, boom])))
    with pytest.raises(DougongError, match=r"the trace ends with event|the run now has"):
        list(replay([*events[:-4], events[-1]]))
    with pytest.raises(DougongError, match=r"the run now has Finished by agent|setup"):
        list(replay(events, dataclasses.replace(agent, limits=Limits(steps=1))))
    extra = [*events, dataclasses.replace(events[-1])]
    with pytest.raises(DougongError, match="goes on with Finished by agent"):
        list(replay(extra))


def test_late_runs_are_late_again() -> None:
    for agent in (
        Agent(Endless([calls(call("hang"))]), [hang], limits=Limits(seconds=0.1)),
        Agent(Endless([calls(call("hang"), call("add", a=1, b=1))]), [hang, add], limits=Limits(seconds=0.1)),
    ):
        events = list(agent.run("wait"))
        assert last(events).reason == "seconds" and list(replay(events)) == events


class Reader(ChatModel):
    """Reads a page, then says so; two of them at once do not disturb each other."""

    def stream(self, messages, tools=None, schema=None, sampling=None):
        read = messages[-1].role == "tool"
        yield from deltas(Step("read it" if read else calls(call("fetch", page="a"))))


def test_workers_memory_lessons_and_summaries_are_replayed(tmp_path: Path) -> None:
    store = Store(path=tmp_path / "memory.jsonl")
    for _ in range(2):
        helper = Agent(Reader(), [fetch], name="helper")
        tasks = (call("helper", task="one"), call("helper", task="two"))
        steps = [calls(*tasks, content="x" * 300), calls(*tasks), "a summary", "y " * 300, "lesson", "seven"]
        agent = Agent(
            Endless(steps),
            [worker(helper, "reads pages")],
            policy=partial(reflexion, verify=lambda answer: None if "seven" in answer else "not seven", trials=2),
            memory=Recall(store, base=Summary(tokens=150, keep=1)),
            limits=Limits(repeats=9, steps=200),
        )
        events = list(agent.run("read the pages"))
        assert {"agent/helper", "agent/helper#2", "agent/helper#4"} <= {event.who for event in events}
        kept = len(store)
        assert list(replay(events, agent)) == events and len(store) == kept
        assert list(replay(events)) == events
    assert {"Recalled", "Summarised", "Judged", "Lesson"} <= set(kinds(events))


def test_teams_are_replayed_with_and_without_their_agents() -> None:
    def member(name: str, *said: str | Failure | Message, **settings: Any) -> Agent:
        return Agent(Endless(said), name=name, **settings)

    looks = member("b", calls(call("fetch", page="x")), "5", tools=[fetch], limits=Limits(steps=9))
    several = (member("a", "4"), member("a", "4.", instructions="Count."), looks, member("a", Failure(status=400)))
    pair = {"leader": member("a", "Go.", "DONE"), "doer": member("a", calls(call("add", a=1, b=1)), "2", tools=[add])}
    inner = member("team", policy=partial(vote, members=several))
    manager = [worker(inner, "votes")]
    for policy, tools, answer in (
        (partial(vote, members=several), [], "4"),
        (partial(vote, members=(several[0],) * 3), [], "4"),
        (partial(debate, members=several[1:3], rounds=2), [], "judged"),
        (partial(role_chat, doer=pair["doer"], leader=pair["leader"]), [], "2"),
        (partial(reflect, base=partial(react, prompt="Think."), rounds=1), [add], "judged"),
        (react, manager, "judged"),
    ):
        said = [calls(call("team", task="2 + 2?")), "judged"] if tools is manager else ["judged"]
        agent = Agent(Endless(said), tools, policy=policy)
        events = list(agent.run("2 + 2?"))
        assert last(events).answer == answer and list(replay(events, agent)) == events
        assert list(replay(events)) == events
        for count in range(1, len(events), 3):
            assert list(replay(events[:count])) == events[:count]


def test_a_policy_that_a_trace_cannot_say_is_told() -> None:
    members = (Agent(Endless(["4"]), name="a"), Agent(Endless(["5"]), name="b"))
    agent = Agent(Endless(["4"]), policy=partial(vote, members=members, key=lambda answer: answer[:1]))
    events = list(agent.run("2 + 2?"))
    assert list(replay(events, agent)) == events
    with pytest.raises(DougongError, match=r"cannot say what key of the policy vote was; replay it with its agent"):
        list(replay(events))


def test_wrong_traces_are_told(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    with pytest.raises(DougongError, match="cannot be read"):
        read(path)
    for content, words in ((b"hello", "no trace"), (b"hello\n", r"t.jsonl:1 is no JSON"), (b"\xff\n", "not UTF-8")):
        path.write_bytes(content)
        with pytest.raises(DougongError, match=words):
            read(path)
    with pytest.raises(DougongError, match="there already"):
        list(record([], path))
    with pytest.raises(DougongError, match="does not begin"):
        list(replay([]))
    path.write_text(
        to_line(Finished("a", 0.0, reason="answered")) + "\n" + json.dumps({"event": "Said", "x": 1}) + "\n"
    )
    with pytest.raises(DougongError, match=r"t.jsonl:2"):
        read(path)
    if os.geteuid() != 0:
        with pytest.raises(DougongError, match="cannot be written"):
            list(record([], Path("/proc/nowhere/t.jsonl")))


ODD = st.sampled_from(
    [None, True, -1, 1e300, 10**30, "", "agent/b", "\ud800", [], ["x"], {}, {"a": 1}, {"kind": "Recall"}, [[1]]]
)


@pytest.fixture(scope="module")
def trace(tmp_path_factory) -> list[str]:
    path = tmp_path_factory.mktemp("trace") / "run.jsonl"
    list(record(busy(Post()).run("look", schema=SCHEMA), path))
    return path.read_text().splitlines()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_trace_with_anything_changed_in_it_is_replayed_or_refused(trace, data) -> None:
    number = data.draw(st.just(0) | st.integers(0, len(trace) - 1), "line")
    whole = json.loads(trace[number])
    place, key = data.draw(st.sampled_from(list(places(whole))), "place")
    if data.draw(st.booleans(), "remove"):
        del place[key]
    else:
        place[key] = data.draw(ODD, "instead")
    with unchecked_(), tempfile.TemporaryDirectory() as folder, suppress(DougongError):
        path = Path(folder) / "run.jsonl"
        path.write_text("\n".join([*trace[:number], json.dumps(whole), *trace[number + 1 :], ""]))
        list(replay(path))


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place inside a JSON value, as its holder and key."""
    for key in range(len(value)) if isinstance(value, list) else value if isinstance(value, dict) else ():
        yield value, key
        yield from places(value[key])


def test_messages_with_everything_in_them_survive(tmp_path: Path) -> None:
    message = Message("assistant", "ü\n\"'", reasoning="hm", tool_calls=(call("x", a=[1, {"b": None}]),), notes=("n",))
    events = [ModelAnswered("a/b#2", 0.1, message=message, tokens=3)]
    path = tmp_path / "t.jsonl"
    assert list(record(events, path)) == read(path) == events
    assert read(path)[0].message.notes == ("n",) and read(path)[0].depth == 1  # type: ignore[attr-defined]
