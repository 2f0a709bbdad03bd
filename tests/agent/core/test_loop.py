"""The loop: events in order, tools side by side, failures of models and tools, limits, answers by schema; it ends."""

from __future__ import annotations

import json
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dougong.agent import Agent, Limits, native, plan, react, react_text, reflect, reflexion, replay, tool
from dougong.agent.events import EVENTS, REASONS, Finished, from_line, to_line
from dougong.agent.limits import cut, estimate
from dougong.base import DougongError
from dougong.chat import ChatModel, Delta, Failure, Message, RemoteChat, ScriptedChat, Step, ToolCall, Usage
from dougong.chat.remote import Retries
from tests.agent.core.doing import Endless, Post, add, boom, call, calls, fetch, flood, hang, kinds, last, run

NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


def of(events, kind: str):
    return [event for event in events if event.kind == kind]


def test_a_call_and_an_answer() -> None:
    steps = [
        Step(calls(call("add", a=2, b=3), content="Let me add."), expects="2 and 3"),
        Step(Message("assistant", "It is 5.", usage=Usage(30, 4)), expects="5"),
    ]
    with ScriptedChat(steps) as model:
        events = run(model, "2 and 3", tools=[add])
        second = model.asked[1].messages
    assert kinds(events) == [
        *("Started", "ModelAsked", "ModelAnswered", "ToolCalled", "ToolReturned"),
        *("ModelAsked", "ModelAnswered", "Finished"),
    ]
    assert "".join(each.content for each in of(events, "Said")) == "Let me add.It is 5."
    assert [message.role for message in second] == ["user", "assistant", "tool"]
    assert second[2].tool_call_id == second[1].tool_calls[0].id and second[2].name == "add"
    end = last(events)
    assert (end.reason, end.answer, end.steps) == ("answered", "It is 5.", 2)
    first = of(events, "ModelAnswered")[0]
    assert first.estimated and end.tokens == first.tokens + 34
    assert {event.who for event in events} == {"agent"} and {event.depth for event in events} == {0}


def test_events_are_lines_of_json() -> None:
    events = run(Endless([calls(call("add", a=1, b=2)), "done \ud800 ok"]), tools=[add])
    for event in events:
        line = to_line(event)
        line.encode("utf-8")
        assert "\n" not in line and from_line(line) == event
    assert {type(event).__name__ for event in events} <= set(EVENTS)
    for wrong in ("{", "[]", '{"event": "Fnished"}', '{"event": "Finished", "who": "a"}', '{"who": "a"}'):
        with pytest.raises(DougongError, match=r"trace:3"):
            from_line(wrong, "trace:3")


def test_reading_tools_run_side_by_side_and_answer_in_order() -> None:
    both = threading.Barrier(2, timeout=10)
    names: list[str] = []

    @tool
    def meet(name: str) -> str:
        """Waits for the other one."""
        both.wait()
        if name == "first":
            time.sleep(0.05)
        names.append(name)
        return name

    steps = [calls(call("meet", name="first"), call("boom"), call("meet", name="second")), "done"]
    with ScriptedChat(steps) as model:
        events = run(model, tools=[meet, boom])
        told = model.asked[1].messages
    assert names == ["second", "first"]
    results = [event for event in events if event.kind in ("ToolReturned", "ToolFailed")]
    assert [event.number for event in results] == [1, 2, 3]
    assert [message.content for message in told[-3:]] == ["first", "error: boom failed: ValueError: no luck", "second"]


def test_writing_tools_run_one_by_one_in_their_place() -> None:
    log: list[str] = []
    working = threading.Lock()

    def logged(name: str, effect: str):
        @tool(name=name, effect=effect)
        def act(n: int) -> str:
            """Notes that it ran, and that no other did meanwhile."""
            alone = working.acquire(blocking=False)
            time.sleep(0.01)
            log.append(f"{name}{n}{'' if alone or effect == 'read' else '!'}")
            if alone:
                working.release()
            return "ok"

        return act

    order = [("r", 1), ("w", 1), ("w", 2), ("r", 2)]
    with ScriptedChat([calls(*(call(name, n=n) for name, n in order)), "done"]) as model:
        run(model, tools=[logged("r", "read"), logged("w", "write")])
    assert log == ["r1", "w1", "w2", "r2"]


