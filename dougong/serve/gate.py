"""How many answers are under way: beyond what runs and what may wait, clients are told when to come again."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from dougong.serve.errors import APIError


class Gate:
    """running: answers that the engine takes at once; queue: those that may wait. Used in one event loop."""

    def __init__(self, running: int, queue: int):
        self.running = running
        self.queue = queue
        self.inside = 0
        self.closed = False
        self._seconds = 1.0  # of one request, lately

    @contextmanager
    def enter(self, answers: int = 1) -> Iterator[None]:
        """Let a request for so many answers in, or raise APIError: 429 where it is full, 503 where the server ends.

        A request with more answers than fit at all is let in when nothing else is inside.
        """
        if self.closed:
            raise APIError(503, "the server is shutting down", code="shutting_down", headers={"Retry-After": "10"})
        if self.inside and self.inside + answers > self.running + self.queue:
            wait = self.wait(answers)
            raise APIError(
                429,
                f"the server has {self.inside} answers under way, which is as many as it takes; try again in {wait} s",
                code="server_busy",
                headers={"Retry-After": str(wait)},
            )
        self.inside += answers
        begun = time.monotonic()
        try:
            yield
        finally:
            self.inside -= answers
            self._seconds += 0.2 * (time.monotonic() - begun - self._seconds)

    def wait(self, answers: int) -> int:
        """Seconds until so many more may fit: those too many, at the rate at which answers ended lately."""
        excess = self.inside + answers - self.running - self.queue
        return max(1, math.ceil(self._seconds * excess / self.running))
