"""/v1/chat/completions as the official client sees it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from dougong.tokenizer import byte_tokenizer
from tests.serve.standin import CONTEXT, SPECIALS, Standin

HELLO = [{"role": "user", "content": "hi"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "now",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TWO_CALLS = (
    "<think>\nTwo cities.\n</think>\n\nI look.\n"
    '<tool_call>{"name": "weather", "arguments": {"city": "北京"}}</tool_call>\n'
    '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'
)


def test_an_answer(serve: Callable) -> None:
    server = serve(Standin("你好 😀"))
    answer = server.client().chat.completions.create(model="small", messages=HELLO, temperature=0, seed=7)
    assert answer.choices[0].message.content == "你好 😀"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.tool_calls is None
    prompt = server.service.prompts[0]
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == len("你好 😀".encode()) + 1
    assert server.service.prompt_text() == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    sampling = server.service.samplings[0]
    assert (sampling.temperature, sampling.seed) == (0, 7)


def test_streamed_it_is_the_same(serve: Callable) -> None:
    client = serve(Standin("你好 😀 there")).client()
    whole = client.chat.completions.create(model="small", messages=HELLO)
    chunks = list(
        client.chat.completions.create(
            model="small", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
    )
    said = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(said) == whole.choices[0].message.content
    assert len([text for text in said if text]) > 3
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_parallel_calls_and_reasoning(serve: Callable) -> None:
    client = serve(Standin(TWO_CALLS)).client()
    asked = {"model": "small", "messages": HELLO, "tools": [WEATHER]}
    message = client.chat.completions.create(**asked).choices[0]
    assert message.finish_reason == "tool_calls"
    assert message.message.content == "I look."
    assert message.message.reasoning_content == "Two cities."
    calls = message.message.tool_calls
    assert [json.loads(call.function.arguments) for call in calls] == [{"city": "北京"}, {"city": "Rome"}]
    assert len({call.id for call in calls}) == 2

    pieces = [chunk.choices[0] for chunk in client.chat.completions.create(**asked, stream=True)]
    assert "".join(piece.delta.content or "" for piece in pieces) == "I look."
    assert "".join(getattr(piece.delta, "reasoning_content", None) or "" for piece in pieces) == "Two cities."
    streamed = [call for piece in pieces for call in piece.delta.tool_calls or ()]
    assert [call.index for call in streamed] == [0, 1]
    assert [call.function.arguments for call in streamed] == [call.function.arguments for call in calls]
    assert pieces[-1].finish_reason == "tool_calls"


def test_the_results_of_calls_go_back_to_the_model(serve: Callable) -> None:
    server = serve(Standin(TWO_CALLS))
    client = server.client()
    first = client.chat.completions.create(model="small", messages=HELLO, tools=[WEATHER]).choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in first.tool_calls]
    server.service.says = "Sunny in both."
    talk = [*HELLO, first.model_dump(exclude_none=True), *results]
    last = client.chat.completions.create(model="small", messages=talk, tools=[WEATHER])
    assert last.choices[0].message.content == "Sunny in both."
    assert server.service.prompt_text().count("sunny") == 2
    assert '"city": "北京"' in server.service.prompt_text()


def test_calls_in_special_tokens(serve: Callable) -> None:
    """Mistral's marker is a special token, which the engine's text leaves out."""
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{{ tools }}{# [TOOL_CALLS] #}"
    tokenizer = byte_tokenizer(SPECIALS, chat_template=template)
    said = '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Oslo"}}]'
    client = serve(Standin(said, tokenizer)).client()
    message = client.chat.completions.create(model="small", messages=HELLO, tools=[WEATHER]).choices[0].message
    assert message.content is None
    assert json.loads(message.tool_calls[0].function.arguments) == {"city": "Oslo"}


def test_a_malformed_call_is_text_with_a_note(serve: Callable) -> None:
    broken = '<tool_call>{"name": "weather", "arguments": {"city": }}</tool_call>'
    client = serve(Standin(broken)).client()
    choice = client.chat.completions.create(model="small", messages=HELLO, tools=[WEATHER]).choices[0]
    assert (choice.message.content, choice.finish_reason) == (broken, "stop")
    assert "no call" in choice.message.notes[0]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_demanded_call_is_constrained(serve: Callable, choice: object) -> None:
    server = serve(Standin('{"name": "weather", "arguments": {"city": "Oslo"}}'))
    asked = {"model": "small", "messages": HELLO, "tools": [WEATHER], "tool_choice": choice}
    answer = server.client().chat.completions.create(**asked).choices[0]
    assert answer.finish_reason == "tool_calls"
    assert answer.message.tool_calls[0].function.name == "weather"
    assert server.service.prompt_text().endswith("assistant\n<tool_call>\n")
    schema = json.loads(server.service.samplings[0].grammar.text)
    assert schema["properties"]["name"] == {"const": "weather"}


def test_no_tools_means_no_calls(serve: Callable) -> None:
    client = serve(Standin(TWO_CALLS)).client()
    for asked in ({}, {"tools": [WEATHER], "tool_choice": "none"}):
        message = client.chat.completions.create(model="small", messages=HELLO, **asked).choices[0].message
        assert message.tool_calls is None
        assert "<tool_call>" in message.content


def test_one_call_at_most_where_asked(serve: Callable) -> None:
    client = serve(Standin(TWO_CALLS)).client()
    asked = {"model": "small", "messages": HELLO, "tools": [WEATHER], "parallel_tool_calls": False}
    assert len(client.chat.completions.create(**asked).choices[0].message.tool_calls) == 1
    streamed = client.chat.completions.create(**asked, stream=True)
    assert sum(len(chunk.choices[0].delta.tool_calls or ()) for chunk in streamed) == 1


def test_log_probabilities_belong_to_the_content(serve: Callable) -> None:
    client = serve(Standin("<think>hm</think>你好")).client()
    asked = {"model": "small", "messages": HELLO, "logprobs": True, "top_logprobs": 2}
    tokens = client.chat.completions.create(**asked).choices[0].logprobs.content
    assert bytes(byte for token in tokens for byte in token.bytes).decode() == "你好"
    assert [token.logprob for token in tokens] == [-0.5] * 6
    assert [len(token.top_logprobs) for token in tokens] == [2] * 6
    pieces = [chunk.choices[0].logprobs for chunk in client.chat.completions.create(**asked, stream=True)]
    assert [token for piece in pieces if piece for token in piece.content] == tokens


def test_several_answers(serve: Callable) -> None:
    client = serve(Standin(lambda prompt, sampling, choice: f"answer {choice}")).client()
    answers = client.chat.completions.create(model="small", messages=HELLO, n=3)
    assert [choice.message.content for choice in answers.choices] == ["answer 0", "answer 1", "answer 2"]
    assert [choice.index for choice in answers.choices] == [0, 1, 2]
    said = ["", "", ""]
    for chunk in client.chat.completions.create(model="small", messages=HELLO, n=3, stream=True):
        said[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert said == ["answer 0", "answer 1", "answer 2"]


def test_limits_of_length(serve: Callable) -> None:
    server = serve(Standin("a long answer"), max_tokens=200)
    create = server.client().chat.completions.create
    cut = create(model="small", messages=HELLO, max_completion_tokens=3).choices[0]
    assert (cut.message.content, cut.finish_reason) == ("a l", "length")
    assert create(model="small", messages=HELLO).choices[0].finish_reason == "stop"
    assert server.service.samplings[-1].max_tokens == 200
    talk = [{"role": "user", "content": "x" * (CONTEXT - 100)}]
    create(model="small", messages=talk, max_tokens=150)
    assert server.service.samplings[-1].max_tokens + len(server.service.prompts[-1]) == CONTEXT


def test_response_formats_reach_the_engine(serve: Callable) -> None:
    pytest.importorskip("xgrammar")
    server = serve(Standin("{}"))
    create = server.client().chat.completions.create
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    formats = {
        "json_schema": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
        "json_object": {"type": "json_object"},
        "regex": {"type": "regex", "pattern": "[0-9]+"},
        "choice": {"type": "choice", "choices": ["yes", "no"]},
    }
    for kind, shape in formats.items():
        create(model="small", messages=HELLO, response_format=shape)
        grammar = server.service.samplings[-1].grammar
        assert grammar.kind == {"json_object": "json_schema"}.get(kind, kind)
    server.service.says = said = '{"name": "weather", "arguments": {}}'
    answer = create(model="small", messages=HELLO, tools=[WEATHER], response_format={"type": "json_object"})
    assert answer.choices[0].message.content == said, "JSON that was asked for is no call"
    create(model="small", messages=HELLO, response_format={"type": "text"})
    assert server.service.samplings[-1].grammar is None
