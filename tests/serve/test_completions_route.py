"""/v1/completions, /v1/embeddings and the small routes as the official client sees them."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from tests.serve.standin import CONTEXT, Standin


def test_a_text_goes_on(serve: Callable) -> None:
    server = serve(Standin(" world"))
    answer = server.client().completions.create(model="small", prompt="hello", max_tokens=50, stop=["x"])
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (" world", "stop")
    assert server.service.prompt_text().endswith("hello")
    assert server.service.samplings[0].stop == ("x",)
    assert answer.usage.completion_tokens == 7


def test_sixteen_tokens_unless_asked(serve: Callable) -> None:
    answer = serve(Standin("x" * 40)).client().completions.create(model="small", prompt=[1, 2, 3])
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("x" * 16, "length")


@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts_and_answers(serve: Callable, stream: bool) -> None:
    says = lambda prompt, sampling, choice: f"{bytes(prompt[-1:]).decode()}{choice}"  # noqa: E731
    client = serve(Standin(says)).client()
    asked = {"model": "small", "prompt": ["a", "b"], "n": 2}
    texts = ["", "", "", ""]
    if stream:
        for chunk in client.completions.create(**asked, stream=True):
            texts[chunk.choices[0].index] += chunk.choices[0].text
    else:
        for choice in client.completions.create(**asked).choices:
            texts[choice.index] = choice.text
    assert texts == ["a0", "a1", "b0", "b1"]


def test_log_probabilities(serve: Callable) -> None:
    client = serve(Standin("ab")).client()
    told = client.completions.create(model="small", prompt="x", logprobs=2).choices[0].logprobs
    assert told.tokens == ["a", "b", "<|im_end|>"]
    assert told.token_logprobs == [-0.5, -0.5, -0.1]
    assert told.text_offset == [0, 1, 2]
    assert [len(top) for top in told.top_logprobs] == [2, 2, 2]


def test_embeddings(serve: Callable) -> None:
    client = serve().client()
    for inputs in (["a", "bcd"], [[97], [98, 99, 100]]):
        vectors = client.embeddings.create(model="small", input=inputs)  # base64 on the way
        assert [each.embedding for each in vectors.data] == [[1.0] * 4, [3.0] * 4]
    plain = client.embeddings.create(model="small", input="ab", encoding_format="float")
    assert plain.data[0].embedding == [2.0] * 4


def test_models_tokens_and_health(serve: Callable) -> None:
    server = serve()
    assert [model.id for model in server.client().models.list()] == ["small"]
    assert server.client().models.retrieve("small").max_model_len == CONTEXT
    post = lambda body: httpx.post(f"{server.url}/tokenize", json=body)  # noqa: E731
    assert post({"prompt": "hé"}).json()["tokens"] == list("hé".encode())
    talk = post({"messages": [{"role": "user", "content": "hi"}]}).json()
    assert talk["pieces"][0] == "<|im_start|>"
    assert talk["count"] == len(talk["tokens"])
    assert post({}).status_code == 400
    health = httpx.get(f"{server.url}/health")
    assert (health.status_code, health.json()["status"], health.json()["model"]) == (200, "ok", "small")


def test_metrics_count(serve: Callable) -> None:
    server = serve(Standin("abc"))
    server.client().completions.create(model="small", prompt="x", max_tokens=3)
    text = httpx.get(f"{server.url}/metrics").text
    assert 'dougong_requests_total{path="/v1/completions",status="200"} 1.0' in text
    assert "dougong_generated_tokens_total 3.0" in text
    assert "dougong_first_token_seconds_count 1.0" in text
    assert "dougong_engine_free_pages 100.0" in text
