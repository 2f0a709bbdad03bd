"""Streams of server-sent events: whatever is sent is an answer or a ChatError, and nothing fills memory."""

from __future__ import annotations

import gzip
import itertools
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dougong.base import DougongError
from dougong.chat import ChatError, Delta, Message, RemoteChat, collect
from dougong.chat import sse as module
from dougong.chat.sse import deltas, usage_of

pytest.importorskip("httpx")
NAMES = [
    *("choices", "delta", "content", "tool_calls", "function", "name", "arguments", "index", "usage", "id"),
    *("finish_reason", "error", "message", "reasoning", "prompt_tokens", "prompt_tokens_details"),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(NAMES),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def stream(*events: object, end: str = "data: [DONE]\n\n") -> str:
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events) + end


def piece(**delta: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": delta}]}


@settings(max_examples=300)
@given(st.lists(JSON.map(lambda inner: {"choices": inner}) | JSON, max_size=4))
@example([{"choices": ["x"]}])
@example([{"choices": [{"delta": "x"}]}])
@example([{"choices": [{"delta": {"content": 3}}]}])
@example([{"choices": [{"delta": {"tool_calls": [{"index": "one"}]}}]}])
@example([{"choices": [{"delta": {"tool_calls": [{"function": {"arguments": {}, "name": "f"}}]}}]}])
@example([{"usage": {"prompt_tokens": "many", "prompt_tokens_details": [1]}}])
def test_any_json_is_an_answer_or_a_chat_error(events) -> None:
    try:
        message = collect(deltas([stream(*events)], "here"))
    except ChatError:
        return
    assert message.role == "assistant" and message.finish_reason


@settings(max_examples=100)
@given(st.data(), st.sampled_from(["\n", "\r\n", "\r"]))
def test_however_the_text_is_cut_the_answer_is_the_same(data, end) -> None:
    call = {"index": 0, "id": "c", "function": {"name": "add", "arguments": '{"a": '}}
    rest = {"index": 0, "function": {"arguments": "1}"}}
    text = ": hello\n" + stream(piece(content="Grüß "), piece(content="斗拱"), piece(tool_calls=[call]))
    text = (text[: -len("data: [DONE]\n\n")] + stream(piece(tool_calls=[rest]))).replace("\n", end)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    parts = [text[start:stop] for start, stop in itertools.pairwise([0, *cuts, len(text)])]
    message = collect(deltas(parts, "here"))
    assert message.content == "Grüß 斗拱"
    assert [(each.name, each.arguments) for each in message.tool_calls] == [("add", {"a": 1})]


def test_a_stream_must_end() -> None:
    with pytest.raises(ChatError, match=r"broke off its answer before \[DONE\]"):
        list(deltas([stream(piece(content="x"), end="")], "here"))


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (itertools.repeat("x" * 1000), "a line of more than"),
        (itertools.repeat("data: " + json.dumps(piece(tool_calls=[{"function": {"arguments": "y" * 900}}])) + "\n"),
         "a call of more than"),
        (itertools.repeat("data: " + json.dumps(piece(tool_calls=[{"function": {"name": "y" * 900}}])) + "\n"),
         "a call of more than"),
    ],
)  # fmt: skip
def test_what_has_no_end_is_given_up(texts, said, monkeypatch) -> None:
    monkeypatch.setattr(module, "LONGEST", 100_000)
    with pytest.raises(ChatError, match=said) as error:
        list(deltas(texts, "here"))
    assert error.value.status == 400  # asking again would bring the same


def test_who_waits_for_a_call_or_hears_nothing_can_stop_at_any_piece() -> None:
    for text in (stream(piece(tool_calls=[{"function": {"arguments": "y"}}]), end=""), ": still here\n"):
        endless = deltas(itertools.repeat(text), "here")
        assert [next(endless) for _ in range(3)] == [Delta()] * 3
        endless.close()  # pyright: ignore[reportAttributeAccessIssue]


@given(JSON)
def test_any_usage(data) -> None:
    usage = usage_of(data)
    assert usage is None or min(usage.prompt, usage.completion, usage.cached) >= 0


@contextmanager
def answering(body: bytes, packed: str | None = None) -> Iterator[str]:
    """An endpoint that answers everything with the same bytes, and says how they are packed."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            if packed is not None:
                self.send_header("Content-Encoding", packed)
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "body",
    [b"[]", b"{}", b'{"choices": "x"}', b'{"choices": [1]}', b'{"choices": [{"message": [1]}]}', b"[" * 100_000,
     b'{"choices": [{"message": {"content": 3}}]}', b'{"choices": [{"message": {"tool_calls": 3}}]}', b"\xff\xfe"],
)  # fmt: skip
def test_a_whole_answer_of_any_shape(body) -> None:
    with answering(body) as url:
        chat = RemoteChat(url, model="m", sleep=lambda _: None)
        with pytest.raises(DougongError):
            chat.complete([Message("user", "hi")])


def test_a_whole_answer_that_is_too_long(monkeypatch) -> None:
    monkeypatch.setattr("dougong.chat.remote.LONGEST", 1000)
    with answering(b" " * 5000) as url, pytest.raises(ChatError, match="more than 1,000 bytes"):
        RemoteChat(url, model="m", sleep=lambda _: None).complete([Message("user", "hi")])


@pytest.mark.parametrize("packed", ["gzip", "gzip, gzip", "br", "zstd", "deflate"])
def test_a_packed_answer_is_not_unpacked(packed: str) -> None:
    """Two kilobytes, packed twice, are a gigabyte; none of it may be made before somebody can say no."""
    bomb = gzip.compress(gzip.compress(b" " * 1000))
    with answering(bomb, packed) as url:
        chat = RemoteChat(url, model="m", sleep=lambda _: None)
        for ask in (chat.complete, lambda messages: list(chat.stream(messages))):
            with pytest.raises(ChatError, match="answered packed as"):
                ask([Message("user", "hi")])


@pytest.mark.parametrize("way", ["whole", "line", "events"])
def test_an_answer_that_drips_is_given_up(way: str) -> None:
    """A byte now and then keeps the timeout of the connection happy, for ever."""
    piece = {"whole": b" ", "line": b"x", "events": b": still here\n"}[way]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                for _ in range(600):
                    self.wfile.write(piece)
                    time.sleep(0.05)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        chat = RemoteChat(f"http://127.0.0.1:{server.server_port}/v1", model="m", whole=0.3)
        with pytest.raises(ChatError, match=r"had not ended its answer after 0\.3 s"):
            asked = [Message("user", "hi")]
            _ = chat.complete(asked) if way == "whole" else list(chat.stream(asked))
    finally:
        server.shutdown()
        server.server_close()
