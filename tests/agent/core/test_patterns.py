"""Patterns: each against scripted models, from both ends: what the model is asked, and what becomes of what it says."""

from __future__ import annotations

import json
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dougong.agent import Limits, native, plan, react, react_text, reflect, reflexion, replay
from dougong.agent.patterns.react import THINK
from dougong.agent.patterns.text import read_step
from dougong.chat import Message, ScriptedChat, Step
from tests.agent.core.doing import add, boom, call, calls, fetch, kinds, last, run

TOOLS = {"add": add, "boom": boom, "fetch": fetch}


def say(**fields: object) -> str:
    return json.dumps(fields)


# -- ReAct -------------------------------------------------------------------------------------------------------------


def test_react_in_text_for_models_without_tools() -> None:
    steps = [
        Step(
            'Thought: add them\nAction: add\nAction Input: {"a": 2, "b": 3}\nObservation: 99\nFinal Answer: 99',
            expects=lambda asked: "- add: Add two numbers." in asked.messages[0].content and not asked.tools,
        ),
        Step("Thought: I know\nFinal Answer: 5\n", expects="Observation: 5"),
    ]
    with ScriptedChat(steps) as model:
        events = run(model, "2 + 3", tools=[add], policy=react_text)
        # What the model made up after its call is neither kept nor believed.
        assert "99" not in model.asked[1].messages[-2].content
    assert last(events).answer == "5" and list(replay(events)) == events
    assert "ToolReturned" in kinds(events)


