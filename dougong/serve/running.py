"""A request's life: it ends with its client's connection, with its time, or with its last token."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import Request

if TYPE_CHECKING:
    from dougong.engine import Event

T = TypeVar("T")


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


async def until(events: AsyncIterator[T], deadline: float) -> AsyncIterator[T]:
    """The events up to a time of the loop's clock, then TimeoutError; the engine's work ends in every case."""
    async with aclosing(events) as source:  # pyright: ignore[reportArgumentType]  (the service's are generators)
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    event = await anext(source)
            except StopAsyncIteration:
                return
            yield event


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes; then ClientGone is raised."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
            raise ClientGone
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def merged(streams: Sequence[AsyncIterator[Event]]) -> AsyncIterator[tuple[int, Event]]:
    """Several streams as one, each event with its stream's number. The first error ends all of them."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:  # pyright: ignore[reportArgumentType]
            async for event in only:
                yield 0, event
        return
    queue: asyncio.Queue[tuple[int, Event | BaseException | None]] = asyncio.Queue()

    async def pump(number: int, stream: AsyncIterator[Event]) -> None:
        try:
            async with aclosing(stream) as source:  # pyright: ignore[reportArgumentType]
                async for event in source:
                    queue.put_nowait((number, event))
            queue.put_nowait((number, None))
        except Exception as error:
            queue.put_nowait((number, error))

    tasks = [asyncio.ensure_future(pump(number, stream)) for number, stream in enumerate(streams)]
    try:
        left = len(tasks)
        while left:
            number, event = await queue.get()
            if isinstance(event, BaseException):
                raise event
            if event is None:
                left -= 1
            else:
                yield number, event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
