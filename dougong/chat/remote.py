"""A chat model behind any OpenAI-compatible endpoint."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from dougong.base import DougongError
from dougong.chat.delta import Delta
from dougong.chat.message import Message, Tool
from dougong.chat.model import ChatError, ChatModel
from dougong.chat.sse import LONGEST, deltas, usage_of
from dougong.chat.wire import body_of, encoded

if TYPE_CHECKING:
    import httpx

    from dougong.engine import Sampling


P = TypeVar("P", str, bytes)


@dataclass(frozen=True)
class Retries:
    """When a request is sent again: after 408, 409, 429, a 5xx or a lost connection, `times` times at most.

    wait     seconds before the first time, doubled each time (less a random part, so that clients do not come together)
    longest  no wait is longer; a server that asks for a longer one (Retry-After) is not waited for
    """

    times: int = 4
    wait: float = 0.5
    longest: float = 60.0


class RemoteChat(ChatModel):
    """url: of the API, with or without /v1 (".../v1/chat/completions" is what is called).

    model    as the endpoint names it; None: the first that it lists
    key      sent as a bearer token, never shown in an error
    timeout  seconds without any byte from the endpoint
    whole    seconds of an answer from its head to its end, for one that drips and keeps every timeout happy
    extra    further fields of every request, such as {"chat_template_kwargs": {"enable_thinking": False}}
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        key: str | None = None,
        *,
        timeout: float = 120.0,
        whole: float = 3600.0,
        retries: Retries | None = None,
        extra: dict[str, Any] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ):
        try:
            import httpx
        except ImportError:
            raise DougongError("RemoteChat needs the package httpx; install it with: pip install httpx") from None
        if not url.startswith(("http://", "https://")):
            raise DougongError(f"the URL is {url!r}; expected one such as http://localhost:8000/v1")
        base = url.rstrip("/").removesuffix("/chat/completions")
        self.url = base if base.rsplit("/", 1)[-1].startswith("v") or base.count("/") > 2 else f"{base}/v1"
        self._model = model
        self._retries = retries or Retries()
        self._extra = dict(extra or {})
        self._sleep, self._longest = sleep, whole
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {})
        # Models think before the first byte, but a connection is made at once or not at all.
        limits = httpx.Timeout(timeout, connect=min(timeout, 10.0))
        self._client = httpx.Client(headers=headers, timeout=limits, follow_redirects=True)

    def __repr__(self) -> str:
        return f"RemoteChat({self.url!r}, model={self._model!r})"

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    @property
    def model(self) -> str:
        """The model's name at the endpoint."""
        if self._model is None:
            listed = self._fetch("GET", f"{self.url}/models")
            names = [each.get("id") for each in listed.get("data") or () if isinstance(each, dict)]
            if not names or not isinstance(names[0], str):
                raise ChatError(f"{self.url} lists no model; name one")
            self._model = names[0]
        return self._model

    def complete(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] | None = None,
        schema: dict[str, Any] | None = None,
        sampling: Sampling | None = None,
    ) -> Message:
        body = {**body_of(self.model, messages, tools, schema, sampling), **self._extra}
        data = self._fetch("POST", f"{self.url}/chat/completions", body)
        choices = data.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise ChatError(f"{self.url} answered without a choice: {data!r:.200}")
        said, reason = choices[0].get("message") or {}, choices[0].get("finish_reason")
        if not isinstance(said, dict):
            raise ChatError(f"{self.url} answered with the message {said!r:.80}; expected an object")
        message = Message.from_openai({"role": "assistant", **said}, f"the answer of {self.url}")
        return replace(
            message, finish_reason=reason if isinstance(reason, str) else None, usage=usage_of(data.get("usage"))
        )

    def stream(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] | None = None,
        schema: dict[str, Any] | None = None,
        sampling: Sampling | None = None,
    ) -> Iterator[Delta]:
        body = {**body_of(self.model, messages, tools, schema, sampling), **self._extra}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        with ExitStack() as stack:
            response = self._open(stack, "POST", f"{self.url}/chat/completions", body, whole=False)
            with _told(self.url, self._client.timeout.read):
                yield from deltas(_timely(response.iter_text(), self.url, self._longest), self.url)

    def _fetch(self, method: str, url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The whole answer, an object; asked for again as `Retries` says. Raises ChatError."""
        with ExitStack() as stack:
            response = self._open(stack, method, url, body, whole=True)
            return _json(response)

    def _open(
        self, stack: ExitStack, method: str, url: str, body: dict[str, Any] | None, whole: bool
    ) -> httpx.Response:
        """A response that is no error; `whole`: with its body read. Raises ChatError when all attempts failed."""
        sent: dict[str, Any] = {}
        if body is not None:
            sent = {"content": encoded(body), "headers": {"Content-Type": "application/json"}}
        attempt = 0
        while True:
            try:
                with _told(url, self._client.timeout.read), ExitStack() as own:
                    response = own.enter_context(self._client.stream(method, url, **sent))
                    _unpacked(response, url)
                    if response.status_code >= 400 or whole:
                        _read(response, url, self._longest)
                    if response.status_code >= 400:
                        raise _refused(response, url)
                    stack.push(own.pop_all())
                    return response
            except ChatError as error:
                wait = self._wait(error, attempt)
                if wait is None:
                    raise
            self._sleep(wait)
            attempt += 1

    def _wait(self, error: ChatError, attempt: int) -> float | None:
        """Seconds until the request is sent again; None: it is not."""
        repeatable = error.status in (None, 408, 409, 429) or (error.status or 0) >= 500
        if isinstance(error, _TooSlow) or not repeatable or attempt >= self._retries.times:
            return None
        if error.retry_after is not None:
            return error.retry_after if error.retry_after <= self._retries.longest else None
        return min(self._retries.longest, self._retries.wait * 2**attempt) * random.uniform(0.75, 1.0)


class _TooSlow(ChatError):
    """The time that the caller gives is over, so there is none for another attempt."""


@contextmanager
def _told(url: str, seconds: float | None) -> Iterator[None]:
    """Failures of the connection as errors of ours."""
    import httpx

    try:
        yield
    except httpx.TimeoutException:
        raise _TooSlow(f"{url} sent nothing for {seconds:g} s") from None
    except httpx.RemoteProtocolError as error:
        raise ChatError(f"{url} broke off its answer: {error}") from None
    except httpx.HTTPError as error:
        raise ChatError(f"{url} cannot be reached: {error or type(error).__name__}") from None


def _refused(response: httpx.Response, url: str) -> ChatError:
    try:
        error = response.json()["error"]
        told = error["message"] if isinstance(error, dict) else str(error)
    except (ValueError, KeyError, TypeError):
        told = " ".join(response.text.split())[:200] or response.reason_phrase
    after = response.headers.get("Retry-After", "")
    try:
        seconds = max(0.0, float(after))
    except ValueError:
        seconds = _until(after)
    return ChatError(f"{url} answered {response.status_code}: {told}", response.status_code, seconds)


def _until(date: str) -> float | None:
    """Seconds until an HTTP date."""
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(date).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _unpacked(response: httpx.Response, url: str) -> None:
    """Raises ChatError for an answer that is packed, which nobody asked for: two kilobytes, packed twice, are a
    gigabyte before their length can be looked at."""
    packed = response.headers.get("Content-Encoding", "identity").strip().lower()
    if packed not in ("", "identity"):
        raise ChatError(f"{url} answered packed as {packed!r:.40}, unasked; have it answer unpacked", 400)


def _timely(pieces: Iterator[P], url: str, seconds: float) -> Iterator[P]:
    """Pieces as they come. Raises ChatError at the first that comes after so many seconds."""
    until = time.monotonic() + seconds
    for piece in pieces:
        if time.monotonic() > until:
            raise _TooSlow(f"{url} had not ended its answer after {seconds:g} s")
        yield piece


def _read(response: httpx.Response, url: str, seconds: float) -> None:
    """Let the response have its body, as `read` would, but no endless one. Raises ChatError."""
    kept = bytearray()
    for piece in _timely(response.iter_bytes(), url, seconds):
        kept += piece
        if len(kept) > LONGEST:
            raise ChatError(f"{url} answered with more than {LONGEST:,} bytes", 400)
    response._content = bytes(kept)


def _json(response: httpx.Response) -> dict[str, Any]:
    text = response.read()
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise ChatError(f"{response.url} answered with something that is no JSON: {text[:120]!r}") from None
    if not isinstance(data, dict):
        raise ChatError(f"{response.url} answered with {data!r:.80}; expected an object")
    return data
