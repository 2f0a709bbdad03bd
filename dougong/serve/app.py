"""The routes put together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dougong.base import DougongError
from dougong.chat.format import ChatFormat
from dougong.serve import chat, completions, errors, plain
from dougong.serve.context import Serving
from dougong.serve.gate import Gate
from dougong.serve.guard import Guard
from dougong.serve.limits import Limits
from dougong.serve.log import Log
from dougong.serve.metrics import Metrics
from dougong.serve.requests import ChatBody, CompletionBody, EmbeddingBody, TokenizeBody

PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/words.js": ("words.js", "text/javascript; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
# The page loads nothing from elsewhere, and what a model writes is never run.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def create_app(service: Any, name: str, limits: Limits | None = None, log: Log | None = None) -> Any:
    """The server as an ASGI app around a Service, which it closes when it ends.

    name: of the model, as clients ask for it. The app's `serving` is what its routes share.
    """
    limits, log = limits or Limits(), log or Log()
    lm = service.engine.lm
    gate = Gate(service.engine.max_batch, limits.queue)
    metrics = Metrics(service.stats, lambda: gate.inside)
    serving = Serving(service, lm, name, limits, gate, log, metrics, _format(lm), int(time.time()))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        gate.closed = True
        await asyncio.to_thread(service.close)

    app = FastAPI(title="dougong", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    errors.install(app)
    _generation(app, serving)
    _others(app, serving)
    guarded = Guard(app, limits, log, metrics, frozenset(PAGE))
    if limits.origins:
        from starlette.middleware.cors import CORSMiddleware

        guarded = CORSMiddleware(guarded, allow_origins=limits.origins, allow_methods=["*"], allow_headers=["*"])
    guarded.serving = serving  # pyright: ignore[reportAttributeAccessIssue]
    return guarded


def _format(lm: Any) -> ChatFormat | None:
    try:
        return ChatFormat(lm.tokenizer)
    except DougongError:
        return None


def _generation(app: FastAPI, serving: Serving) -> None:
    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request, body: ChatBody) -> Response:
        return await chat.answer(serving, request, body)

    @app.post("/v1/completions")
    async def text_completions(request: Request, body: CompletionBody) -> Response:
        return await completions.answer(serving, request, body)

    @app.post("/v1/embeddings")
    async def embeddings(request: Request, body: EmbeddingBody) -> Response:
        return await plain.embeddings(serving, request, body)


def _others(app: FastAPI, serving: Serving) -> None:
    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [plain.model_card(serving, name) for name in serving.models]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        return JSONResponse(plain.model_card(serving, serving.check_model(name)))

    @app.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> Response:
        return await asyncio.to_thread(plain.tokenize, serving, body)

    @app.get("/health")
    async def health() -> Response:
        return plain.health(serving)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(serving.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    folder = resources.files("dougong.serve") / "page"
    for path, (file, kind) in PAGE.items():
        content = (folder / file).read_bytes()

        headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}
        app.router.routes.append(Route(path, partial(_page, Response(content, media_type=kind, headers=headers))))


async def _page(response: Response, _: Request) -> Response:
    return response
