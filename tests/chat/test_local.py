"""A model that runs here: a random one, led by a grammar to say what the contract needs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

pytest.importorskip("xgrammar", reason="grammars need xgrammar")

from dougong.base import DougongError
from dougong.chat import ChatModel, Delta, LocalChat, Message, Tool
from dougong.engine import Engine, Sampling
from dougong.engine.grammar import Grammar
from dougong.hub import LanguageModel
from dougong.model import Model, decoder_spec, initialise
from dougong.tokenizer import byte_tokenizer
from tests.chat.conformance import ASK, WEATHER, ChatModelContract

pytestmark = pytest.mark.usefixtures("unchecked")  # which costs ten times the steps


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    return LanguageModel(initialise(Model(decoder_spec(tokenizer.vocab_size, 16, 1, 2, context=1024))), tokenizer)


def written(reply: Message) -> str:
    """A message as the template's style writes it."""
    thought = f"<think>\n{reply.reasoning}\n</think>\n\n" if reply.reasoning else ""
    calls = [{"name": call.name, "arguments": call.arguments} for call in reply.tool_calls]
    tagged = [f"<tool_call>{json.dumps(call, ensure_ascii=False)}</tool_call>" for call in calls]
    return thought + "\n".join([reply.content, *tagged] if reply.content else tagged)


class Led(ChatModel):
    """The model under test, that can say but one thing."""

    def __init__(self, model: LocalChat, reply: Message):
        self.model = model
        self.sampling = Sampling(max_tokens=400, grammar=Grammar.choice([written(reply)]))

    def stream(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] | None = None,
        schema: dict[str, Any] | None = None,
        sampling: Sampling | None = None,
    ) -> Iterator[Delta]:
        yield from self.model.stream(messages, tools, schema, sampling or self.sampling)


class TestLocalOnAnEngine(ChatModelContract):
    @pytest.fixture(autouse=True)
    def made(self, lm: LanguageModel) -> None:
        self.chat = LocalChat(Engine(lm, memory="64MiB"))

    def model(self, reply: Message) -> ChatModel:
        return Led(self.chat, reply)


class TestLocalOnAService(ChatModelContract):
    @pytest.fixture(autouse=True)
    def made(self, lm: LanguageModel) -> Iterator[None]:
        from dougong.engine.service import Service

        service = Service(Engine(lm, memory="64MiB"))
        self.chat = LocalChat(service)
        yield
        service.close()
        assert service.engine.stats()["running"] == 0

    def model(self, reply: Message) -> ChatModel:
        return Led(self.chat, reply)


def test_the_engine_s_own_text(lm: LanguageModel) -> None:
    sampling = Sampling(max_tokens=12, seed=3)
    prompt = lm.tokenizer.render_ids([{"role": "user", "content": "hi"}], add_generation_prompt=True).ids
    direct = Engine(lm, memory="64MiB").generate([prompt], sampling)[0]
    answer = LocalChat(lm).complete(ASK, sampling=sampling)
    assert answer.content == direct.text
    assert answer.usage.prompt == len(prompt)
    assert answer.usage.completion == len(direct.tokens)
    assert answer.finish_reason == direct.finish_reason


def test_a_schema_is_obeyed(lm: LanguageModel) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    for seed in range(3):
        answer = LocalChat(lm).complete(ASK, schema=schema, sampling=Sampling(max_tokens=100, seed=seed))
        assert isinstance(json.loads(answer.content)["age"], int)


def test_what_cannot_be_asked(lm: LanguageModel) -> None:
    chat = LocalChat(lm)
    for options in ({"sampling": Sampling(n=2)}, {"schema": {}, "tools": [WEATHER]}):
        with pytest.raises(DougongError):
            chat.complete(ASK, **options)
    with pytest.raises(DougongError, match="not int"):
        LocalChat(3)
    with pytest.raises(DougongError, match="no tokenizer"):
        LocalChat(LanguageModel(lm.model))


def test_the_models_own_settings(lm: LanguageModel) -> None:
    from dougong.chat.local import default_sampling

    own = LanguageModel(lm.model, lm.tokenizer, generation={"temperature": 0.3, "top_k": 0, "top_p": 0.9})
    sampling = default_sampling(own, top_p=0.5, seed=None)
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.3, None, 0.5)
    assert default_sampling(LanguageModel(lm.model, generation={"do_sample": False})).greedy
