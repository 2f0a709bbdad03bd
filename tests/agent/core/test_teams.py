"""Teams: workers as tools, votes, debates and roles; names, limits and memory of runs inside runs."""

from __future__ import annotations

import json
import threading
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dougong.agent import Agent, Limits, ToolError, debate, replay, role_chat, vote, worker
from dougong.agent.events import REASONS
from dougong.agent.teams.names import alike
from dougong.chat import ChatModel, Delta, Failure, ScriptedChat, Step, Usage
from dougong.chat.message import Message
from tests.agent.core.doing import Endless, add, call, calls, fetch, hang, kinds, last, run


def member(name: str, *steps, **settings) -> Agent:
    return Agent(ScriptedChat(list(steps)), name=name, **settings)


def test_a_manager_and_its_workers() -> None:
    helper = member("adder", Step(calls(call("add", a=2, b=3)), expects="2 and 3"), "It is 5.", tools=[add])
    steps = [
        Step(
            calls(call("adder", task="add 2 and 3")),
            expects=lambda asked: asked.tools[0].description == "adds numbers" and asked.last == "2 + 3?",
        ),
        Step("Five.", expects="It is 5."),
    ]
    with ScriptedChat(steps) as model:
        events = run(model, "2 + 3?", tools=[worker(helper, "adds numbers")])
    assert last(events).answer == "Five." and list(replay(events)) == events
    inner = [event for event in events if event.who == "agent/adder"]
    assert {event.depth for event in inner} == {1} and kinds(inner)[0] == "Started" and kinds(inner)[-1] == "Finished"
    order = [event.kind for event in events]
    assert order.index("ToolReturned") > order.index("ToolCalled")
    # What the worker used counts.
    assert last(events).steps == 4 and last(events).tokens > last(inner).tokens


def test_workers_side_by_side_keep_their_names_and_order() -> None:
    both = threading.Barrier(2, timeout=10)

    class Meeting(ChatModel):
        def stream(self, messages, tools=None, schema=None, sampling=None):
            both.wait()
            yield Delta(content=f"did {messages[-1].content}")

    helper = Agent(Meeting(), name="w")
    steps = [calls(call("w", task="one"), call("w", task="two")), "done"]
    with ScriptedChat(steps) as model:
        events = run(model, tools=[worker(helper, "works")])
        assert [each.content for each in model.asked[1].messages[-2:]] == ["did one", "did two"]
    names = list(dict.fromkeys(event.who for event in events))
    assert names == ["agent", "agent/w", "agent/w#2"] and list(replay(events)) == events


def test_a_worker_that_fails_is_told_and_hurts_nobody() -> None:
    bad = member("bad", Failure(status=400, message="broken"))
    slow = Agent(Endless([calls(call("hang"))]), [hang], name="slow", limits=Limits(seconds=0.1))
    steps = [calls(call("bad", task="x"), call("slow", task="y"), call("bad", todo="z"), call("add", a=1, b=1)), "2"]
    with ScriptedChat(steps) as model:
        events = run(model, tools=[worker(bad, "fails"), worker(slow, "waits"), add])
        told = [each.content for each in model.asked[1].messages[-4:]]
    assert "agent/bad ended without an answer (model)" in told[0] and "(seconds)" in told[1]
    assert 'takes {"task": "..."}' in told[2] and told[3] == "2"
    assert last(events).reason == "answered" and list(replay(events)) == events
    with pytest.raises(ToolError, match="ended without an answer"):
        worker(member("bad", Failure(status=400)), "fails").call({"task": "x"})
    assert worker(member("good", "fine"), "works").call({"task": "x"}) == "fine"


def test_workers_share_what_is_left() -> None:
    greedy = Agent(Endless([Message("assistant", "", tool_calls=(call("add", a=1, b=1),))]), [add], name="greedy")
    model = Endless([calls(call("greedy", task="a"), call("greedy", task="b"))])
    events = run(model, tools=[worker(greedy, "never ends")], limits=Limits(steps=9, repeats=99))
    assert last(events).reason == "steps" and last(events).steps <= 9
    spent = Endless([Message("assistant", "", tool_calls=(call("greedy", task="a"),), usage=Usage(60, 40))])
    events = run(spent, tools=[worker(greedy, "never ends")], limits=Limits(tokens=400, repeats=99))
    assert last(events).reason == "tokens" and last(events).tokens <= 400


