"""A script behind real HTTP: a small OpenAI-shaped server that also fails as the script says."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from dougong.base import DougongError
from dougong.chat.message import Message, Tool
from dougong.chat.scripted import Asked, Failure, cut, message_of

if TYPE_CHECKING:
    from dougong.chat.scripted import ScriptedChat, Step


@contextmanager
def serving(script: ScriptedChat) -> Iterator[str]:
    """Serve on a free port of this machine until the block ends; gives the URL, which ends with /v1."""
    stopping = threading.Event()

    class Handler(_Handler):
        chat = script
        stop = stopping

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        stopping.set()
        server.shutdown()
        server.server_close()
        thread.join()
    script.check()


class _Handler(BaseHTTPRequestHandler):
    chat: ScriptedChat
    stop: threading.Event
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the script remembers what it was asked."""

    def do_GET(self) -> None:
        if self.path.rstrip("/") == "/v1/models":
            self._json(200, {"object": "list", "data": [{"id": "script", "object": "model", "owned_by": "dougong"}]})
        else:
            self._json(404, _error(f"no such page: {self.path}", 404))

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length)
        if self.path.rstrip("/") != "/v1/chat/completions":
            return self._json(404, _error(f"no such page: {self.path}", 404))
        try:
            body = json.loads(raw)
            step = self.chat.next_step(_asked(body))
        except (ValueError, DougongError) as error:
            return self._json(400, _error(str(error), 400))
        if isinstance(step.answer, Failure):
            return self._fail(step.answer, bool(body.get("stream")))
        if body.get("stream"):
            return self._stream(step, bool((body.get("stream_options") or {}).get("include_usage")))
        return self._json(200, _whole(step))

    def _fail(self, how: Failure, stream: bool) -> None:
        if how.kind == "status":
            headers = {} if how.retry_after is None else {"Retry-After": f"{how.retry_after:g}"}
            self._json(how.status, _error(how.message, how.status), headers)
        elif how.kind == "malformed":
            self._send(200, b'{"choices": [{"message": {"content": "a', "application/json")
        elif how.kind == "hang":
            self.stop.wait(how.seconds)
            self.close_connection = True
        else:
            self._begin()
            if stream:
                piece = {"index": 0, "delta": {"content": "an answer that is cut"}}
                self._event({"object": "chat.completion.chunk", "choices": [piece]})
            self.close_connection = True  # without the end that chunked encoding needs

    def _stream(self, step: Step, usage: bool) -> None:
        message = message_of(step)
        pieces: list[dict[str, Any]] = [{"role": "assistant"}]
        pieces += [{"reasoning_content": text} for text in cut(message.reasoning, step.pieces)]
        pieces += [{"content": text} for text in cut(message.content, step.pieces)]
        for index, call in enumerate(message.tool_calls):
            whole = call.to_openai()
            arguments = whole["function"]["arguments"]
            opening = {**whole, "index": index, "function": {"name": call.name, "arguments": ""}}
            pieces.append({"tool_calls": [opening]})
            # Arguments come in pieces, as they do from other servers.
            pieces += [
                {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
                for text in cut(arguments, step.pieces)
            ]
        self._begin()
        for piece in pieces:
            self._event(_chunk([{"index": 0, "delta": piece, "finish_reason": None}]))
        self._event(_chunk([{"index": 0, "delta": {}, "finish_reason": _reason(message)}]))
        if usage:
            self._event({**_chunk([]), "usage": _usage(message)})
        self._event("[DONE]")
        self._chunk_of(b"")

    # -- HTTP ----------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _event(self, data: Any) -> None:
        text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
        self._chunk_of(f"data: {text}\n\n".encode())

    def _chunk_of(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _json(self, status: int, data: Any, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(data, ensure_ascii=False).encode(), "application/json", headers)

    def _send(self, status: int, data: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def _asked(body: Any) -> Asked:
    if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
        raise DougongError("the request has no messages")
    shape = body.get("response_format") or {}
    schema = (shape.get("json_schema") or {}).get("schema") if shape.get("type") == "json_schema" else None
    return Asked(
        messages=tuple(Message.from_openai(each, f"messages[{i}]") for i, each in enumerate(body["messages"])),
        tools=tuple(Tool.from_openai(each) for each in body.get("tools") or ()),
        schema=schema,
        body=body,
    )


def _error(message: str, status: int) -> dict[str, Any]:
    kind = "rate_limit_error" if status == 429 else "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def _reason(message: Message) -> str:
    return message.finish_reason or ("tool_calls" if message.tool_calls else "stop")


def _usage(message: Message) -> dict[str, int]:
    prompt, completion = (message.usage.prompt, message.usage.completion) if message.usage else (0, 0)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _chunk(choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": "script", "object": "chat.completion.chunk", "created": 0, "model": "script", "choices": choices}


def _whole(step: Step) -> dict[str, Any]:
    message = message_of(step)
    choice = {"index": 0, "message": message.to_openai(), "finish_reason": _reason(message)}
    data = {"id": "script", "object": "chat.completion", "created": 0, "model": "script"}
    return {**data, "choices": [choice], "usage": _usage(message)}
