"""The engine behind asyncio: answers are the engine's, and whoever leaves frees his pages."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from dougong.base import DougongError
from dougong.engine import Engine, Event, Sampling, Service

from .kinds import all_free, moved, text
from .test_engine import LM, greedy, language_model

pytestmark = pytest.mark.usefixtures("unchecked")


def serve(call: Callable[[Service], Awaitable[Any]], **options: Any) -> tuple[Any, Service]:
    """What `call` gives with a service, which is closed afterwards."""
    service = Service(Engine(LM, page_size=4, **options))
    try:
        return asyncio.run(asyncio.wait_for(_awaited(call, service), 60)), service
    finally:
        service.close()
        service.close()


async def _awaited(call: Callable[[Service], Awaitable[Any]], service: Service) -> Any:
    return await call(service)


def test_many_answers_at_once() -> None:
    prompts = [text(LM.model, 5 + number, number) for number in range(8)]
    sampling = Sampling(max_tokens=7, seed=1, n=2)

    async def run(service: Service) -> Any:
        return await asyncio.gather(*(service.generate(prompt, sampling) for prompt in prompts))

    answers, service = serve(run)
    for own, prompt in zip(answers, prompts, strict=True):
        wanted = Engine(LM).generate([prompt], sampling)
        assert [(each.tokens, each.finish_reason) for each in own] == [(each.tokens, "length") for each in wanted]
    assert all_free(service.engine.runner)
    assert service.stats()["generated_tokens"] == 8 * 2 * 7


@pytest.mark.parametrize("way", ["close", "cancel"])
def test_whoever_leaves_frees_his_pages(way: str) -> None:
    async def run(service: Service) -> list[Event]:
        seen: list[Event] = []

        async def read() -> None:
            async for event in service.stream([1, 2, 3], greedy(1500)):
                seen.append(event)

        if way == "cancel":
            task = asyncio.create_task(read())
            while len(seen) < 3:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            stream = service.stream([1, 2, 3], greedy(1500))
            async for event in stream:
                seen.append(event)
                if len(seen) == 3:
                    break
            await stream.aclose()  # pyright: ignore[reportAttributeAccessIssue]
        neighbour = await service.generate([4], greedy(3))
        assert len(neighbour[0].tokens) == 3
        while service.stats()["running"]:
            await asyncio.sleep(0.001)
        assert all_free(service.engine.runner)
        return seen

    seen, _ = serve(run)
    assert len(seen) < 1500


def test_mistakes_are_told_to_who_made_them() -> None:
    async def run(service: Service) -> None:
        with pytest.raises(DougongError, match="token id 999"):
            await service.generate([999])
        with pytest.raises(DougongError, match="no adapter 'x'"):
            await service.generate([1], adapter="x")
        with pytest.raises(DougongError, match="token id 77"):
            await service.embed([[77]])
        assert len(await service.score([[1]], [[2, 3]])) == 1
        assert (await service.embed([[1, 2]])).shape == (1, 32)

    serve(run)


def test_a_failing_step_ends_in_events(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = language_model(moved(LM.spec))

    async def run(service: Service) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(lm.model, "run", lambda *_: 1 / 0)
            events = [event async for event in service.stream([1, 2], greedy(5))]
            assert [event.finish_reason for event in events] == ["error"]
        assert (await service.generate([1, 2], greedy(5)))[0].finish_reason == "length"

    service = Service(Engine(lm))
    try:
        asyncio.run(asyncio.wait_for(run(service), 60))
    finally:
        service.close()


def test_draining_ends_what_runs_and_takes_nothing_new() -> None:
    async def run(service: Service) -> None:
        answer = asyncio.create_task(service.generate([1, 2, 3], greedy(40)))
        while not service.stats()["running"]:
            await asyncio.sleep(0.001)
        assert await service.drain(30)
        assert len((await answer)[0].tokens) == 40
        with pytest.raises(DougongError, match="takes no more requests"):
            await service.generate([1])

    serve(run)


def test_closing_cancels_what_runs() -> None:
    async def run(service: Service) -> None:
        answer = asyncio.create_task(service.generate([1, 2, 3], greedy(2000)))
        while not service.stats()["running"]:
            await asyncio.sleep(0.001)
        assert not await service.drain(0.01)
        await asyncio.to_thread(service.close)
        assert (await answer)[0].finish_reason == "cancelled"
        assert all_free(service.engine.runner)

    serve(run)


def test_many_who_come_and_go() -> None:
    async def run(service: Service) -> None:
        async def one(number: int) -> None:
            got = 0
            async for event in service.stream(
                text(LM.model, 3 + number % 7, number), Sampling(max_tokens=12, seed=number)
            ):
                got += event.token is not None
                if number % 3 == 0 and got == number % 5 + 1:
                    return
            assert got == 12 or number % 3 == 0

        await asyncio.gather(*(one(number) for number in range(60)))
        while service.stats()["running"] or service.stats()["waiting"]:
            await asyncio.sleep(0.001)
        assert all_free(service.engine.runner)

    serve(run, memory=400_000)