def test_runs_inside_runs_are_only_so_deep() -> None:
    agent = Agent(Endless([calls(call("deeper", task="go"))]), name="bottom")
    for _ in range(5):
        agent = Agent(Endless([calls(call(agent.name, task="go")), "back"]), [worker(agent, "goes on")], name="deeper")
    events = list(Agent(agent.model, agent.tools, limits=Limits(depth=2)).run("go"))
    assert max(event.depth for event in events) == 2 and last(events).answer == "back"
    assert any("may start no further run" in event.error for event in events if event.kind == "ToolFailed")


WORK = st.one_of(
    st.sampled_from(["done", "", Failure(status=400), Failure(status=429, retry_after=0.0), "Action: add[1]"]),
    st.lists(
        st.sampled_from(
            [call("add", a=1, b=2), call("fetch", page="p"), call("w", task="x"), call("v", task="y"), call("none")]
        ),
        min_size=1,
        max_size=3,
    ).map(lambda made: calls(*made)),
)


@settings(max_examples=25)
@given(*[st.lists(WORK, min_size=1, max_size=4)] * 3)
def test_teams_end_and_can_be_replayed_whoever_was_faster(unchecked, first, second, third) -> None:
    limits = Limits(steps=12, tokens=6000, seconds=20, retries=1, corrections=1)
    inner = Agent(Endless(first), [add, fetch], name="w", limits=limits)
    outer = Agent(Endless(second), [add, worker(inner, "works")], name="v", limits=limits)
    agent = Agent(Endless(third), [worker(inner, "works"), worker(outer, "leads"), fetch], limits=limits)
    events = list(agent.run("go"))
    assert last(events).reason in REASONS and last(events).reason not in ("seconds", "error")
    assert last(events).steps <= 12 and max(event.depth for event in events) <= 2
    assert list(replay(events)) == events


def test_the_most_votes_win() -> None:
    members = (member("a", "42."), member("b", "41"), member("c", " 42 "), member("d", Failure(status=400)))
    events = run(ScriptedChat([]), policy=partial(vote, members=members))
    (voted,) = [event for event in events if event.kind == "Voted"]
    assert last(events).answer == "42." and list(voted.ballots) == ["agent/a", "agent/b", "agent/c"]


@pytest.mark.parametrize(
    "same",
    [
        ["42", "42.", " **42** ", "42.0", "４２", "The answer is 42.", "Final answer: 42", "答案是 42。", "$42$"],
        ["1,000", "1000", "1000.00"],
        ["-5", "\u22125.", "`-5`"],
        ["Paris", "paris!", '"Paris."', "“Paris”", "The answer is: *Paris*"],
        ['{"a": 1, "b": [2]}', '{"b":[2],\n "a":1}'],
    ],
)
def test_answers_that_differ_in_their_form_are_alike(same: list[str]) -> None:
    assert len({alike(each) for each in same}) == 1


def test_answers_that_differ_are_not_alike() -> None:
    each = [
        "5",
        "-5",
        ".5",
        "0.5",
        "5%",
        "$5",
        "1,5",
        "007",
        "7",
        "C",
        "C++",
        "x_",
        "x",
        "yes",
        "yes?",
        "1" * 40,
        "1" * 39 + "2",
    ]
    assert len({alike(one) for one in [*each, "", "...", "'a' or 'b'", "a' or 'b"]}) == len(each) + 4


@given(st.text(alphabet="a1 .!*_`\"'“”,-{}[]是", max_size=12))
def test_alike_is_a_projection(text: str) -> None:
    assert alike(alike(text)) == alike(text) == alike(f" {text}\n")


def test_votes_are_counted_by_a_key_of_ones_own() -> None:
    members = (member("a", "I say it is Rome"), member("b", "Paris, surely"), member("c", "It must be Paris"))
    policy = partial(vote, members=members, key=lambda answer: str("Paris" in answer))
    assert last(run(ScriptedChat([]), policy=policy)).answer == "Paris, surely"


def test_a_tie_that_nobody_breaks_shows_what_was_said() -> None:
    members = (member("a", "x"), member("b", "y"))
    end = last(run(ScriptedChat([Failure(status=400)]), policy=partial(vote, members=members)))
    assert end.reason == "model" and end.answer == "x"


def test_members_of_one_name_are_told_apart() -> None:
    one = member(
        "agent", "5", Step("5, as I said", expects="Your own answer was:\n5\n\nOthers answered:\n\nagent#2: 6")
    )
    two = member("agent", "6", Step("6 again", expects="agent: 5"))
    with ScriptedChat([Step("5", expects="agent: 5, as I said\n\nagent#2: 6 again")]) as model:
        assert last(run(model, "2 + 3?", policy=partial(debate, members=(one, two), rounds=2))).answer == "5"
    pair = (member("agent", "Go.", Step("DONE", expects="agent: Go.\n\nagent#2: gone")), member("agent", "gone"))
    assert last(run(ScriptedChat([]), policy=partial(role_chat, leader=pair[0], doer=pair[1]))).answer == "gone"


