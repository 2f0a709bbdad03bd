"""The scripted model, in this process and over HTTP, and the client of any endpoint against it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

httpx = pytest.importorskip("httpx", reason="RemoteChat needs httpx")

from dougong.base import DougongError  # noqa: E402
from dougong.chat import ChatError, ChatModel, Failure, Message, RemoteChat, ScriptedChat, Step, Tool, ToolCall  # noqa: E402
from dougong.chat.remote import Retries  # noqa: E402
from dougong.engine import Sampling  # noqa: E402
from tests.chat.conformance import ASK, WEATHER, ChatModelContract  # noqa: E402


class TestScripted(ChatModelContract):
    def model(self, reply: Message) -> ChatModel:
        return ScriptedChat([reply] * 3)


class TestRemote(ChatModelContract):
    @pytest.fixture(autouse=True)
    def servers(self) -> Iterator[None]:
        self.scripts: list[ScriptedChat] = []
        with ExitStack() as self.stack:
            yield
            for script in self.scripts:  # how often the contract asks is its own affair
                while len(script.asked) < 3:
                    script.complete(ASK)

    def model(self, reply: Message) -> ChatModel:
        script = ScriptedChat([reply] * 3)
        self.scripts.append(script)
        return RemoteChat(self.stack.enter_context(script.serve()))


def test_steps_are_checked() -> None:
    chat = ScriptedChat([Step("one", expects="first"), Step("two", expects=lambda asked: bool(asked.tools))])
    assert chat.complete([Message("user", "the first")]).content == "one"
    with pytest.raises(DougongError, match="step 1 refuses"):
        chat.complete(ASK)
    with pytest.raises(DougongError, match="the script has 2 steps"):
        chat.complete(ASK)
    with pytest.raises(DougongError, match="step 1 refuses"):  # also where the application swallowed it
        chat.check()
    assert [len(asked.messages) for asked in chat.asked] == [1, 1, 1]
    with pytest.raises(DougongError, match="expects 'x' in the last message"):
        ScriptedChat([Step("a", expects="x")]).complete(ASK)


def test_unused_steps_are_an_error() -> None:
    with pytest.raises(DougongError, match="1 of 2 steps were not used"), ScriptedChat(["one", "two"]) as chat:
        chat.complete(ASK)
    with pytest.raises(DougongError, match="1 of 1 steps were not used"), ScriptedChat(["one"]).serve():
        pass


def test_failures_in_this_process() -> None:
    failures = [Failure(status=429, retry_after=3), Failure("hang"), Failure("malformed"), Failure("cut")]
    with ScriptedChat(failures) as chat:
        for failure in failures:
            with pytest.raises(ChatError) as told:
                chat.complete(ASK)
            assert told.value.status == (429 if failure.kind == "status" else None)
            assert told.value.retry_after == failure.retry_after


# -- the client --------------------------------------------------------------------------------------------------------


def test_busy_endpoints_are_asked_again() -> None:
    slept: list[float] = []
    steps = [Failure(status=429, retry_after=2), Failure(status=503), Failure("cut"), "at last"]
    with ScriptedChat(steps).serve() as url:
        assert RemoteChat(url, sleep=slept.append).complete(ASK).content == "at last"
    assert slept[0] == 2
    assert 0.75 <= slept[1] <= 1 and 1.5 <= slept[2] <= 2  # doubled each time, less a random part


@pytest.mark.parametrize(
    ("failures", "told", "status"),
    [
        ([Failure(status=400, message="no such field")], "answered 400: no such field", 400),
        ([Failure(status=401)], "answered 401", 401),
        ([Failure(status=500)] * 3, "answered 500", 500),
        ([Failure(status=429, retry_after=999)], "answered 429", 429),
        ([Failure("malformed")], "is no JSON", None),
        ([Failure("cut")] * 3, "broke off its answer", None),
    ],
)
def test_what_does_not_get_better(failures: list[Failure], told: str, status: int | None) -> None:
    with ScriptedChat(failures).serve() as url:
        chat = RemoteChat(url, model="m", key="s3cret", retries=Retries(times=2), sleep=lambda _: None)
        with pytest.raises(ChatError, match=told) as error:
            chat.complete(ASK)
    assert error.value.status == status
    assert "s3cret" not in f"{error.value} {chat!r}"


def test_a_silent_endpoint_is_not_waited_for() -> None:
    with ScriptedChat([Failure("hang"), Failure("hang")]).serve() as url:
        chat = RemoteChat(url, model="m", timeout=0.1)
        for ask in (chat.complete, lambda messages: list(chat.stream(messages))):
            with pytest.raises(ChatError, match=r"sent nothing for 0\.1 s"):
                ask(ASK)


def test_a_stream_that_breaks_is_not_begun_again() -> None:
    with ScriptedChat([Failure(status=500), Failure("cut")]).serve() as url:
        stream = RemoteChat(url, model="m", sleep=lambda _: None).stream(ASK)
        assert next(stream).content == "an answer that is cut"
        with pytest.raises(ChatError, match="broke off"):
            next(stream)


def test_nobody_there() -> None:
    chat = RemoteChat("http://127.0.0.1:9", model="m", retries=Retries(times=1), sleep=lambda _: None)
    with pytest.raises(ChatError, match="cannot be reached"):
        chat.complete(ASK)
    with pytest.raises(DougongError, match="expected one such as"):
        RemoteChat("localhost:8000")


def test_what_is_sent() -> None:
    schema = {"type": "object"}

    def right(asked: object) -> None:
        body = asked.body  # pyright: ignore[reportAttributeAccessIssue]
        assert body["model"] == "script"  # the first one listed
        assert body["messages"] == [{"role": "user", "content": "hi"}]
        assert body["tools"][0]["function"]["name"] == "weather"
        assert body["response_format"]["json_schema"]["schema"] == schema
        assert (body["max_tokens"], body["temperature"], body["stop"], body["top_k"]) == (9, 0.5, ["x"], 3)
        assert body["chat_template_kwargs"] == {"enable_thinking": False}
        assert not {"n", "seed", "logprobs", "min_p"} & set(body)

    with ScriptedChat([Step("ok", expects=right)]).serve() as url:
        chat = RemoteChat(url, extra={"chat_template_kwargs": {"enable_thinking": False}})
        sampling = Sampling(max_tokens=9, temperature=0.5, stop=("x",), top_k=3)
        assert chat.complete(ASK, [WEATHER], schema, sampling).content == "ok"
    for wrong in (Sampling(n=2), Sampling(beams=2), Sampling(banned=(3,))):
        with pytest.raises(DougongError):
            chat.complete(ASK, sampling=wrong)


def test_urls() -> None:
    for given, used in {
        "http://h:1": "http://h:1/v1",
        "http://h:1/": "http://h:1/v1",
        "http://h:1/v1": "http://h:1/v1",
        "https://h/api/v3/chat/completions": "https://h/api/v3",
        "https://h/compatible-mode/v1/": "https://h/compatible-mode/v1",
    }.items():
        assert RemoteChat(given, model="m").url == used


def test_many_at_once() -> None:
    with ScriptedChat(["ok"] * 8).serve() as url:
        chat = RemoteChat(url, model="m")
        said: list[str] = []
        threads = [threading.Thread(target=lambda: said.append(chat.complete(ASK).content)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert said == ["ok"] * 8


def test_the_official_client_understands_the_script() -> None:
    openai = pytest.importorskip("openai", reason="the official client is not installed")
    reply = Message("assistant", "hello", tool_calls=(ToolCall("weather", {"city": "Rome"}),))
    steps = [reply, reply, Failure(status=429, retry_after=0.01), "again"]
    with ScriptedChat(steps).serve() as url:
        client = openai.OpenAI(base_url=url, api_key="x")
        asked = {"model": "script", "messages": [{"role": "user", "content": "hi"}]}
        message = client.chat.completions.create(**asked).choices[0].message
        assert message.tool_calls[0].function.arguments == '{"city": "Rome"}'
        chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**asked, stream=True)]
        assert "".join(chunk.delta.content or "" for chunk in chunks) == "hello"
        assert client.chat.completions.create(**asked).choices[0].message.content == "again"


def test_tools_are_checked() -> None:
    with pytest.raises(DougongError, match="tool's name"):
        Tool("")
    with pytest.raises(DougongError, match="a tool is"):
        Tool.from_openai({"type": "function"})
    assert Tool.from_openai(WEATHER.to_openai()) == WEATHER


def test_a_client_needs_no_engine() -> None:
    statement = "from dougong.chat import RemoteChat, ScriptedChat, Tool\nimport sys\nprint('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", statement], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


def test_a_steady_model_is_greedy_unless_told_otherwise():
    from dougong.chat.steady import Steady

    with ScriptedChat(["one", "two"]) as script:
        model = Steady(script, 32)
        assert model.complete(ASK).content == "one"
        assert model.complete(ASK, sampling=Sampling(temperature=0.5)).content == "two"
        first, second = (each.sampling for each in script.asked)
        assert first is not None and (first.temperature, first.max_tokens) == (0.0, 32)
        assert second is not None and second.temperature == 0.5


def test_text_that_is_no_unicode_reaches_the_model() -> None:
    """Half a surrogate pair, as a tool's result or a file's name may hold; whole pairs come as their character."""
    seen: list[str] = []
    with ScriptedChat([Step("Yes.", expects=lambda asked: seen.append(asked.last))]) as script, script.serve() as url:
        assert RemoteChat(url).complete([Message("user", "a \ud800 b \ud83d\ude00 c é")]).content == "Yes."
    assert seen == ["a \ufffd b 😀 c é"]
