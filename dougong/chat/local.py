"""A chat model that runs here: on an Engine, a Service that other threads use too, or a language model alone."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dougong.base import DougongError
from dougong.chat.delta import Delta
from dougong.chat.format import ChatFormat
from dougong.chat.message import Message, Tool, Usage
from dougong.chat.model import ChatError, ChatModel

if TYPE_CHECKING:
    from dougong.engine import Event, Sampling
    from dougong.hub import LanguageModel


class LocalChat(ChatModel):
    """model: a language model (what `dougong.load` gives), an Engine, or a Service.

    Several threads may chat at once on a Service, side by side; on an Engine they take turns. Inside a running event
    loop use `Service.stream`, or a thread for this.
    """

    def __init__(self, model: Any):
        from dougong.engine import Engine
        from dougong.hub import LanguageModel

        engine = Engine(model) if isinstance(model, LanguageModel) else getattr(model, "engine", model)
        if not isinstance(engine, Engine):
            raise DougongError(f"LocalChat takes a language model, an Engine or a Service, not {type(model).__name__}")
        self._engine = engine
        self._service: Any = model if hasattr(model, "engine") else None
        self._format = ChatFormat(self.lm.tokenizer)

    @property
    def lm(self) -> LanguageModel:
        return self._engine.lm

    def stream(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] | None = None,
        schema: dict[str, Any] | None = None,
        sampling: Sampling | None = None,
    ) -> Iterator[Delta]:
        tools = list(tools or ())
        if schema is not None and tools:
            raise DougongError("a schema leaves no room for calls; give tools or a schema, not both")
        sampling = sampling if sampling is not None else default_sampling(self.lm)
        if sampling.n != 1:
            raise DougongError(f"n is {sampling.n}; a chat model gives one answer, so ask again for another")
        if schema is not None:
            sampling = obeying(sampling, schema)
        prompt = self._format.prompt(messages, tools, strict=sampling.grammar is not None)
        reader = self._format.reader(prompt, tools)
        count, reason = 0, None
        for event in self._events(prompt.ids, sampling):
            count += event.token is not None
            yield from reader.push(self._format.text(event.token, event.text))
            reason = event.finish_reason or reason
        yield from reader.finish()
        yield Delta(finish_reason=finished(reason, reader.calls), usage=Usage(len(prompt.ids), count))

    def _events(self, ids: list[int], sampling: Sampling) -> Iterator[Event]:
        if self._service is None:
            yield from self._engine.stream([ids], sampling)
            return
        # A loop of our own, driven by this thread; the service's own thread does the work.
        loop = asyncio.new_event_loop()
        events = self._service.stream(ids, sampling)
        try:
            while True:
                try:
                    yield loop.run_until_complete(anext(events))
                except StopAsyncIteration:
                    return
        finally:
            loop.run_until_complete(events.aclose())
            loop.close()


def finished(reason: str | None, calls: int) -> str:
    """Why an answer with so many calls ended. Raises ChatError where the engine gave up."""
    if reason == "error":
        raise ChatError("the engine could not go on with this answer; see its log")
    if calls and reason != "length":
        return "tool_calls"
    return reason or "stop"


def obeying(sampling: Sampling, schema: dict[str, Any]) -> Sampling:
    """The same sampling, of answers that obey a JSON schema."""
    from dougong.engine.grammar import Grammar

    if sampling.grammar is not None:
        raise DougongError("the sampling has a grammar already; give it or a schema, not both")
    return dataclasses.replace(sampling, grammar=Grammar.json_schema(schema))


def default_sampling(lm: LanguageModel, **asked: Any) -> Sampling:
    """Sampling as the model's generation_config.json says; what was asked for (and is not None) comes first."""
    from dougong.engine import Sampling

    own = {
        name: lm.generation[name] for name in ("temperature", "top_p", "min_p") if lm.generation.get(name) is not None
    }
    if lm.generation.get("top_k"):  # 0 there means all
        own["top_k"] = lm.generation["top_k"]
    if lm.generation.get("do_sample") is False:
        own = {"temperature": 0.0}
    if lm.generation.get("repetition_penalty") is not None:
        own["repetition_penalty"] = lm.generation["repetition_penalty"]
    return Sampling(**{**own, **{name: value for name, value in asked.items() if value is not None}})
