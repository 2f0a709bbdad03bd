"""SIGTERM to a real process under load: no request is lost within the drain time, and after it each is told."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from dougong.engine import Engine, Sampling
from dougong.hub import LanguageModel, save
from dougong.model import Model, decoder_spec, initialise
from dougong.tokenizer import byte_tokenizer

TOKENS = 120
COUNT = 45  # of which the engine takes 30 at once


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    network = initialise(Model(decoder_spec(tokenizer.vocab_size, 32, 2, 4, context=16384, tied=False)))
    network.embedding.weight.data.mul_(50)
    network.head.weight.data.mul_(50)
    return LanguageModel(network, tokenizer)


@contextmanager
def served(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """(the process, where it serves)"""
    command = [sys.executable, "-m", "dougong", "serve", str(folder), "--port", "0", "--max-batch", "30", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            line = process.stdout.readline()
            assert " is served at http://127.0.0.1:" in line, process.stderr.read()
            yield process, line.split()[4]
        finally:
            process.kill()


def body(number: int, tokens: int) -> dict[str, Any]:
    asked = {"prompt": f"number {number}", "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    return {**asked, "stream": number % 2 == 0}


def ask(url: str, number: int, tokens: int) -> httpx.Response:
    return httpx.post(f"{url}/v1/completions", json=body(number, tokens), timeout=120, verify=False)


def text(response: httpx.Response) -> str:
    """The whole answer, which must have come to its end."""
    assert response.status_code == 200, response.text
    if "event-stream" not in response.headers["content-type"]:
        choices = [response.json()["choices"][0]]
    else:
        lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
        assert lines[-1] == "[DONE]"
        choices = [json.loads(line)["choices"][0] for line in lines[:-1]]
    assert choices[-1]["finish_reason"] == "length"
    return "".join(choice["text"] for choice in choices)


def wait_until_taken(url: str, count: int, pool: list[Future[httpx.Response]]) -> dict[str, int]:
    """What /health says when all requests are inside."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        told = httpx.get(f"{url}/health", timeout=60).json()
        if told["running"] + told["waiting"] == count:
            return told
        assert not any(each.done() for each in pool), "an answer ended before all requests were there"
        time.sleep(0.01)
    raise AssertionError("the requests were not taken in")


def test_a_crowd_under_way_is_answered_to_its_end(lm: LanguageModel, tmp_path: Path) -> None:
    save(lm, tmp_path / "tiny")
    with served(tmp_path / "tiny", "--memory", "16MiB", "--drain", "60") as (process, url):
        with ThreadPoolExecutor(COUNT) as pool:
            answers = [pool.submit(ask, url, number, TOKENS) for number in range(COUNT)]
            told = wait_until_taken(url, COUNT, answers)
            assert told["running"] == 30 and told["waiting"] == COUNT - 30
            process.send_signal(signal.SIGTERM)
            texts = [text(each.result()) for each in answers]
        assert process.wait(timeout=60) == 0
        assert process.stderr is not None
        lines = [json.loads(line) for line in process.stderr]
    sampling = Sampling(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)
    alone = Engine(lm, memory="16MiB").generate([f"number {number}" for number in range(COUNT)], sampling)
    assert texts == [done.text for done in alone]
    requests = [line for line in lines if line["event"] == "request"]
    assert [line["status"] for line in requests] == [200] * COUNT
    assert [line["event"] for line in lines if line["event"] != "request"] == ["ready", "ending", "ended"]
    assert next(line for line in lines if line["event"] == "ending")["under_way"] == COUNT


def test_who_takes_longer_than_the_drain_time_is_told(lm: LanguageModel, tmp_path: Path) -> None:
    save(lm, tmp_path / "tiny")
    with served(tmp_path / "tiny", "--memory", "128MiB", "--drain", "1", "--max-tokens", "16000") as (process, url):
        with ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(ask, url, number, 16000) for number in range(8)]
            wait_until_taken(url, 8, answers)
            process.send_signal(signal.SIGTERM)
            done = [each.result() for each in answers]
        assert process.wait(timeout=60) == 0
        assert process.stderr is not None
        lines = [json.loads(line) for line in process.stderr]
    for number, response in enumerate(done):
        if number % 2:
            assert (response.status_code, response.json()["error"]["code"]) == (503, "cancelled")
            assert "Retry-After" in response.headers
        else:
            assert response.status_code == 200
            events = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
            assert events[-1] == "[DONE]" and json.loads(events[-2])["error"]["code"] == "cancelled"
    assert {line["event"] for line in lines} == {"ready", "ending", "request", "ended"}
