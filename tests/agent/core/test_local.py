"""Agents on a model of our own: a random one, which says nothing of sense, and still ends, obeys a schema, replays."""

from __future__ import annotations

import pytest
import torch
from jsonschema import Draft202012Validator

from dougong.agent import Agent, Limits, native, react_text, replay
from dougong.chat import LocalChat, ScriptedChat
from dougong.cli.agent_setup import Room
from dougong.engine import Sampling
from dougong.hub import LanguageModel
from dougong.model import Model, decoder_spec, initialise
from dougong.tokenizer import byte_tokenizer
from tests.agent.core.doing import add, last


@pytest.fixture(scope="module")
def chat(unchecked) -> LocalChat:
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    spec = decoder_spec(tokenizer.vocab_size, width=16, depth=1, heads=2, context=2048, tied=False)
    return LocalChat(LanguageModel(initialise(Model(spec)), tokenizer))


@pytest.mark.parametrize("policy", [native, react_text])
def test_a_local_model_with_tools(chat: LocalChat, policy) -> None:
    sampling = Sampling(max_tokens=8, temperature=1.0, seed=1)
    agent = Agent(chat, [add], policy=policy, sampling=sampling, limits=Limits(steps=2))
    events = list(agent.run("2 + 3?"))
    assert last(events).reason in ("answered", "model", "steps") and last(events).steps >= 1
    assert not any(event.estimated for event in events if event.kind == "ModelAnswered")
    assert list(replay(events)) == events


def test_a_model_of_no_sense_obeys_a_schema(chat: LocalChat) -> None:
    pytest.importorskip("xgrammar")
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    agent = Agent(chat, sampling=Sampling(max_tokens=24, temperature=1.0, seed=2), limits=Limits(corrections=0))
    end = last(list(agent.run("one or two?", schema=schema)))
    # The first answer may be empty, which is for the policy to end on; what is answered obeys.
    assert end.reason == "answered" and end.value in ({"n": 1}, {"n": 2})


UNIQUE = {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2, "uniqueItems": True}
BOTH = {
    "allOf": [
        {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
        {"type": "object", "properties": {"b": {"type": "boolean"}}, "required": ["b"]},
    ]
}


@pytest.mark.parametrize("schema", [UNIQUE, BOTH])
def test_what_cannot_be_generated_is_checked(chat: LocalChat, schema) -> None:
    pytest.importorskip("xgrammar")
    sampling = Sampling(max_tokens=64, temperature=1.0, seed=3)
    agent = Agent(chat, sampling=sampling, limits=Limits(corrections=0, retries=0))
    events = list(agent.run("which?", schema=schema))
    assert last(events).reason == "answered" and Draft202012Validator(schema).is_valid(last(events).value)
    assert list(replay(events)) == events


def test_the_command_line_makes_room_in_a_small_context(chat: LocalChat) -> None:
    assert Room.of(chat) == Room(window=1536, result=3072, passages=2)
    assert Room.of(ScriptedChat([])) == Room()


def test_a_task_that_is_too_long_is_an_end_with_a_reason(chat: LocalChat) -> None:
    end = last(list(Agent(chat).run("far " * 2000)))
    assert end.reason == "model" and "context is 2048" in end.detail