def test_unknown_tools_and_wrong_arguments_are_told() -> None:
    steps = [calls(call("ad", a=1, b=2), call("add", a="1", b=2)), "sorry"]
    with ScriptedChat(steps) as model:
        events = run(model, tools=[add])
        told = [message.content for message in model.asked[1].messages[-2:]]
    assert "no tool 'ad'; did you mean 'add'" in told[0] and "a is '1'; expected an integer" in told[1]
    assert last(events).reason == "answered"


def test_a_flood_is_cut_with_a_note() -> None:
    with ScriptedChat([calls(call("flood")), "done"]) as model:
        events = run(model, tools=[flood], limits=Limits(result=1000))
        told = model.asked[1].messages[-1].content
    (returned,) = of(events, "ToolReturned")
    assert returned.length == 50_010 and returned.text == told and len(told) <= 1000
    assert told.startswith("begin ") and told.endswith(" end") and "left out" in told


@given(st.text(max_size=400), st.integers(200, 300))
def test_cutting_keeps_within_and_is_final(text: str, most: int) -> None:
    once = cut(text, most)
    assert len(once) <= most and cut(once, most) == once and (once == text or len(text) > most)


# -- what fails --------------------------------------------------------------------------------------------------------


def test_a_hanging_tool_is_left_behind() -> None:
    steps = [calls(call("hang"), call("add", a=1, b=1)), "2, without the other"]
    with ScriptedChat(steps) as model:
        events = run(model, tools=[hang, add], limits=Limits(tool_seconds=2))
    (failed,) = of(events, "ToolFailed")
    assert "no result within 2 seconds" in failed.error and not failed.late
    assert last(events).reason == "answered" and of(events, "ToolReturned")[0].text == "2"


def test_seconds_end_a_hanging_tool_and_a_hanging_model() -> None:
    events = run(Endless([calls(call("hang"))]), tools=[hang], limits=Limits(seconds=0.1))
    assert last(events).reason == "seconds" and of(events, "ToolFailed")[0].late

    class Silent(ChatModel):
        def stream(self, messages, tools=None, schema=None, sampling=None):
            yield Delta(content="I am")
            threading.Event().wait(30)

    events = run(Silent(), limits=Limits(seconds=0.1))
    assert last(events).reason == "seconds" and last(events).answer == ""
    assert of(events, "Said")[0].content == "I am" and of(events, "ModelFailed")[0].late


def test_a_model_that_never_stops_is_broken_off() -> None:
    class Babbler(ChatModel):
        def stream(self, messages, tools=None, schema=None, sampling=None):
            while True:
                yield Delta(content="la la la ")

    events = run(Babbler(), limits=Limits(tokens=500))
    assert last(events).reason == "tokens" and 500 <= last(events).tokens < 600


def test_busy_models_are_asked_again_and_broken_ones_given_up() -> None:
    busy = Failure(status=429, retry_after=0)
    events = run(ScriptedChat([busy, busy, "at last"]))
    assert last(events).answer == "at last"
    assert [each.again for each in of(events, "ModelFailed")] == [True, True]
    events = run(ScriptedChat([busy] * 3))
    assert last(events).reason == "model" and "429" in last(events).detail
    events = run(ScriptedChat([Failure(status=400, message="no such field")]))
    assert last(events).reason == "model" and "no such field" in last(events).detail

    class Faulty(ChatModel):
        def stream(self, messages, tools=None, schema=None, sampling=None):
            raise KeyError("oops")

    assert "KeyError" in last(run(Faulty())).detail