def test_react_takes_native_and_written_calls() -> None:
    steps = [
        Step(calls(call("add", a=1, b=1)), expects=lambda asked: [tool.name for tool in asked.tools] == ["add"]),
        Step("Thought: once more\nAction: add\nAction Input: {a: 2}", expects="2"),
        Step('Action: add({"a": 2, "b": 2})', expects="Observation: the input of add is no JSON object"),
        Step("Final Answer: 4", expects="Observation: 4"),
    ]
    with ScriptedChat(steps) as model:
        assert last(run(model, tools=[add])).answer == "4"
    with ScriptedChat([Step("fine", expects=lambda asked: THINK in asked.messages[0].content)]) as model:
        run(model, tools=[add], policy=partial(react, prompt=THINK))


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ('Action: add\nAction Input: {"a": 1, "b": 2}', "add", {"a": 1, "b": 2}),
        ('**Thought:** x\n**Action:** add\n**Action Input:** {"a": 1, "b": 2}', "add", {"a": 1, "b": 2}),
        ('Thought 1: x\nAction 1: add\nAction Input 1: {"a": 1, "b": 2}\nThought 2: y', "add", {"a": 1, "b": 2}),
        ('action: `ADD`\naction input: ```json\n{"a": 1,\n "b": 2}\n```', "add", {"a": 1, "b": 2}),
        ('Action: add({"a": 1, "b": 2})', "add", {"a": 1, "b": 2}),
        ('Action: {"action": "add", "action_input": {"a": 1, "b": 2}}', "add", {"a": 1, "b": 2}),
        ('Action:\n{"name": "add",\n "arguments": {"a": 1, "b": 2}}', "add", {"a": 1, "b": 2}),
        ("Action: fetch[the old mill]", "fetch", {"page": "the old mill"}),
        ('Action: fetch\nAction Input: "home"', "fetch", {"page": "home"}),
        ("Action: fetch\nAction Input: home\nObservation: I made this up", "fetch", {"page": "home"}),
        ("Action: boom\nAction Input: {}", "boom", {}),
        ("Action: boom", "boom", {}),
        ("Action：fetch\nAction Input：主页", "fetch", {"page": "主页"}),
        ('Action: add\nAction Input: {"a": 1, "b": 2}\nFinal Answer: 3', "add", {"a": 1, "b": 2}),
        ('Action: add\nAction Input: {"a": 1, "b": 2,}', "add", {"a": 1, "b": 2}),
        ("Action: add\nAction Input: {'a': 1, \"b\": 2}", "add", {"a": 1, "b": 2}),
        ('Action:\n```json\n{"action": "add", "action_input": {"a": 1, "b": 2},}\n```', "add", {"a": 1, "b": 2}),
        ("Action: add(a=1, b=2)", "add", {"a": 1, "b": 2}),
        ("Action: Add(1, b=2)", "add", {"a": 1, "b": 2}),
        ('Action: fetch(page="home")', "fetch", {"page": "home"}),
        ("Action: fetch(home)", "fetch", {"page": "home"}),
        ('Action: boom\nObservation: x\nAction: add\nAction Input: {"a": 1, "b": 2}', "boom", {}),
        ('Action: add\nAction Input: {"a": 1, "b": 2}\nAction: boom\nAction Input: {}', "add", {"a": 1, "b": 2}),
        (
            'Action: fetch\nAction Input: {"page": "a\nThought: b\nAction: c"}',
            "fetch",
            {"page": "a\nThought: b\nAction: c"},
        ),
        ("Action: fetch\nAction Input: {x for x in y}", "fetch", {"page": "{x for x in y}"}),
    ],
)
def test_calls_as_models_write_them(text: str, name: str, arguments: dict) -> None:
    step = read_step(text, TOOLS)
    assert (step.action, step.arguments, step.problem) == (name, arguments, "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Action: ad\nAction Input: {}", "did you mean 'add'"),
        ("Action: add\nAction Input: one and two", "its arguments are: a, b"),
        ("Action: \nAction Input: {}", "names no tool"),
        ('Action: {"action": "add", ', "no JSON"),
        ('Action: fetch\nAction Input: {"page": "x",,}', "its arguments are: page"),
        ("Action: add(1, 2, 3)", "its arguments are: a, b"),
        ("Action: add\nAction Input: " + '{"a":' * 100_000, "no JSON object"),
    ],
)
def test_calls_that_cannot_be_read_are_told(text: str, words: str) -> None:
    assert words in read_step(text, TOOLS).problem


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Final Answer: 5", "5"),
        ("Thought: done\n**Final Answer:** five\nand six", "five\nand six"),
        ("The answer is 5.", "The answer is 5."),
        ("Thought: it is 5", "it is 5"),
        ("Every action: counts", "Every action: counts"),
        ("Thought: done\nAction: Finish[the mill (1703)]", "the mill (1703)"),
        ("Action: Final Answer\nAction Input: 5", "5"),
        ('Action:\n```\n{"action": "Final Answer", "action_input": {"n": 5}}\n```', '{"n": 5}'),
        ("Thought: x\nAction: None\nFinal Answer: 5", "5"),
        ("", ""),
    ],
)
def test_answers_as_models_write_them(text: str, answer: str) -> None:
    step = read_step(text, TOOLS)
    assert (step.action, step.problem, step.answer) == (None, "", answer)


PIECES = [
    "Action:",
    "Action Input:",
    "Final Answer:",
    "Thought:",
    "\n",
    "{",
    "}",
    '"a"',
    ":",
    "1",
    "add",
    "[",
    "](",
    "`",
    " ",
]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.text(max_size=60))
def test_any_text_is_a_call_a_problem_or_an_answer(text: str) -> None:
    step = read_step(text, TOOLS)
    assert step.action in (None, *TOOLS) and isinstance(step.arguments, dict)
    assert (step.action is not None) + bool(step.problem) + bool(step.answer) <= 1


@pytest.mark.parametrize("policy", [react, react_text])
def test_what_a_model_makes_up_after_its_call_is_forgotten(policy) -> None:
    call = 'Action: add\nAction Input: {"a": 1, "b": 2}'
    made_up = "**Observation 1:** 99\nThought: so 99\nAction: add\nAction Input: {}"
    with ScriptedChat([f"{call}\n{made_up}", Step("Final Answer: 3", expects="Observation: 3")]) as model:
        assert last(run(model, tools=[add], policy=policy)).answer == "3"
        assert model.asked[1].messages[-2].content == call


