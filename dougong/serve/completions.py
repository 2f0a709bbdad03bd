"""POST /v1/completions: texts or ids continued, without a chat template."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from dougong.base import DougongError
from dougong.serve.choice import ended, finite, token_bytes
from dougong.serve.context import Serving
from dougong.serve.errors import APIError
from dougong.serve.requests import CompletionBody
from dougong.serve.running import ClientGone, merged, unless_gone, until
from dougong.serve.sampling import TOP, check_grammar, sampling_of
from dougong.serve.stream import streamed

if TYPE_CHECKING:
    from dougong.engine import Event, Sampling
    from dougong.tokenizer import Tokenizer

DEFAULT_TOKENS = 16
"""OpenAI's."""


@dataclass
class Text:
    """One answer under way."""

    index: int
    parts: list[str] = field(default_factory=list)
    logprobs: dict[str, list[Any]] = field(default_factory=lambda: empty_logprobs())
    tokens: int = 0
    reason: str | None = None

    def take(self, event: Event, tokenizer: Tokenizer | None) -> dict[str, list[Any]]:
        """Add an event; returns its own log-probabilities."""
        own = empty_logprobs()
        if event.token is not None:
            self.tokens += 1
            own["tokens"].append(_spelled(tokenizer, event.token))
            own["token_logprobs"].append(finite(event.logprob))
            own["top_logprobs"].append({_spelled(tokenizer, token): finite(logprob) for token, logprob in event.top})
            own["text_offset"].append(sum(map(len, self.parts)))
        self.parts.append(event.text)
        if event.finish_reason is not None:
            self.reason = ended(event.finish_reason)
        for name, values in own.items():
            self.logprobs[name] += values
        return own


def _spelled(tokenizer: Tokenizer | None, token: int) -> str:
    return str(token) if tokenizer is None else token_bytes(tokenizer, token).decode(errors="replace")


def empty_logprobs() -> dict[str, list[Any]]:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


@dataclass(frozen=True)
class Plan:
    prompts: list[list[int]]
    samplings: list[Sampling]
    logprobs: bool
    adapter: str | None

    @property
    def read(self) -> int:
        return sum(map(len, self.prompts))


def plan(serving: Serving, body: CompletionBody) -> Plan:
    """Raises APIError for what cannot be asked."""
    from dougong.engine.prompts import prompt_ids

    serving.check_model(body.model)
    for name in ("echo", "suffix"):
        if getattr(body, name):
            raise APIError(400, f"{name} is not served here; leave it out", name, "unsupported_parameter")
    prompts = listed(body.prompt)
    if not prompts or len(prompts) > serving.limits.prompts:
        raise APIError(
            400, f"there are {len(prompts)} prompts; this server takes 1 to {serving.limits.prompts}", "prompt"
        )
    top = 0 if body.logprobs is None else body.logprobs
    if not 0 <= top <= TOP:
        raise APIError(400, f"logprobs is {top}; this server takes 0 to {TOP}", "logprobs")
    asked = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    sampling = sampling_of(serving.lm, body, serving.limits, asked, top, best_of=body.best_of)
    if body.best_of is not None and (body.best_of > serving.limits.answers or (body.best_of > 1 and body.stream)):
        raise APIError(
            400, f"best_of is {body.best_of}; this server draws up to {serving.limits.answers}, unstreamed", "best_of"
        )
    check_grammar(sampling.grammar)
    try:
        ids = [
            prompt_ids(serving.lm, prompt, f"prompt[{at}]" if len(prompts) > 1 else "prompt")
            for at, prompt in enumerate(prompts)
        ]
    except DougongError as error:
        raise APIError(400, str(error), "prompt") from None
    rooms = [serving.room(len(each), asked, "prompt") for each in ids]
    samplings = [replace(sampling, max_tokens=room, min_tokens=min(sampling.min_tokens, room)) for room in rooms]
    return Plan(ids, samplings, body.logprobs is not None, serving.adapter(body.model))


def listed(prompt: str | list[str] | list[int] | list[list[int]]) -> list[Any]:
    """One prompt or many, as a list of prompts."""
    if isinstance(prompt, str) or (prompt and all(isinstance(each, int) for each in prompt)):
        return [prompt]
    return list(prompt)


async def answer(serving: Serving, request: Request, body: CompletionBody) -> Response:
    """The route."""
    made = await asyncio.to_thread(plan, serving, body)
    if serving.limits.log_prompts:
        serving.told(request, prompt=body.prompt)
    serving.told(request, stream=bool(body.stream), prompt_tokens=made.read)
    identity = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time())}
    identity["model"] = serving.check_model(body.model)
    try:
        if body.stream:
            usage = bool(body.stream_options and body.stream_options.include_usage)
            return await streamed(request, _chunks(serving, request, made, identity, body.priority or 0, usage))
        return await unless_gone(request, _whole(serving, request, made, identity, body.priority or 0))
    except ClientGone:
        return Response(status_code=499)


def _texts(made: Plan) -> list[list[Text]]:
    """By prompt and choice; the index counts through both."""
    n = made.samplings[0].n
    return [[Text(prompt * n + choice) for choice in range(n)] for prompt in range(len(made.prompts))]


async def _events(
    serving: Serving, request: Request, made: Plan, texts: list[list[Text]], priority: int
) -> AsyncGenerator[tuple[Text, Event, dict[str, list[Any]]], None]:
    answers = sum(sampling.best_of or sampling.n for sampling in made.samplings)
    with serving.gate.enter(answers):
        pairs = zip(made.prompts, made.samplings, strict=True)
        streams = [
            serving.service.stream(ids, sampling, priority=priority, adapter=made.adapter) for ids, sampling in pairs
        ]
        events = until(merged(streams), serving.deadline())
        try:
            async for number, event in events:
                serving.told(request, first=True)
                text = texts[number][event.choice]
                yield text, event, text.take(event, serving.lm.tokenizer)
        finally:
            await events.aclose()  # pyright: ignore[reportAttributeAccessIssue]  (it is a generator)


async def _whole(serving: Serving, request: Request, made: Plan, identity: dict[str, Any], priority: int) -> Response:
    texts = _texts(made)
    events = _events(serving, request, made, texts, priority)
    try:
        async for _ in events:
            pass
    finally:
        await events.aclose()
    flat = [text for group in texts for text in group]
    usage = serving.counted(request, made.read, sum(text.tokens for text in flat))
    told = [
        {
            "index": text.index,
            "text": "".join(text.parts),
            "logprobs": text.logprobs if made.logprobs else None,
            "finish_reason": text.reason,
        }
        for text in flat
    ]
    serving.told(request, finish=[text.reason for text in flat])
    if serving.limits.log_prompts:
        serving.told(request, answers=[each["text"] for each in told])
    return JSONResponse({**identity, "choices": told, "usage": usage})


async def _chunks(
    serving: Serving, request: Request, made: Plan, identity: dict[str, Any], priority: int, usage: bool
) -> AsyncGenerator[dict[str, Any], None]:
    texts = _texts(made)
    flat = [text for group in texts for text in group]
    events = _events(serving, request, made, texts, priority)
    try:
        async for text, event, logprobs in events:
            choice = {"index": text.index, "text": event.text, "logprobs": logprobs if made.logprobs else None}
            yield {**identity, "choices": [{**choice, "finish_reason": text.reason}]}
    finally:
        await events.aclose()
        counted = serving.counted(request, made.read, sum(text.tokens for text in flat))
        serving.told(request, finish=[text.reason or "cancelled" for text in flat])
    if usage:
        yield {**identity, "choices": [], "usage": counted}
