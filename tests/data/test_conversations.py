"""Chat data in the published formats become the same conversations; what is not to be imitated is refused."""

from __future__ import annotations

import json

import pytest

from dougong.base import DougongError
from dougong.data import encode_conversations, read_conversations
from dougong.data.chat import conversation_from

HELLO = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"})


@pytest.mark.parametrize(
    "row",
    [
        {"messages": list(HELLO)},
        {"messages": [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in HELLO]},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
        {"instruction": "hi", "input": "", "output": "hello"},
        {"prompt": "hi", "response": "hello"},
        {"prompt": "hi", "completion": "hello"},
        {"prompt": [HELLO[0]], "completion": [HELLO[1]]},
    ],
)
def test_every_format_gives_the_same_conversation(row):
    found = conversation_from(row, "a.json:1")
    assert (found.messages, found.tools, found.source) == (HELLO, (), "a.json:1")


def test_alpaca_input_system_and_history():
    row = {"instruction": "Add", "input": "1 2", "output": "3", "system": "Be short.", "history": [["a", "b"]]}
    found = [(message["role"], message["content"]) for message in conversation_from(row, "x").messages]
    assert found == [
        ("system", "Be short."),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "Add\n1 2"),
        ("assistant", "3"),
    ]


def test_tool_calls_take_one_form():
    tools = [{"name": "weather", "parameters": {}}]
    call = {"name": "weather", "arguments": {"city": "Rome"}}
    sharegpt = {
        "conversations": [
            {"from": "human", "value": "Rome?"},
            {"from": "function_call", "value": json.dumps(call)},
            {"from": "observation", "value": "rain"},
            {"from": "gpt", "value": "Rain."},
        ],
        "tools": json.dumps(tools),
    }
    openai = {
        "messages": [
            {"role": "user", "content": "Rome?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"function": {"name": "weather", "arguments": '{"city": "Rome"}'}}],
            },
            {"role": "tool", "content": "rain"},
            {"role": "assistant", "content": "Rain."},
        ],
        "tools": tools,
    }
    a, b = conversation_from(sharegpt, "x"), conversation_from(openai, "x")
    assert a == b
    assert a.messages[1]["tool_calls"] == [{"type": "function", "function": call}]
    assert a.tools == ({"type": "function", "function": tools[0]},)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "plain"}, "has the keys text; .* read_documents reads"),
        ({"chosen_messages": [], "rejected_messages": []}, "preference data"),
        ({"conversations": list(HELLO), "chosen": {}, "rejected": {}}, "preference data"),
        ({"messages": list(HELLO), "label": False}, "good-or-bad label"),
        ({"messages": list(HELLO), "images": ["a.jpg"]}, "has images"),
        ({"messages": [HELLO[0]]}, "no assistant message"),
        ({"messages": []}, "messages is \\[\\]"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "turn 1 has the role 'robot'"),
        ({"messages": [{"role": "user", "content": 3}]}, "content of the user is 3"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "is image_url; expected text"),
        ({"conversations": [{"from": "function_call", "value": "{"}]}, "a tool call is not JSON"),
        ({"instruction": "a", "output": "b", "history": [["a"]]}, "history holds"),
        ([], "is list; expected an object"),
    ],
)
def test_what_is_wrong_is_said_with_the_example(tmp_path, row, message):
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": list(HELLO)}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(DougongError, match=f"a.jsonl, example 2.*{message}"):
        list(read_conversations(tmp_path / "a.jsonl"))


def test_encoding_learns_the_assistant_alone(tokenizer):
    (example,) = encode_conversations(tokenizer, [conversation_from({"messages": list(HELLO)}, "x")])
    learnt = [i for i, mask in zip(example.ids, example.loss_mask, strict=True) if mask]
    assert tokenizer.decode(learnt) == "hello" and learnt[-1] == tokenizer.eos_id


def test_a_template_that_marks_nothing_is_refused(tokenizer):
    class Unmarked(type(tokenizer)):
        def render_ids(self, messages, tools=None, add_generation_prompt=False):
            rendered = super().render_ids(messages)
            return type(rendered)(rendered.ids, [False] * len(rendered.ids))

    with pytest.raises(DougongError, match="marks no token as the assistant's"):
        encode_conversations(Unmarked(), [conversation_from({"messages": list(HELLO)}, "x")])


REAL = {
    "dolly_hhrlhf_small/dolly_hhrlhf_train_small.jsonl": 1000,
    "instruction_data_raschka/instruction-data.json": 1100,
    "instruction_data_raschka/instruction-data-with-preference.json": 1100,
    "llamafactory_demo/alpaca_en_demo.json": 999,
    "llamafactory_demo/alpaca_zh_demo.json": 1000,
    "llamafactory_demo/glaive_toolcall_en_demo.json": 300,
    "llamafactory_demo/glaive_toolcall_zh_demo.json": 300,
    "llamafactory_demo/identity.json": 91,
    "llamafactory_demo/reason_tool_use_demo_50.jsonl": 50,
    "llamafactory_demo/v1_sft_demo.jsonl": 500,
}
REFUSED = ["dpo_en_demo.json", "kto_en_demo.json", "v1_dpo_demo.jsonl", "mllm_demo.json", "c4_demo.jsonl"]


@pytest.mark.parametrize(("name", "count"), REAL.items())
def test_real_files(real_data, name, count):
    found = list(read_conversations(real_data / "instruct" / name))
    assert len(found) == count
    assert all(message["role"] in ("system", "user", "assistant", "tool") for c in found for message in c.messages)


@pytest.mark.parametrize("name", REFUSED)
def test_real_files_that_are_no_examples_to_imitate(real_data, name):
    with pytest.raises(DougongError, match="example 1"):
        list(read_conversations(real_data / "instruct/llamafactory_demo" / name))