@pytest.mark.parametrize("policy", [react, react_text])
def test_a_label_without_an_answer_is_no_answer(policy) -> None:
    with ScriptedChat(["Final Answer:", "Action: Finish", Step("Final Answer: 5", expects="was empty")]) as model:
        assert last(run(model, tools=[add], policy=policy)).answer == "5"


def test_answers_that_look_like_calls_are_answers() -> None:
    for said in ("To do:\nAction: buy milk\nAction: go home", "Report\nObservation: it rained\nThe end"):
        assert last(run(ScriptedChat([said]), tools=[add])).answer == said
    with ScriptedChat(["Action: bu\nAction Input: milk", Step("ok", expects="there is no tool 'bu'")]) as model:
        run(model, tools=[add])
    made_up = 'Action: add\nAction Input: {"a": 1, "b": 1}\nObservation: 3'
    with ScriptedChat([made_up, Step("2", expects="Observation: 2")]) as model:
        run(model, tools=[add])
        assert "3" not in model.asked[1].messages[-2].content


# -- reflection --------------------------------------------------------------------------------------------------------


def test_reflection_revises_until_nothing_is_wrong() -> None:
    steps = [
        "It is 6.",
        Step(say(good=False, problems="add again"), expects=lambda asked: "It is 6." in asked.last and asked.schema),
        Step(calls(call("add", a=2, b=3)), expects="A critic says of your answer: add again"),
        Step("It is 5.", expects="5"),
        Step(say(good=True, problems=""), expects="It is 5."),
    ]
    with ScriptedChat(steps) as model:
        events = run(model, "2 + 3", tools=[add], policy=reflect)
    assert last(events).answer == "It is 5." and list(replay(events)) == events
    assert [event.fault for event in events if event.kind == "Judged"] == ["add again", ""]


def test_reflection_with_an_unreadable_critique_keeps_the_answer() -> None:
    with ScriptedChat(["five", "hm, who knows"]) as model:
        assert last(run(model, policy=partial(reflect, base=native))).answer == "five"
    bad = say(good=False, problems="")
    with ScriptedChat(["a", bad, "b", bad, "c"]) as model:
        assert last(run(model, policy=partial(reflect, rounds=2))).answer == "c"


# -- Reflexion ---------------------------------------------------------------------------------------------------------


def test_reflexion_keeps_its_lessons_across_trials() -> None:
    def verify(answer: str) -> str | None:
        return None if answer == "c" else f"{answer} is not c"

    steps = [
        Step("a", expects=lambda asked: len(asked.messages) == 1),
        Step("Try another letter.", expects="It is wrong: a is not c"),
        Step(
            "b", expects=lambda asked: "- Try another letter." in asked.messages[0].content and len(asked.messages) == 2
        ),
        Step("Not b either.", expects="b is not c"),
        Step("c", expects=lambda asked: asked.messages[0].content.endswith("- Try another letter.\n- Not b either.")),
    ]
    with ScriptedChat(steps) as model:
        events = run(model, "which letter?", policy=partial(reflexion, verify=verify))
    assert last(events).answer == "c" and list(replay(events)) == events
    assert [(event.trial, event.text) for event in events if event.kind == "Lesson"] == [
        (1, "Try another letter."),
        (2, "Not b either."),
    ]
    assert [event.fault for event in events if event.kind == "Judged"] == ["a is not c", "b is not c", ""]


def test_a_trial_that_goes_round_in_circles_teaches_too() -> None:
    again = calls(call("add", a=1, b=1))
    said = lambda asked: all(not each.tool_calls for each in asked.messages[-2:])  # noqa: E731  (no call without result)
    steps = [
        *[again] * 4,
        Step("Do not add so often.", expects=lambda asked: said(asked) and "came to no answer: add was" in asked.last),
        # The count of calls begins anew with the conversation.
        *[again] * 3,
        "2",
    ]
    with ScriptedChat(steps) as model:
        events = run(model, tools=[add], policy=partial(reflexion, verify=lambda answer: None, trials=2))
        assert "- Do not add so often." in model.asked[5].messages[0].content
    assert last(events).answer == "2" and list(replay(events)) == events
    with ScriptedChat([*[again] * 4, "lesson", *[again] * 4]) as model:
        end = last(run(model, tools=[add], policy=partial(reflexion, verify=lambda answer: None, trials=2)))
    assert end.reason == "repeats"


