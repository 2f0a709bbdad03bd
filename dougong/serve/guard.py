"""What every request passes before a route sees it: the log, the caller's origin, the key, and the body's size."""

from __future__ import annotations

import asyncio
import hmac
import time
import traceback
import uuid
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dougong.serve.errors import APIError, as_api_error
from dougong.serve.limits import Limits
from dougong.serve.log import Log
from dougong.serve.metrics import Metrics

BODY_SECONDS = 30.0
"""For a request's body to arrive."""

OPEN = ("/health",)
"""Paths that need no key, besides the page's own files."""


class Guard:
    """The app behind it gets requests whose body is there, of callers who may call."""

    def __init__(self, app: ASGIApp, limits: Limits, log: Log, metrics: Metrics, pages: frozenset[str]):
        self._app = app
        self._limits = limits
        self._log = log
        self._metrics = metrics
        self._open = frozenset(OPEN) | pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record: dict[str, object] = {"id": uuid.uuid4().hex}
        scope.setdefault("state", {})["record"] = record
        begun = time.monotonic()
        scope["state"]["begun"] = begun
        status = 0

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                headers["X-Request-Id"] = str(record["id"])
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            await self._admit(scope, receive, sent)
        except Exception as error:
            self._fault(record, error)  # the client has its answer already, or never gets one
            if not status:
                await as_api_error(error).response()(scope, receive, sent)
        finally:
            seconds = time.monotonic() - begun
            route = scope.get("route")
            path = getattr(route, "path", "other")  # unknown paths would grow the metrics without end
            self._metrics.requests.labels(path, str(status or 499)).inc()
            self._metrics.seconds.labels(path).observe(seconds)
            if path not in self._open:
                facts = {"method": scope["method"], "path": scope["path"], "status": status or 499}
                self._log.write("request", **{**record, **facts, "seconds": round(seconds, 4)})

    def _fault(self, record: dict[str, object], error: Exception) -> None:
        """Where it happened; its message may quote a prompt."""
        frames = traceback.extract_tb(error.__traceback__)[-4:]
        places = [f"{frame.filename.rsplit('dougong', 1)[-1]}:{frame.lineno} {frame.name}" for frame in frames]
        told = str(error) if self._limits.log_prompts else None
        self._log.write("fault", id=record["id"], kind=type(error).__name__, message=told, at=places)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        try:
            self._check_caller(scope, headers)
            body = await self._body(headers, receive) if scope["method"] in ("POST", "PUT", "PATCH") else b""
        except APIError as error:
            scope["state"]["record"]["error"] = error.message
            await error.response()(scope, receive, send)
            return
        except _Gone:
            return
        told = False

        async def replay() -> Message:
            nonlocal told
            if told:
                return await receive()
            told = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    def _check_caller(self, scope: Scope, headers: Headers) -> None:
        host = _host(headers.get("host", ""))
        if self._limits.hosts and host not in self._limits.hosts:
            raise APIError(
                403, f"this server is not called {host!r}; start it with --host to be reached by other names"
            )
        origin = headers.get("origin")
        own = origin is None or origin.partition("://")[2] == headers.get("host")
        if not own and not {origin, "*"} & set(self._limits.origins):
            raise APIError(403, f"pages of {origin} may not call this server; start it with --allow-origin {origin}")
        if self._limits.key is None or scope["path"] in self._open or scope["method"] == "OPTIONS":
            return
        given = headers.get("authorization", "").removeprefix("Bearer ").strip()
        if not hmac.compare_digest(given.encode("latin-1"), self._limits.key.encode()):
            what = "the API key is wrong" if given else "an API key is needed"
            told = {"WWW-Authenticate": "Bearer"}
            raise APIError(401, f"{what}; send it as Authorization: Bearer KEY", code="invalid_api_key", headers=told)

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        """The whole body. Raises APIError as soon as it is too large, and when it comes too slowly."""
        too_large = APIError(413, f"the body is larger than {self._limits.body} bytes", code="request_too_large")
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._limits.body:
            raise too_large
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self._limits.body:
                        raise too_large
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise APIError(408, f"the body did not arrive within {BODY_SECONDS:g} s") from None


class _Gone(Exception):
    """The client went before its request was there."""


def _host(header: str) -> str:
    """The name alone, without the port."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return header
