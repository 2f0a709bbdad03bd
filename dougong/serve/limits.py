"""What a server allows."""

from __future__ import annotations

from dataclasses import dataclass

from dougong.base import DougongError


@dataclass(frozen=True)
class Limits:
    """The settings of a server.

    queue         requests that may wait beyond those that run; more are told to come again (429)
    max_tokens    new tokens of one answer at most
    answers       n at most
    prompts       prompts of one completion or embedding request at most
    body          bytes of a request at most
    seconds       for one request, waiting included
    drain         seconds for running requests to end after SIGTERM
    key           what clients must send as a bearer token; None: nothing
    origins       web pages of these origins may call ("https://example.org"); "*": of any
    hosts         names by which the server may be called, against pages that lie about their origin; empty: any
    log_prompts   write prompts and answers to the log
    """

    queue: int = 64
    max_tokens: int = 4096
    answers: int = 16
    prompts: int = 64
    body: int = 4 << 20
    seconds: float = 600.0
    drain: float = 30.0
    key: str | None = None
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    log_prompts: bool = False

    def __post_init__(self) -> None:
        for name, least in (("queue", 0), ("max_tokens", 1), ("answers", 1), ("prompts", 1), ("body", 1024)):
            if getattr(self, name) < least:
                raise DougongError(f"{name} is {getattr(self, name)}; expected at least {least}")
        for name in ("seconds", "drain"):
            if not getattr(self, name) > 0:
                raise DougongError(f"{name} is {getattr(self, name)}; expected more than 0")
        if self.key is not None and not self.key.strip():
            raise DougongError("the API key is empty; give one with at least one character, or none")
