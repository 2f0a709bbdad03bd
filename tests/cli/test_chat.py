"""`dougong chat`: a conversation, typed or piped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dougong.base import DougongError
from dougong.cli.chat import Talk, _lines
from dougong.engine import Sampling
from dougong.engine.request import Event
from dougong.tokenizer import byte_tokenizer

QUICK = ["--max-tokens", 6, "--temperature", 0]


class Echo:
    """Stands in for an engine: answers with the number of the conversation's ids, or is interrupted on the way."""

    class lm:
        tokenizer = byte_tokenizer()

        class spec:
            context = 200

    def __init__(self) -> None:
        self.prompts: list[list[int]] = []
        self.interrupt = False

    def stream(self, prompts: list[list[int]], sampling: Sampling) -> Iterator[Event]:
        self.prompts += prompts
        yield Event(0, 1, f"<{len(self.prompts)}", 0.0, None)
        if self.interrupt:
            raise KeyboardInterrupt
        yield Event(0, 1, ">", 0.0, "stop")


def begin(system: str | None = None) -> tuple[Talk, Any]:
    engine: Any = Echo()
    return Talk(engine, Sampling(max_tokens=16), system), engine


def test_history_grows_and_can_be_forgotten(capsys: pytest.CaptureFixture[str]) -> None:
    talk, _ = begin("be brief")
    assert talk.run(iter(["one", "two", "/reset", "three", "/exit", "four"]), terminal=True) == 0
    assert capsys.readouterr().out == "<1>\n<2>\n<3>\n"
    assert [message["content"] for message in talk.messages] == ["be brief", "three", "<3>"]
    talk.run(iter(["/system 说中文"]), terminal=True)
    assert talk.messages == [{"role": "system", "content": "说中文"}]
    talk.run(iter(["/system"]), terminal=True)
    assert talk.messages == []


def test_the_model_reads_the_whole_conversation() -> None:
    talk, engine = begin("be brief")
    talk.run(iter(["one", "two"]), terminal=True)
    text = engine.lm.tokenizer.decode(engine.prompts[1])
    assert [word for word in ("be brief", "one", "<1>", "two") if word in text] == ["be brief", "one", "<1>", "two"]


def test_interrupting_an_answer_keeps_what_was_said() -> None:
    talk, engine = begin()
    engine.interrupt = True
    assert talk.run(iter(["one"]), terminal=True) == 0
    engine.interrupt = False
    talk.run(iter(["two"]), terminal=True)
    assert [message["content"] for message in talk.messages] == ["one", "<1", "two", "<2>"]


def test_old_turns_make_room(capsys: pytest.CaptureFixture[str]) -> None:
    talk, engine = begin("S")
    talk.run(iter(["x" * 40] * 4), terminal=True)
    assert "forgot the oldest" in capsys.readouterr().err
    assert all(len(prompt) + 16 <= 200 for prompt in engine.prompts)
    assert talk.messages[0]["content"] == "S"


def test_a_message_that_is_too_long_is_refused_and_forgotten(capsys: pytest.CaptureFixture[str]) -> None:
    talk, _ = begin()
    assert talk.run(iter(["x" * 300, "short"]), terminal=False) == 1
    printed = capsys.readouterr()
    assert "the model's context is 200; shorten it" in printed.err
    assert printed.out == "<1>\n"
    assert [message["content"] for message in talk.messages] == ["short", "<1>"]


def test_unknown_commands_are_not_sent(capsys: pytest.CaptureFixture[str]) -> None:
    talk, engine = begin()
    talk.run(iter(["/rest", "/save", "/help"]), terminal=True)
    printed = capsys.readouterr().err
    assert "unknown command /rest" in printed
    assert "/save needs the name of a file" in printed
    assert "/reset" in printed
    assert engine.prompts == []


def test_saved_conversations_are_training_data(tmp_path: Path) -> None:
    from dougong.data import read_conversations

    talk, _ = begin("be brief")
    talk.run(iter(["one", f"/save {tmp_path / 'talk.jsonl'}"]), terminal=True)
    (read,) = read_conversations(tmp_path / "talk.jsonl")
    assert list(read.messages) == talk.messages
    assert talk.run(iter([f"/save {tmp_path}"]), terminal=False) == 1


@pytest.mark.parametrize(
    ("typed", "texts"),
    [
        (["a", "b"], ["a", "b"]),
        (["a\\", "b"], ["a\nb"]),
        (['"""a', "b", 'c"""', "d"], ["a\nb\nc", "d"]),
        (['"""', "a", "", "b", '"""'], ["a\n\nb"]),
        (['"""one"""'], ["one"]),
        (['"""never', "closed"], ["never\nclosed"]),
    ],
)
def test_messages_of_several_lines(monkeypatch: pytest.MonkeyPatch, typed: list[str], texts: list[str]) -> None:
    lines = iter(typed)

    def read(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    assert list(_lines(terminal=False)) == texts


def test_ctrl_c_at_the_prompt_does_not_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: Iterator[Any] = iter(["half\\", KeyboardInterrupt(), "whole", EOFError()])

    def read(prompt: str) -> str:
        answer = next(answers)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    monkeypatch.setattr("builtins.input", read)
    assert list(_lines(terminal=True)) == ["whole"]


def test_piped(dougong: Callable, model: Path, tmp_path: Path) -> None:
    result = dougong("chat", model, *QUICK, stdin=f"hello\n/save {tmp_path / 'talk.jsonl'}\n/exit\nnever\n")
    assert result.status == 0
    said = json.loads((tmp_path / "talk.jsonl").read_text(encoding="utf-8"))["messages"]
    assert [message["role"] for message in said] == ["user", "assistant"]
    assert result.out == said[1]["content"] + "\n"
    assert dougong("chat", model, *QUICK, stdin="hello\n").out == result.out


def test_models_that_cannot_chat(dougong: Callable, model: Path, tmp_path: Path) -> None:
    from dougong.hub import load, save

    lm = load(model)
    assert lm.tokenizer is not None
    lm.tokenizer = lm.tokenizer.with_chat_template(None)
    save(lm, tmp_path / "plain")
    result = dougong("chat", tmp_path / "plain", stdin="hello\n")
    assert result.status == 1
    assert "has no chat template, so it cannot chat; try: dougong generate" in result.err


def test_failures_nobody_sees_change_the_status() -> None:
    talk, engine = begin()

    def broken(*_: Any) -> Iterator[Event]:
        raise DougongError("no")

    engine.stream = broken
    assert talk.run(iter(["one"]), terminal=False) == 1
    assert talk.run(iter(["one"]), terminal=True) == 0
    assert talk.messages == []
