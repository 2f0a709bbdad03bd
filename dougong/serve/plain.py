"""The other routes: models, embeddings, tokens, health, metrics."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from dougong.base import DougongError
from dougong.chat.message import Message, Tool
from dougong.serve.completions import listed
from dougong.serve.context import Serving
from dougong.serve.errors import APIError
from dougong.serve.requests import EmbeddingBody, TokenizeBody
from dougong.serve.running import ClientGone, unless_gone


def model_card(serving: Serving, name: str) -> dict[str, Any]:
    """A model as /v1/models tells it; max_model_len as vLLM calls the context, parent what an adapter stands on."""
    card = {"id": name, "object": "model", "created": serving.created, "owned_by": "dougong"}
    if name != serving.name:
        card["parent"] = serving.name
    return {**card, "max_model_len": serving.lm.spec.context, "chat": serving.form is not None}


def health(serving: Serving) -> Response:
    """200 while requests are taken in, 503 while the server ends."""
    stats = serving.service.stats()
    known = {name: stats[name] for name in ("running", "waiting") if name in stats}
    state = "draining" if serving.gate.closed else "ok"
    return JSONResponse({"status": state, "model": serving.name, **known}, 503 if serving.gate.closed else 200)


async def embeddings(serving: Serving, request: Request, body: EmbeddingBody) -> Response:
    """One vector for each input."""
    from dougong.engine.prompts import prompt_ids

    serving.check_model(body.model, adapters=False)
    inputs = listed(body.input)
    if not inputs or len(inputs) > serving.limits.prompts:
        raise APIError(400, f"there are {len(inputs)} inputs; this server takes 1 to {serving.limits.prompts}", "input")
    try:
        ids = [prompt_ids(serving.lm, each, f"input[{at}]") for at, each in enumerate(inputs)]
    except DougongError as error:
        raise APIError(400, str(error), "input") from None

    async def work() -> list[Any]:
        with serving.gate.enter(len(inputs)):
            async with asyncio.timeout_at(serving.deadline()):
                return [np.asarray(vector, np.float32) for vector in await serving.service.embed(inputs)]

    try:
        vectors = await unless_gone(request, work())
    except ClientGone:
        return Response(status_code=499)
    if body.dimensions is not None and body.dimensions != len(vectors[0]):
        raise APIError(400, f"dimensions is {body.dimensions}, but this model gives {len(vectors[0])}", "dimensions")
    data = [
        {"object": "embedding", "index": at, "embedding": _written(vector, body.encoding_format)}
        for at, vector in enumerate(vectors)
    ]
    usage = serving.counted(request, sum(map(len, ids)), 0)
    usage.pop("completion_tokens")
    return JSONResponse({"object": "list", "data": data, "model": serving.name, "usage": usage})


def _written(vector: np.ndarray, how: str) -> Any:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if how == "base64" else vector.tolist()


def tokenize(serving: Serving, body: TokenizeBody) -> Response:
    """Ids of a text, or of a conversation up to where the assistant speaks."""
    serving.check_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise APIError(400, "give a prompt or messages, one of them", "prompt")
    if serving.lm.tokenizer is None:
        raise APIError(400, f"{serving.name} has no tokenizer", "model")
    if body.prompt is not None:
        ids = serving.lm.tokenizer.encode(body.prompt)
    elif serving.form is None:
        raise APIError(400, f"{serving.name} has no chat template; give a prompt", "messages")
    else:
        messages = [Message.from_openai(each, f"messages[{at}]") for at, each in enumerate(body.messages or ())]
        ids = serving.form.prompt(messages, [Tool.from_openai(each) for each in body.tools or ()]).ids
    texts = [serving.lm.tokenizer.token(token) for token in ids]
    return JSONResponse({"tokens": ids, "pieces": texts, "count": len(ids), "max_model_len": serving.lm.spec.context})