def test_reflexion_ends_after_its_trials_and_with_a_verifier_that_fails() -> None:
    with ScriptedChat(["a", "lesson", "b"]) as model:
        events = run(model, policy=partial(reflexion, verify=lambda answer: 1 / 0, trials=2))
    assert last(events).answer == "b" and "ZeroDivisionError" in [e for e in events if e.kind == "Judged"][-1].fault
    assert (
        last(run(ScriptedChat([]), policy=partial(reflexion, verify=lambda answer: None, trials=0))).reason == "error"
    )


# -- plan, execute, replan ---------------------------------------------------------------------------------------------


def test_a_plan_is_done_step_by_step_and_changed_on_the_way() -> None:
    steps = [
        Step(
            say(steps=["add 1 and 2", "add 4"]), expects=lambda asked: "- add: Add two" in asked.last and asked.schema
        ),
        Step(calls(call("add", a=1, b=2)), expects="Do this step alone, and tell its result: add 1 and 2"),
        Step("3", expects="3"),
        Step(say(steps=["add 40", "say it"]), expects="1. add 1 and 2\n   Result: 3\n\nLeft of the plan:\n- add 4"),
        Step("43", expects=lambda asked: "Result: 3" in asked.last and asked.last.endswith("result: add 40")),
        Step(say(steps=["say it"]), expects="- say it"),
        Step("forty-three", expects="say it"),
        Step("It is 43.", expects="3. say it\n   Result: forty-three"),
    ]
    with ScriptedChat(steps) as model:
        events = run(model, "1 + 2 + 40", tools=[add], policy=plan)
    assert last(events).answer == "It is 43." and list(replay(events)) == events
    assert [event.steps for event in events if event.kind == "Planned"] == [
        ("add 1 and 2", "add 4"),
        ("add 40", "say it"),
    ]


def test_without_a_plan_the_task_is_done_in_one_go() -> None:
    for unreadable in ("first this, then that", say(steps=[]), say(step="x")):
        with ScriptedChat([unreadable, Step("done", expects="do it")]) as model:
            assert last(run(model, policy=plan)).answer == "done"


def test_a_plan_that_never_ends_does() -> None:
    class Planner(ScriptedChat):
        def stream(self, messages, tools=None, schema=None, sampling=None):
            said = say(steps=["more", "and more"]) if schema else "did it"
            return iter(ScriptedChat([said]).stream(messages))

    events = run(Planner([]), policy=partial(plan, replans=100), limits=Limits(steps=12))
    assert last(events).reason == "steps"
    events = run(Planner([]), policy=partial(plan, replans=3))
    assert last(events).reason == "answered"


# -- your own ----------------------------------------------------------------------------------------------------------


def test_a_policy_is_a_function_of_ones_own() -> None:
    def twice(run):
        """Answers twice and takes the longer answer."""
        first = yield from native(run)
        second = yield from native(run)
        return max(first, second, key=len)

    events = run(ScriptedChat(["a", "bb"]), policy=twice)
    assert last(events).answer == "bb" and events[0].setup["policy"] == "twice"

    def faulty(run):
        yield from native(run)
        raise KeyError("oops")

    end = last(run(ScriptedChat(["said"]), policy=faulty))
    assert (end.reason, end.answer) == ("error", "said") and "KeyError" in end.detail


def test_thoughts_are_shown_and_not_answered() -> None:
    events = run(ScriptedChat([Message("assistant", "five", reasoning="2 and 3 ...")]))
    assert "".join(event.reasoning for event in events if event.kind == "Said") == "2 and 3 ..."
    assert last(events).answer == "five" and list(replay(events)) == events