def test_over_http_with_every_kind_of_trouble() -> None:
    pytest.importorskip("httpx")

    class Broken(ToolCall):
        def to_openai(self):
            return {"id": self.id, "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": '}}

    steps = [
        Failure(status=429, retry_after=0),
        Failure("cut"),
        Failure(status=503, retry_after=0),
        calls(call("add", a=1, b=2)),
        Failure("malformed"),
        Step(calls(Broken("add")), expects="3"),
        Step("It is 3.", expects="could not be read"),
    ]
    with ScriptedChat(steps).serve() as url:
        chat = RemoteChat(url, model="script", retries=Retries(times=1), sleep=lambda _: None)
        events = run(chat, tools=[add])
    assert last(events).answer == "It is 3." and list(replay(events)) == events
    assert len(of(events, "ModelFailed")) == 2  # what the client did not mend by itself
    with ScriptedChat([Failure("hang")]).serve() as url:
        chat = RemoteChat(url, retries=Retries(times=0), timeout=0.1)
        assert last(run(chat, limits=Limits(retries=0))).reason == "model"
    with ScriptedChat([Failure("hang")]).serve() as url:
        assert last(run(RemoteChat(url, timeout=30), limits=Limits(seconds=0.2))).reason == "seconds"


def test_malformed_calls_are_asked_for_again() -> None:
    class Once(ChatModel):
        asked = 0

        def stream(self, messages, tools=None, schema=None, sampling=None):
            Once.asked += 1
            if Once.asked == 1:
                yield Delta(content='{"name": "add", "arg', note="a call breaks off")
            elif Once.asked == 2:
                yield Delta(content="  ")
            else:
                assert "empty" in messages[-1].content and "breaks off" in messages[-3].content
                yield Delta(content="fine")

    for policy in (native, react):
        Once.asked = 0
        assert last(run(Once(), tools=[add], policy=policy)).answer == "fine"
    assert last(run(Endless([" "]))).reason == "model"


# -- limits ------------------------------------------------------------------------------------------------------------


def test_limits_end_a_run_with_their_names() -> None:
    again = calls(call("add", a=1, b=1), content="once more")
    counting = (calls(call("add", a=n, b=1)) for n in range(1000))
    for model, limits, reason in (
        (Endless([again]), Limits(), "repeats"),
        (Endless([again]), Limits(repeats=100, steps=4), "steps"),
        (ScriptedChat(list(counting)), Limits(tokens=900), "tokens"),
        (Endless([Message("assistant", "", tool_calls=again.tool_calls, usage=Usage(90, 10))]), Limits(tokens=250), ""),
    ):
        end = last(run(model, tools=[add], limits=limits))
        assert end.reason == (reason or "tokens") and end.detail
        assert end.steps <= limits.steps
    end = last(run(Endless([again]), tools=[add], limits=Limits(repeats=2)))
    assert (end.reason, end.answer, end.steps) == ("repeats", "once more", 3)


def test_the_same_call_may_give_something_new() -> None:
    ticks = iter(range(100))

    @tool
    def clock() -> int:
        """What time is it?"""
        return next(ticks)

    events = run(Endless([calls(call("clock"))] * 5 + ["five"]), tools=[clock], limits=Limits(repeats=2))
    assert last(events).answer == "five"


def test_wrong_limits_and_agents_are_refused_by_name(unchecked) -> None:
    for wrong in (
        {"steps": 0},
        {"seconds": 0},
        {"result": 10},
        {"retries": -1},
        {"tokens": 0},
        {"seconds": float("nan")},
    ):
        with pytest.raises(DougongError, match=next(iter(wrong))):
            Limits(**wrong)
    model = ScriptedChat([])
    with pytest.raises(DougongError, match="two tools are named 'add'"):
        Agent(model, [add, add])
    with pytest.raises(DougongError, match="@tool"):
        Agent(model, [lambda x: x])  # type: ignore[list-item]
    for name in ("a/b", "a#2", ""):
        with pytest.raises(DougongError, match="an agent's name"):
            Agent(model, name=name)
    with pytest.raises(DougongError, match="task is empty"):
        Agent(model).run(" ")


# -- answers by schema -------------------------------------------------------------------------------------------------


def test_an_answer_that_was_cut_says_so() -> None:
    said = Message("assistant", "half of", finish_reason="length")
    events = run(ScriptedChat([said]))
    assert last(events).reason == "answered" and "was cut" in last(events).detail and list(replay(events)) == events
    assert last(run(ScriptedChat(["whole"]))).detail == ""


def test_answers_obey_the_schema() -> None:
    fenced = 'Here it is:\n```json\n{"n": 3}\n```'
    for said in ('{"n": 3}', fenced, 'The answer is {"n": 3}, I think.'):
        end = last(run(ScriptedChat([said]), schema=NUMBER))
        assert (end.reason, end.value, json.loads(end.answer)) == ("answered", {"n": 3}, {"n": 3})
    for said in ('As [1] has it: {"n": 3}', '{"m": 2}, or rather {"n": 3}'):
        assert last(run(ScriptedChat([said]), schema=NUMBER)).value == {"n": 3}
    code = {"type": "string", "pattern": "^[A-Z]{2}$"}
    with ScriptedChat(['"ab"', Step('"AB"', expects="expected a text with the pattern")]) as model:
        assert last(run(model, schema=code)).value == "AB"
    first = Step("three", expects=lambda asked: '"required": ["n"]' in asked.messages[0].content)
    with ScriptedChat([first, Step('{"n": "3"}', expects="no JSON"), Step('{"n": 3}', expects="n is '3'")]) as model:
        events = run(model, schema=NUMBER)
        assert all(asked.schema is None for asked in model.asked)
    assert last(events).value == {"n": 3} and len(of(events, "AnswerRejected")) == 2


def test_at_last_the_model_is_held_to_the_schema() -> None:
    with ScriptedChat(["a", "b", "c", '{"n": 1}']) as model:
        events = run(model, schema=NUMBER)
        assert [asked.schema for asked in model.asked] == [None, None, None, NUMBER]
    assert last(events).value == {"n": 1} and of(events, "AnswerRejected")[-1].forced
    end = last(run(ScriptedChat(["a", "b", "c", "d"]), schema=NUMBER))
    assert end.reason == "schema" and end.value is None and "no JSON" in end.detail
    assert last(run(ScriptedChat(["[1, 2]"]), schema={"type": "array", "items": {"type": "integer"}})).value == [1, 2]


def test_a_model_is_held_to_as_much_of_the_schema_as_it_takes() -> None:
    schema = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
    refused = Failure(status=400, message="uniqueItems is not supported")
    with ScriptedChat(["a", "b", "c", refused, "[1, 2]"]) as model:
        events = run(model, schema=schema)
        assert model.asked[4].schema == {"type": "array", "items": {"type": "integer"}}
    assert last(events).value == [1, 2] and list(replay(events)) == events
    with ScriptedChat(["a", "b", "c", refused, "[1, 1]"]) as model:
        assert last(run(model, schema=schema)).reason == "schema"


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "strin"}, "the schema.type is 'strin'; did you mean 'string'"),
        ({"type": "object", "properties": ["a"]}, r"the schema.properties is \['a'\]; expected an object of schemas"),
        ({"enum": []}, r"the schema.enum is \[\]; expected a list with at least one value"),
        ({"required": "a"}, "the schema.required is 'a'; expected a list of names"),
        ({"properties": {"a": {"items": 3}}}, "the schema.properties.a.items is 3; expected an object, true or false"),
        ({"anyOf": [{"type": "text"}]}, r"the schema.anyOf\[0\].type is 'text'"),
        ({"$ref": "#/nowhere"}, "refers to '#/nowhere', which it does not hold"),
    ],
)
def test_what_is_no_schema_is_told_before_the_run(schema, words: str) -> None:
    with pytest.raises(DougongError, match=words):
        run(ScriptedChat([]), schema=schema)


