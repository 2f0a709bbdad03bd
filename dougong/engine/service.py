"""The engine's loop in a thread of its own, for programs that wait for many answers at once (asyncio)."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from dougong.base import DougongError
from dougong.engine.engine import Engine
from dougong.engine.prompts import prompt_ids
from dougong.engine.request import Completion, Event, completed
from dougong.engine.sampling import Sampling
from dougong.engine.score import Scored
from dougong.engine.ticket import Prompt, Ticket

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
_LOG = logging.getLogger(__name__)


class Closing(DougongError):
    """The service takes no more requests."""


@dataclass(eq=False)
class _Listener:
    """Who waits for a ticket's events: a queue in an event loop; None is its end."""

    ticket: Ticket
    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[Event | None] = field(default_factory=asyncio.Queue)


class Service:
    """Runs an engine in a thread. Its methods may be called from any event loop; while it lives, leave the engine's own
    `step` and `generate` alone."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self._commands: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._listeners: dict[int, _Listener] = {}
        self._draining = False
        self._closing = False
        self._ended = False
        self._stats = engine.stats()
        self._thread = threading.Thread(target=self._loop, name="dougong-engine", daemon=True)
        self._thread.start()

    async def stream(
        self,
        prompt: Prompt,
        sampling: Sampling | None = None,
        *,
        priority: int = 0,
        adapter: str | None = None,
        source: Prompt | None = None,
    ) -> AsyncIterator[Event]:
        """The events of one request, of all its answers. Leaving the iterator, or cancelling its task, ends the work
        and frees its pages. Raises DougongError, at the first event asked for, as `Engine.submit` does; an answer that
        breaks on the way ends with the reason "error"."""
        ticket = await asyncio.to_thread(self.engine.prepare, prompt, sampling, source, adapter)
        listener = _Listener(ticket, asyncio.get_running_loop())
        try:
            await self._ask(lambda: self._begin(listener, priority))
            while (event := await listener.queue.get()) is not None:
                yield event
        finally:
            if not ticket.done:
                self._tell(lambda: self._drop(listener))

    async def generate(
        self,
        prompt: Prompt,
        sampling: Sampling | None = None,
        *,
        priority: int = 0,
        adapter: str | None = None,
        source: Prompt | None = None,
    ) -> list[Completion]:
        """All answers to one prompt, n of them."""
        sampling = sampling or Sampling()
        ids = await asyncio.to_thread(prompt_ids, self.engine.lm, prompt, "the prompt")
        events: list[list[Event]] = [[] for _ in range(sampling.n)]
        async for event in self.stream(ids, sampling, priority=priority, adapter=adapter, source=source):
            events[event.choice].append(event)
        return [completed(ids, sampling, choice, own) for choice, own in enumerate(events)]

    async def embed(self, texts: Sequence[Prompt]) -> Tensor:
        """See `Engine.embed`; it takes its turn between steps."""
        return await self._ask(lambda: self.engine.embed(texts))

    async def score(
        self, prompts: Sequence[Prompt], completions: Sequence[Prompt], adapter: str | None = None
    ) -> list[list[float]]:
        """See `Engine.score`; it takes its turn between steps."""
        return await self._ask(lambda: self.engine.score(prompts, completions, adapter))

    async def score_texts(
        self, texts: Sequence[Prompt], top: int = 0, adapter: str | None = None
    ) -> list[list[Scored]]:
        """See `Engine.score_texts`; it takes its turn between steps."""
        return await self._ask(lambda: self.engine.score_texts(texts, top, adapter))

    def stats(self) -> dict[str, float]:
        """See `Engine.stats`; as of the last step, so that nobody waits."""
        return self._stats

    async def drain(self, seconds: float) -> bool:
        """Take no more requests and wait until all have ended; False when the time was too short."""
        self._draining = True
        end = asyncio.get_running_loop().time() + seconds
        while self._listeners or self._commands:
            if asyncio.get_running_loop().time() >= end:
                return False
            await asyncio.sleep(0.01)
        return True

    def close(self) -> None:
        """End everything; answers under way end with the reason "cancelled". Closing twice does nothing."""
        with self._wake:
            self._closing = self._draining = True
            self._wake.notify()
        self._thread.join()

    async def _ask(self, call: Callable[[], T]) -> T:
        """What `call` gives in the engine's thread."""
        future: Future[Any] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)

        if self._draining or not self._tell(run):
            raise Closing("the service is closing and takes no more requests")
        return await asyncio.wrap_future(future)

    def _tell(self, command: Callable[[], None]) -> bool:
        """Leave a command for the engine's thread; False where that has ended."""
        with self._wake:
            if self._ended:
                return False
            self._commands.append(command)
            self._wake.notify()
            return True

    def _begin(self, listener: _Listener, priority: int) -> None:
        self._listeners[listener.ticket.number] = listener
        self.engine.begin(listener.ticket, priority)

    def _drop(self, listener: _Listener) -> None:
        self._listeners.pop(listener.ticket.number, None)
        self.engine.cancel(listener.ticket)

    def _loop(self) -> None:
        while True:
            with self._wake:
                while not (self._commands or self._closing) and self.engine.idle:
                    self._wake.wait()
                if self._closing:
                    break
            while self._commands:
                self._commands.popleft()()
            try:
                events = self.engine.step()
            except Exception:
                # The step has ended what ran; who waits for it hears so from the next one.
                _LOG.exception("a step of the engine failed; the requests that ran in it end with an error")
                events = []
            self._deliver(events)
            self._stats = self.engine.stats()
        with self._wake:
            self._ended = True
        while self._commands:  # so that nobody waits for ever
            self._commands.popleft()()
        for listener in list(self._listeners.values()):
            self._deliver(self.engine.cancel(listener.ticket))

    def _deliver(self, events: list[Event]) -> None:
        """Events to those who wait, one call into each event loop."""
        batches: dict[asyncio.AbstractEventLoop, list[tuple[_Listener, Event | None]]] = {}
        for event in events:
            listener = self._listeners.get(event.index)
            if listener is not None:
                batches.setdefault(listener.loop, []).append((listener, event))
        for number, listener in list(self._listeners.items()):
            if listener.ticket.done:
                del self._listeners[number]
                batches.setdefault(listener.loop, []).append((listener, None))
        for loop, batch in batches.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_put, batch)


def _put(batch: list[tuple[_Listener, Event | None]]) -> None:
    for listener, event in batch:
        listener.queue.put_nowait(event)