def test_a_tie_is_broken_by_the_model_and_nobody_is_an_error() -> None:
    for said, answer in ((json.dumps({"number": 2}), "y"), ("dunno", "x"), (json.dumps({"number": 7}), "x")):
        members = (member("a", "x"), member("b", "y"))
        with ScriptedChat([Step(said, expects="[1] x\n\n[2] y")]) as model:
            assert last(run(model, policy=partial(vote, members=members))).answer == answer
    end = last(run(ScriptedChat([]), policy=partial(vote, members=(member("a", Failure(status=400)),))))
    assert end.reason == "error" and "none of the 1 members" in end.detail


def test_a_debate_with_a_judge() -> None:
    a = member("a", Step("5", expects="2 + 3?"), Step("6, I am sure", expects="Others answered:\n\nb: 6"))
    b = member("b", "6", Step("5 after all", expects="Your own answer was:\n6"))
    with ScriptedChat([Step("5", expects="a: 6, I am sure\n\nb: 5 after all")]) as model:
        events = run(model, "2 + 3?", policy=partial(debate, members=(a, b), rounds=2))
    assert last(events).answer == "5"
    assert list(replay(events, Agent(model, policy=partial(debate, members=(a, b), rounds=2)))) == events


def test_a_debate_that_agrees_needs_no_judge_and_silence_is_no_vote() -> None:
    events = run(ScriptedChat([]), policy=partial(debate, members=(member("a", "5"), member("b", "5."))))
    assert last(events).answer == "5"
    broken = Failure(status=400)
    members = (member("a", "5", "5"), member("b", broken, broken))
    with ScriptedChat([Step("five", expects="a: 5")]) as model:
        assert last(run(model, policy=partial(debate, members=members, rounds=2))).answer == "five"
    end = last(run(ScriptedChat([]), policy=partial(debate, members=(member("a", broken),))))
    assert end.reason == "error" and "no member" in end.detail


def test_a_judge_that_says_nothing_or_calls_is_asked_again() -> None:
    members = (member("a", "5"), member("b", "6"))
    with ScriptedChat([calls(call("add", a=2, b=3)), " ", Step("5", expects="was empty")]) as model:
        events = run(model, tools=[add], policy=partial(debate, members=members, rounds=1))
        assert not any(message.tool_calls for asked in model.asked for message in asked.messages)
    assert last(events).answer == "5" and list(replay(events)) == events
    members = (member("a", "5"), member("b", "6"))
    end = last(run(ScriptedChat([" "] * 3), policy=partial(debate, members=members, rounds=1)))
    assert (end.reason, end.answer) == ("model", "5")


def test_two_roles_talk_until_it_is_done() -> None:
    leader = member(
        "boss", Step("Write it.", expects="worker does the work"), Step("DONE: the poem", expects="worker: roses")
    )
    doer = member("worker", Step("roses", expects="boss: Write it."))
    assert last(run(ScriptedChat([]), policy=partial(role_chat, leader=leader, doer=doer))).answer == "the poem"
    again = Agent(Endless(["Once more."]), name="boss")
    tireless = Agent(Endless(["one", "two"]), name="worker")
    assert last(run(ScriptedChat([]), policy=partial(role_chat, leader=again, doer=tireless, turns=2))).answer == "two"
    short = (member("boss", "Go.", "DONE"), member("worker", "gone"))
    assert last(run(ScriptedChat([]), policy=partial(role_chat, leader=short[0], doer=short[1]))).answer == "gone"
    for said, answer in (
        ("**DONE** -5", "-5"),
        ("Well done.\nDONE: six", "six"),
        ("DONE\n\n- a\n- b", "- a\n- b"),
        ("All is well.\nDONE.", "gone"),
    ):
        talks = partial(role_chat, leader=member("boss", "DONELY", said), doer=member("worker", "gone"))
        assert last(run(ScriptedChat([]), policy=talks)).answer == answer
    cut = partial(role_chat, leader=member("boss", "Go.", Failure(status=400)), doer=member("worker", "half"))
    assert last(run(ScriptedChat([]), policy=cut)).answer == "half"
    lost = partial(role_chat, leader=member("boss", Failure(status=400)), doer=doer)
    assert last(run(ScriptedChat([]), policy=lost)).reason == "error"