# -- it ends -----------------------------------------------------------------------------------------------------------

TEXTS = st.sampled_from(
    [
        *(
            "",
            "ok",
            "Final Answer: 7",
            "Action: add",
            "Thought: x\nAction: add\nAction Input: {}",
            "Action: nothing[1]",
        ),
        *('Action: add\nAction Input: {"a": 1, "b": 2}', '{"good": false, "problems": "all"}', '{"steps": ["a", "b"]}'),
        *('{"steps": []}', '{"n": 1}', "Observation: 3\nObservation: 4", "Action: fetch[home]", "x" * 3000),
    ]
)
CALLS = st.sampled_from(
    [
        *(call("add", a=1, b=2), call("add", a="x"), call("boom"), call("flood", size=3000), call("unknown", x=1)),
        *(call("fetch", page="p"), call("send", to="evil@example.com", text="4711"), call("send", to="me", text="hi")),
    ]
)
STEPS = st.one_of(
    TEXTS,
    st.builds(
        lambda made, text: Message("assistant", text, tool_calls=tuple(made)), st.lists(CALLS, max_size=4), TEXTS
    ),
    st.builds(
        Failure,
        st.sampled_from(["status", "cut", "malformed"]),
        st.sampled_from([400, 429, 500]),
        retry_after=st.just(0.0),
    ),
)
POLICIES = {
    "native": native,
    "react": react,
    "react_text": react_text,
    "reflect": reflect,
    "plan": plan,
    "reflexion": lambda run: reflexion(run, verify=lambda answer: None if "7" in answer else "no 7 in it"),
}


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=40)
@given(st.lists(STEPS, min_size=1, max_size=6), st.sampled_from([None, NUMBER]))
def test_whatever_a_model_does_a_run_ends_and_can_be_replayed(
    unchecked, name: str, steps: list, schema: dict | None
) -> None:
    post = Post()
    agent = Agent(
        Endless(steps),
        [add, boom, flood, fetch, post.send],
        policy=POLICIES[name],
        limits=Limits(steps=9, tokens=8000, result=500, seconds=20, retries=1, corrections=1),
        approve=lambda asked: "hi" in asked.call.arguments.values(),
    )
    events = list(agent.run("send hi to me", schema=schema))
    end = last(events)
    assert end.reason in REASONS and end.reason not in ("seconds", "error") and (end.reason == "answered" or end.detail)
    assert sum(isinstance(event, Finished) for event in events) == 1
    assert end.steps <= 9 and (schema is None or end.reason != "answered" or end.value == {"n": 1})
    assert (
        all(to != "evil@example.com" for to, _ in post.sent)
        or not any(event.kind == "ToolReturned" and event.name == "fetch" for event in events)
        or _before_fetch(events)
    )
    assert list(replay([from_line(to_line(event)) for event in events], agent)) == events


def _before_fetch(events) -> bool:
    """Whether all that was sent to strangers was sent before anything of theirs was read: then it was the model's."""
    read = next(at for at, event in enumerate(events) if event.kind == "ToolReturned" and event.name == "fetch")
    sent = [
        at
        for at, event in enumerate(events)
        if event.kind == "ToolReturned" and event.name == "send" and "evil" in event.text
    ]
    return all(at < read for at in sent)


def test_closing_the_stream_ends_the_run() -> None:
    events = Agent(Endless([calls(call("add", a=1, b=1))]), [add]).run("go")
    assert next(events).kind == "Started"
    events.close()  # type: ignore[attr-defined]
    assert list(events) == []


def test_estimates() -> None:
    assert (estimate(""), estimate("a"), estimate("abcdefgh"), estimate("斗拱")) == (0, 1, 2, 2)
