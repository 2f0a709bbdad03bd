"""The life of requests: clients that go, servers that are full, slow or ending; and what the log says of it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.serve.standin import Standin

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"model": "small", "messages": [{"role": "user", "content": "a secret"}]}


def halted(says: str = "x" * 100) -> Standin:
    service = Standin(says)
    service.going = False
    return service


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_a_client_that_goes_frees_its_pages(serve: Callable, path: str) -> None:
    server = serve(halted())
    body = HELLO if path == CHAT else {"prompt": ["a", "b"]}
    request = httpx.Request("POST", server.url + path, json=body)
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    with socket.create_connection((request.url.host, request.url.port or 80)) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + request.content)
        assert server.wait_for(lambda: server.service.open > 0), "the engine was not asked"
    assert server.wait_for(lambda: server.service.open == 0)
    assert server.wait_for(lambda: server.app.serving.gate.inside == 0)
    assert server.wait_for(lambda: bool(server.lines) and server.lines[-1]["status"] == 499)


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_a_client_that_goes_in_the_middle_of_a_stream(serve: Callable, path: str) -> None:
    server = serve(halted())
    server.service.lead = 9
    body = {**HELLO, "stream": True} if path == CHAT else {"prompt": "a", "max_tokens": 90, "stream": True}
    with httpx.stream("POST", server.url + path, json=body) as response:
        for number, _ in enumerate(response.iter_lines()):
            if number == 10:
                assert server.service.open == 1
                break
    assert server.wait_for(lambda: server.service.open == 0)
    assert server.app.serving.gate.inside == 0


def test_a_full_server_says_when_to_come_again(serve: Callable) -> None:
    server = serve(halted("hi"), queue=2)  # and four side by side
    with ThreadPoolExecutor(6) as pool:
        taken = [pool.submit(httpx.post, server.url + CHAT, json=HELLO, timeout=20) for _ in range(6)]
        assert server.wait_for(lambda: server.app.serving.gate.inside == 6)
        for stream in (False, True):
            refused = httpx.post(server.url + CHAT, json={**HELLO, "stream": stream})
            assert refused.status_code == 429
            assert int(refused.headers["Retry-After"]) >= 1
            assert refused.json()["error"]["type"] == "rate_limit_error"
        server.service.going = True
        assert [future.result().status_code for future in taken] == [200] * 6
    assert server.app.serving.gate.inside == 0
    assert httpx.post(server.url + CHAT, json=HELLO).status_code == 200


def test_more_answers_than_fit_wait_for_an_empty_server(serve: Callable) -> None:
    server = serve(Standin("hi"), queue=0)
    assert len(httpx.post(server.url + CHAT, json={**HELLO, "n": 9}).json()["choices"]) == 9


def test_a_request_has_its_time(serve: Callable) -> None:
    server = serve(halted(), seconds=0.1)
    late = httpx.post(server.url + CHAT, json=HELLO)
    assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
    assert server.wait_for(lambda: server.service.open == 0)


def test_time_that_is_over_in_the_middle_of_a_stream(serve: Callable) -> None:
    server = serve(halted(), seconds=1)
    server.service.lead = 9
    with httpx.stream("POST", server.url + CHAT, json={**HELLO, "stream": True}) as response:
        lines = response.iter_lines()
        next(lines)
        rest = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert rest[-1]["error"]["code"] == "timeout"
    assert server.service.open == 0


def test_no_request_is_lost_when_the_server_ends(serve: Callable) -> None:
    server = serve(halted("the whole answer"))
    results: list[httpx.Response] = []
    ask = lambda body: results.append(httpx.post(server.url + CHAT, json=body, timeout=20))  # noqa: E731
    asking = [threading.Thread(target=ask, args=({**HELLO, "stream": stream},)) for stream in (False, True)]
    for thread in asking:
        thread.start()
    assert server.wait_for(lambda: server.service.open == 2)
    server.app.serving.gate.closed = True
    assert httpx.get(server.url + "/health").status_code == 503
    refused = httpx.post(server.url + CHAT, json=HELLO)
    assert (refused.status_code, "Retry-After" in refused.headers) == (503, True)
    server.server.should_exit = True
    server.service.going = True
    for thread in asking:
        thread.join()
    assert [result.status_code for result in results] == [200, 200]
    assert all("e" in result.text for result in results)
    assert server.wait_for(lambda: server.service.closed)


def test_answers_that_the_end_cut_off_are_errors(serve: Callable) -> None:
    service = Standin("abc")
    plain = service.stream

    async def cut(*args: Any, **options: Any) -> Any:
        async for event in plain(*args, **options):
            yield event._replace(finish_reason="cancelled") if event.finish_reason else event

    service.stream = cut  # pyright: ignore[reportAttributeAccessIssue]
    assert httpx.post(serve(service).url + CHAT, json=HELLO).status_code == 503


def test_the_log_is_json_without_what_people_wrote(serve: Callable) -> None:
    server = serve(Standin("an answer"))
    answer = httpx.post(server.url + CHAT, json=HELLO)
    assert server.wait_for(lambda: len(server.lines) == 1)
    line = server.lines[0]
    assert line["id"] == answer.headers["x-request-id"]
    assert (line["event"], line["path"], line["status"], line["finish"]) == ("request", CHAT, 200, ["stop"])
    assert (line["generated_tokens"], line["stream"]) == (10, False)
    assert 0 <= line["first_seconds"] <= line["seconds"]
    assert "secret" not in server.written.getvalue()
    assert "an answer" not in server.written.getvalue()


def test_the_log_says_what_was_refused(serve: Callable) -> None:
    server = serve()
    httpx.post(server.url + CHAT, json={**HELLO, "n": 999})
    httpx.post(server.url + CHAT, json={**HELLO, "model": "other"})
    assert server.wait_for(lambda: len(server.lines) == 2)
    assert [(line["status"], line["refused"]) for line in server.lines] == [(400, "n"), (404, "model")]


def test_prompts_are_logged_where_asked(serve: Callable) -> None:
    server = serve(Standin("an answer"), log_prompts=True)
    httpx.post(server.url + CHAT, json=HELLO)
    httpx.post(server.url + "/v1/completions", json={"prompt": "another"})
    assert server.wait_for(lambda: len(server.lines) == 2)
    assert server.lines[0]["messages"] == HELLO["messages"]
    assert server.lines[0]["answers"][0]["content"] == "an answer"
    assert (server.lines[1]["prompt"], server.lines[1]["answers"]) == ("another", ["an answer"])
