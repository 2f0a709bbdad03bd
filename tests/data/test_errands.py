"""Errands for tools, and the search and the template that go with them."""

from __future__ import annotations

import json
import re

import pytest

from dougong.base import DougongError
from dougong.chat import Message, Tool, ToolCall
from dougong.chat.format import ChatFormat
from dougong.data import generate
from dougong.data.skills.errands import idle, story, sums
from dougong.data.skills.shelf import Shelf
from dougong.data.skills.template import BRIEF_TEMPLATE
from dougong.tokenizer import byte_tokenizer


def test_sums_are_right_long_and_split():
    train, test = sums(0, 200), sums(0, 50, "test")
    assert not {each.key for each in train} & {each.key for each in test}
    for errand in train:
        a, _, b = errand.key.split()
        assert int(errand.answer) == int(a) + int(b)
        assert len(a) == len(b) == 5
        assert errand.arguments == {"expression": errand.key} and a in errand.asked and b in errand.asked
        assert errand.check(f" {errand.answer} ") and not errand.check(errand.answer + "0")
    assert 45 <= sum("加" in errand.asked for errand in train) <= 95  # Chinese too, as in the other skills
    assert sums(0, 20) == train[:20] and sums(1, 20) != train[:20]


def test_a_story_answers_its_questions_and_no_test_is_ever_told_in_training():
    train = {each.key for seed in range(20) for each in story(seed, 50).errands}
    told = story(0, 150, "test")
    assert not train & {each.key for each in told.errands}
    assert len({each.asked for each in told.errands}) == 150
    shelf = Shelf(told.passages)
    for passage, errand in zip(told.passages, told.errands, strict=True):
        assert errand.key == passage and re.search(rf"\b{errand.answer}\b", passage)
        found = shelf.search(errand.arguments["query"], errand.arguments["passages"])
        assert [text for _, text in found] == [passage]  # the query is a good one
    with pytest.raises(DougongError, match="ask for fewer"):
        story(0, 100_000)


def test_a_shelf_puts_rare_words_first_and_finds_nothing_for_strange_ones():
    shelf = Shelf(["the cat sat", "the dog sat", "the dog ran"])
    assert next(iter(shelf.search("the cat", 3))) == (0, "the cat sat")
    assert [at for at, _ in shelf.search("dog RAN", 2)] == [2, 1]
    assert shelf.search("zebra", 3) == [] and Shelf([]).search("cat", 3) == []


def test_the_brief_template_carries_tools_calls_and_results_and_marks_the_assistants_words():
    tokenizer = byte_tokenizer(chat_template=BRIEF_TEMPLATE)
    tool = Tool("calculator", "adds", {"type": "object", "properties": {"expression": {"type": "string"}}})
    errand = sums(0, 1)[0]
    done = errand.served([tool.to_openai()], errand.answer, system="Be brief.")
    text = tokenizer.render(list(done.messages), list(done.tools))
    assert text.startswith("<|im_start|>system\nBe brief.\nTools: calculator(expression)<|im_end|>\n<|im_start|>user")
    rendered = tokenizer.render_ids(list(done.messages), list(done.tools))
    ours = tokenizer.decode([i for i, mine in zip(rendered.ids, rendered.assistant, strict=True) if mine])
    call = json.dumps({"name": "calculator", "arguments": errand.arguments})
    assert ours == f"<tool_call>{call}</tool_call>{errand.answer}"
    # What an agent's chat model reads are the very ids that training saw, and what it writes becomes a call.
    chat = ChatFormat(tokenizer)
    asked = [Message("system", "Be brief."), Message("user", errand.asked)]
    prompt = chat.prompt(asked, [tool])
    assert prompt.ids == rendered.ids[: len(prompt.ids)]
    made = ToolCall("calculator", errand.arguments)
    after = chat.prompt(
        [*asked, Message("assistant", tool_calls=(made,)), Message("tool", errand.answer, tool_call_id=made.id)], [tool]
    )
    assert after.ids == rendered.ids[: len(after.ids)]
    reader = chat.reader(prompt, [tool])
    deltas = [*reader.push(f"<tool_call>{call}</tool_call>"), *reader.finish()]
    assert [delta.call for delta in deltas if delta.call] == [made]


def test_a_problem_that_needs_no_tool_is_answered_at_once():
    problem = generate("lists", 0, 1)[0]
    done = idle(problem, [{"function": {"name": "search"}}], "Mind the marks.")
    assert [message["role"] for message in done.messages] == ["system", "user", "assistant"]
    assert done.messages[-1]["content"] == problem.answer and len(done.tools) == 1
