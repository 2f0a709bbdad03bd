"""A request as OpenAI's API has it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dougong.base import DougongError
from dougong.chat.message import Message, Tool

if TYPE_CHECKING:
    from dougong.engine import Sampling

# Fields of Sampling that OpenAI's API has, and those that other servers (our own, vLLM, llama.cpp) take besides.
_SAME = ("max_tokens", "temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "n")
_BEYOND = ("top_k", "min_p", "typical_p", "repetition_penalty", "min_tokens", "ignore_eos")


def body_of(
    model: str,
    messages: Sequence[Message],
    tools: Sequence[Tool] | None = None,
    schema: dict[str, Any] | None = None,
    sampling: Sampling | None = None,
) -> dict[str, Any]:
    """The JSON body. Of the sampling max_tokens, temperature and top_p are sent, of the rest only what differs from the
    defaults, for endpoints refuse fields that they do not know. Raises DougongError for what cannot be said."""
    body: dict[str, Any] = {"model": model, "messages": [message.to_openai() for message in messages]}
    if tools:
        body["tools"] = [tool.to_openai() for tool in tools]
    if schema is not None:
        named = {"name": "answer", "schema": schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": named}
    if sampling is not None:
        body |= _sampling(sampling)
    return body


def encoded(body: dict[str, Any]) -> bytes:
    """The body as it goes over the wire. Lone surrogates, which a tool's result or a file's name can hold and UTF-8 can
    not, become U+FFFD: what a stranger wrote must not end a run."""
    text = json.dumps(body, ensure_ascii=False)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def _sampling(sampling: Sampling) -> dict[str, Any]:
    import dataclasses

    defaults = {field.name: field.default for field in dataclasses.fields(sampling)}
    changed = {name: getattr(sampling, name) for name in defaults if getattr(sampling, name) != defaults[name]}
    body = {name: getattr(sampling, name) for name in ("max_tokens", "temperature", "top_p")}
    changed.pop("logprobs", None)  # reported by the local engine alone
    for name in (*_SAME, *_BEYOND):
        if name in changed:
            body[name] = changed.pop(name)
    if "stop" in changed:
        body["stop"] = list(changed.pop("stop"))
    if "logit_bias" in changed:
        body["logit_bias"] = {str(token): bias for token, bias in changed.pop("logit_bias")}
    if body.pop("n", 1) != 1:
        raise DougongError(f"n is {sampling.n}; a chat model gives one answer, so ask again for another")
    if changed:
        raise DougongError(f"an endpoint cannot be asked for {', '.join(sorted(changed))}; run the model here instead")
    return body
