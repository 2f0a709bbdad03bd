"""One HTTP exchange with a listed host, bounded in time and size, over the standard library."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

from dougong.agent.tools.addresses import Address, Allowed, ascii_name
from dougong.base import DougongError

REDIRECTS = 5
_CHUNK = 64 << 10


@dataclass(frozen=True)
class Page:
    """What came: the final address, the status, the headers (names in lower case), the body."""

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class _Target:
    """A checked URL."""

    secure: bool
    host: str
    port: int
    path: str
    url: str


def fetch(
    url: str, allowed: Allowed, method: str, body: bytes | None, headers: Mapping[str, str], seconds: float, size: int
) -> Page:
    """Ask, following redirects to listed hosts; `seconds` and `size` (bytes of the body) hold for all of it.

    Raises DougongError for an address that is no URL or not allowed, a host that does not answer or is late, a body
    that is too large.
    """
    with _Deadline(seconds) as deadline:
        for _ in range(REDIRECTS + 1):
            target = _target(url)
            page = _exchange(target, allowed, method, body, headers, deadline, size)
            where = page.headers.get("location")
            if page.status not in (301, 302, 303, 307, 308) or where is None:
                return page
            url = urljoin(target.url, where)
            if page.status in (301, 302, 303):  # RFC 9110, 15.4: what was sent is not sent again
                method, body = "GET", None
            _may_follow(target, _target(url), method)
        raise DougongError(f"{url!r:.80}: more than {REDIRECTS} redirects")


def _may_follow(one: _Target, other: _Target, method: str) -> None:
    """Raises DougongError for a redirect that would send headers in the clear which were sent under TLS, or a body to
    another host than the one that was asked (and, for a tool that writes, approved)."""
    if one.secure and not other.secure:
        raise DougongError(f"{one.url!r:.80} leads from https to {other.url!r:.80}; that is not followed")
    if method != "GET" and (one.host, one.port) != (other.host, other.port):
        raise DougongError(f"{one.url!r:.80} leads what was sent on to {other.url!r:.80}; ask that host itself")


def _target(url: str) -> _Target:
    """Read a URL strictly. Raises DougongError."""
    if any(sign.isspace() or not sign.isprintable() for sign in url) or "\\" in url:
        raise DougongError(f"the URL {url!r:.80} has a blank or a control character; write it percent-encoded")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise DougongError(f"the URL {url!r:.80} is wrong: {error}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise DougongError(f"the URL {url!r:.80} is not supported; expected http://... or https://...")
    if "@" in parts.netloc:
        raise DougongError(f"the URL {url!r:.80} holds a user name; that is not allowed")
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    query = f"?{quote(parts.query, safe='%/?:@!$&()*+,;=~-._' + chr(39))}" if parts.query else ""
    secure = parts.scheme == "https"
    return _Target(secure, ascii_name(host), port or (443 if secure else 80), path + query, url)


def _exchange(
    target: _Target,
    allowed: Allowed,
    method: str,
    body: bytes | None,
    headers: Mapping[str, str],
    deadline: _Deadline,
    size: int,
) -> Page:
    addresses = allowed.reach(target.host, target.port)
    connection = _Pinned(target, addresses, deadline)
    try:
        connection.request(method, target.path, body, {"Accept-Encoding": "identity", **headers})
        answer = connection.getresponse()
        encoding = answer.headers.get("Content-Encoding", "identity").lower()
        if encoding != "identity":  # a few bytes may unpack to gigabytes
            raise DougongError(f"{target.url!r:.80} answers packed as {encoding!r:.20}, unasked; that is not supported")
        kept = bytearray()
        while piece := answer.read1(_CHUNK):
            kept += piece
            if len(kept) > size:
                raise DougongError(f"{target.url!r:.80} answers with more than {size} bytes")
        deadline.check(target.url)
        return Page(target.url, answer.status, {key.lower(): value for key, value in answer.getheaders()}, bytes(kept))
    except (OSError, http.client.HTTPException, ValueError) as error:
        deadline.check(target.url)
        raise DougongError(f"{target.url!r:.80} cannot be fetched: {type(error).__name__}: {error!s:.120}") from None
    finally:
        connection.close()


class _Pinned(http.client.HTTPConnection):
    """A connection to addresses that were checked, not to whatever the name means a moment later."""

    def __init__(self, target: _Target, addresses: list[Address], deadline: _Deadline) -> None:
        super().__init__(target.host, target.port, timeout=deadline.seconds)
        self.target = target
        self.addresses = addresses
        self.deadline = deadline
        if target.secure:
            self.default_port = 443  # so that the Host header leaves it out

    def connect(self) -> None:
        error: OSError | None = None
        for address in self.addresses:
            try:
                plain = socket.create_connection((str(address), self.port), self.deadline.left())
            except OSError as failed:
                error = failed
                continue
            self.deadline.hold(plain)
            self.sock = plain
            if self.target.secure:
                self.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=self.host)
                self.deadline.hold(self.sock)
            return
        raise error or OSError("no address")


class _Deadline:
    """A clock that shuts the sockets it holds, for a server that drips a byte a second keeps every timeout happy."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end_at = time.monotonic() + seconds
        self._over = threading.Event()
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def hold(self, held: socket.socket) -> None:
        self._sockets.append(held)
        if self._over.is_set():
            self._end()

    def left(self) -> float:
        """Seconds until the end, for what is not a held socket yet. Raises TimeoutError where there are none."""
        left = self._end_at - time.monotonic()
        if left <= 0:
            raise TimeoutError("no time is left")
        return left

    def check(self, url: str) -> None:
        if self._over.is_set():
            raise DougongError(f"{url!r:.80} took longer than {self.seconds:g} seconds")

    def _end(self) -> None:
        self._over.set()
        for held in list(self._sockets):
            with contextlib.suppress(OSError, ValueError):
                held.shutdown(socket.SHUT_RDWR)
