"""Generated problems: true answers pass, wrong ones fail, and no test is ever asked in training."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dougong.base import DougongError, record_from, record_to
from dougong.data import SKILLS, Difficulty, generate
from dougong.data.skills import exact, json_equal

EVERY = pytest.mark.parametrize("skill", SKILLS)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("abc", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=6,
)


@EVERY
def test_the_same_seed_gives_the_same_problems(skill):
    assert generate(skill, 3, 50) == generate(skill, 3, 50)
    assert generate(skill, 3, 50) != generate(skill, 4, 50)
    assert generate(skill, 3, 50)[:20] == generate(skill, 3, 20)


@EVERY
def test_no_test_is_asked_in_training(skill):
    train, test = generate(skill, 0, 3000), generate(skill, 0, 150, split="test")
    assert not {problem.key for problem in train} & {problem.key for problem in test}
    assert not {problem.prompt for problem in train} & {problem.prompt for problem in test}
    assert len({problem.prompt for problem in test}) == 150


@EVERY
def test_graders_accept_the_truth_and_reject_what_differs(skill):
    problems = generate(skill, 0, 300)
    for problem, other in pairwise(problems):
        assert problem.check(problem.answer) and problem.check(f" {problem.answer}\n")
        for wrong in ("", problem.answer + "0", problem.answer[:-1], problem.answer * 2):
            assert not problem.check(wrong), (problem, wrong)
        if other.answer != problem.answer:
            assert not problem.check(other.answer)


@EVERY
def test_prompts_are_short_and_the_same_prompt_has_one_answer(skill):
    answers = {}
    for problem in generate(skill, 0, 2000):
        assert len(problem.prompt) <= 200
        assert answers.setdefault(problem.prompt, problem.answer) == problem.answer
        assert problem.conversation().messages[-1] == {"role": "assistant", "content": problem.answer}


def test_arithmetic_is_right():
    for problem in generate("arithmetic", 0, 500):
        task, a, b = problem.key.split()
        wanted = {"add": int(a) + int(b), "subtract": int(a) - int(b)}
        wanted |= {"larger": max(int(a), int(b)), "smaller": min(int(a), int(b))}
        assert int(problem.answer) == wanted[task]
        assert set(re.findall(r"\d+", problem.prompt)) == {a, b}


def test_context_holds_the_answer_and_unknown_does_not():
    for problem in generate("context", 0, 300):
        assert re.search(rf"\b{problem.answer}\b", problem.prompt)
        assert problem.check(problem.answer) and not problem.check("I do not know.")
    asked = {problem.prompt.split("\n")[1].split()[0] for problem in generate("context", 0, 300)}
    for problem in generate("unknown", 0, 300):
        assert problem.answer == "I do not know."
        assert problem.prompt.split("\n")[1].split()[0] in asked


def test_calls_name_an_offered_function_with_arguments_from_the_request():
    for problem in generate("calls", 0, 300):
        call = json.loads(problem.answer)
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in problem.tools}
        assert call["arguments"].keys() == schemas[call["name"]]["properties"].keys()
        request = problem.prompt.split("\n")[1]
        assert all(str(value) in request for value in call["arguments"].values())


def test_a_call_is_right_however_it_is_written_and_wrong_with_other_types():
    for problem in generate("calls", 0, 100):
        call = json.loads(problem.answer)
        assert problem.check(json.dumps({"arguments": call["arguments"], "name": call["name"]}, indent=1))
        arguments = {
            key: str(value) if isinstance(value, int) else value + "s" for key, value in call["arguments"].items()
        }
        assert not problem.check(json.dumps({**call, "arguments": arguments}))


def test_difficulty_sets_the_ranges_and_is_a_record():
    hard = Difficulty(addends=(100, 999), compared=(100, 999), chinese=0.0)
    assert record_from(Difficulty, record_to(hard)) == hard
    for problem in generate("arithmetic", 0, 100, difficulty=hard):
        assert all(int(number) >= 100 for number in re.findall(r"\d+", problem.prompt))
    prompts = [problem.prompt for problem in generate("lists", 0, 200, difficulty=Difficulty(chinese=1.0))]
    assert all(not prompt.isascii() for prompt in prompts)


def test_a_skill_that_does_not_exist_and_too_few_tests_are_refused():
    with pytest.raises(DougongError, match="no skill 'arithmetics'; did you mean 'arithmetic'"):
        generate("arithmetics", 0, 1)
    tiny = Difficulty(addends=(0, 1), compared=(0, 1), chinese=0.0)
    with pytest.raises(DougongError, match="test problems of arithmetic exist"):
        generate("arithmetic", 0, 100, split="test", difficulty=tiny)


@given(JSON, JSON)
def test_json_is_equal_as_values(a, b):
    assert json_equal(json.dumps(a, indent=2), json.dumps(a))
    if json.dumps(a, sort_keys=True) != json.dumps(b, sort_keys=True):
        assert not json_equal(json.dumps(a), json.dumps(b))


def test_json_that_only_looks_equal_is_not():
    assert json_equal('{"b": 1, "a": 2}', '{"a": 2.0, "b": 1}')
    for wrong in ("true", '"1"', "[1]", "1 1", "NaN", "{", "", "[" * 100_000):
        assert not json_equal(wrong, "1")
    assert not json_equal('{"a": 1, "a": 2}', '{"a": 2}')


def test_exact_ignores_only_space_at_the_ends():
    assert exact(" a b\n", "a b") and not exact("a  b", "a b") and not exact("A b", "a b")
