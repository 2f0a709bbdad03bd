"""The server over the real engine: the same answers, and every page free at the end."""

from __future__ import annotations

import copy
import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from dougong.engine import Engine, Sampling
from dougong.engine.service import Service
from dougong.hub import LanguageModel, save
from dougong.model import Model, decoder_spec, initialise
from dougong.tokenizer import byte_tokenizer
from dougong.tune import LoRA, attach

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    network = initialise(Model(decoder_spec(tokenizer.vocab_size, 32, 2, 4, context=1024, tied=False)))
    network.embedding.weight.data.mul_(50)
    network.head.weight.data.mul_(50)
    return LanguageModel(network, tokenizer)


@pytest.fixture
def service(lm: LanguageModel) -> Iterator[Service]:
    made = Service(Engine(lm, max_batch=4, memory="32MiB"))
    yield made
    made.close()


def hello(text: str = "hi", **more: Any) -> dict[str, Any]:
    return {"model": "small", "messages": [{"role": "user", "content": text}], **more}


def test_the_engines_own_answer(serve: Callable, service: Service, lm: LanguageModel) -> None:
    server = serve(service)
    prompt = lm.tokenizer.render_ids([{"role": "user", "content": "hi"}], add_generation_prompt=True).ids
    sampling = Sampling(max_tokens=20, seed=5, temperature=0.9, top_p=0.9, n=2, top_logprobs=3)
    expected = Engine(lm, memory="32MiB").generate([prompt], sampling)
    asked = hello(max_tokens=20, seed=5, temperature=0.9, top_p=0.9, n=2, logprobs=True, top_logprobs=3)
    choices = server.client().chat.completions.create(**asked).choices
    assert [choice.message.content for choice in choices] == [done.text for done in expected]
    assert [choice.finish_reason for choice in choices] == [done.finish_reason for done in expected]
    for choice, done in zip(choices, expected, strict=True):
        told = [entry.logprob for entry in choice.logprobs.content]
        assert told == pytest.approx(done.logprobs[: len(told)], abs=1e-4)
        assert all(len(entry.top_logprobs) == 3 for entry in choice.logprobs.content)


def test_structured_output_parses(serve: Callable, service: Service) -> None:
    pytest.importorskip("xgrammar")
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    shape = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    tool = {"type": "function", "function": {"name": "save", "parameters": schema}}
    client = serve(service).client()
    for seed in range(2):
        answer = client.chat.completions.create(**hello(seed=seed, max_tokens=200, response_format=shape))
        assert set(json.loads(answer.choices[0].message.content)) == {"name", "age"}
        forced = hello(seed=seed, max_tokens=200, tools=[tool], tool_choice="required")
        call = client.chat.completions.create(**forced).choices[0].message.tool_calls[0]
        assert call.function.name == "save"
        assert isinstance(json.loads(call.function.arguments)["age"], int)


def test_adapters_are_models_of_their_own(serve: Callable, lm: LanguageModel) -> None:
    base = LanguageModel(copy.deepcopy(lm.model), lm.tokenizer)
    tuning = attach(base, LoRA(rank=4), match="*", name="loud")
    for parameter in tuning.parameters().values():
        torch.nn.init.normal_(parameter, 0.0, 0.5)
    made = Service(Engine(base, memory="32MiB"))
    try:
        client = serve(made).client()
        assert [each.id for each in client.models.list()] == ["small", "loud"]
        asked = {"prompt": "hi", "max_tokens": 12, "temperature": 0}
        answers = {name: client.completions.create(model=name, **asked) for name in ("small", "loud")}
    finally:
        made.close()
    plain = Engine(lm, memory="32MiB").generate(["hi"], Sampling(max_tokens=12, temperature=0.0))[0].text
    assert answers["small"].choices[0].text == plain
    assert answers["loud"].choices[0].text != plain and answers["loud"].model == "loud"


def test_embeddings(serve: Callable, service: Service, lm: LanguageModel) -> None:
    told = serve(service).client().embeddings.create(model="small", input=["one", "two"])
    expected = Engine(lm, memory="32MiB").embed(["one", "two"])
    for each, vector in zip(told.data, expected, strict=True):
        assert each.embedding == pytest.approx(vector.tolist(), abs=1e-5)


def test_a_crowd_with_clients_that_go_leaves_every_page_free(serve: Callable, service: Service) -> None:
    server = serve(service, queue=1000)
    pages = service.stats()["pages"]
    bad = [hello(n=999), hello(temperature=-1), {"messages": []}, hello("x" * 5000), hello(model="other")]

    def ask(seed: int) -> int:
        draw = random.Random(seed)
        if draw.random() < 0.2:
            return httpx.post(server.url + CHAT, json=draw.choice(bad)).status_code
        body = hello("a" * draw.randint(1, 200), max_tokens=draw.randint(1, 16), n=draw.randint(1, 3), seed=seed)
        if draw.random() < 0.4:
            return httpx.post(server.url + CHAT, json=body, timeout=60).status_code
        leaves = draw.choice([1, 3, 10, 1000])
        with httpx.stream("POST", server.url + CHAT, json={**body, "stream": True}, timeout=60) as response:
            for number, _ in enumerate(response.iter_lines()):
                if number >= leaves:
                    break
        return response.status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(ask, range(40)))
    assert set(statuses) <= {200, 400, 404}
    assert statuses.count(200) > 20
    assert server.wait_for(lambda: service.stats()["running"] == service.stats()["waiting"] == 0)
    assert server.wait_for(lambda: service.stats()["free_pages"] == pages)  # those that the cache keeps are free too
    assert server.app.serving.gate.inside == 0


def test_the_command_ends_without_losing_an_answer(lm: LanguageModel, tmp_path: Path) -> None:
    save(lm, tmp_path / "tiny")
    command = [sys.executable, "-m", "dougong", "serve", str(tmp_path / "tiny"), "--port", "0", "--memory", "32MiB"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line.startswith("tiny is served at http://127.0.0.1:"), process.stderr.read()
        url = line.split()[4]
        body = {"prompt": "x", "max_tokens": 150, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line.startswith("data: ")]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2][6:])["choices"][0]["finish_reason"] == "length"
        assert process.wait(timeout=60) == 0
        events = [json.loads(each)["event"] for each in process.stderr]
    assert events == ["ready", "ending", "request", "ended"]
