"""Calls of a tool: failures as one line, results as text, limits of time."""

from __future__ import annotations

import asyncio
import itertools
import threading
from dataclasses import dataclass
from typing import Any

import pytest

from dougong.agent.tool import ToolError, tool
from dougong.base import DougongError
from tests.agent.tools.conformance import unchecked


@dataclass
class Point:
    x: float
    y: float = 0.0


def recite() -> str:
    return "\ud800ok"


def endless():
    return itertools.count()


def fails(arguments: Any, function=None) -> str:
    with unchecked(), pytest.raises(ToolError) as error:
        tool(function or recite).call(arguments)
    return str(error.value)


def test_failures_are_one_line_that_names_the_tool():
    def wrong(kind: str) -> str:
        match kind:
            case "value":
                raise ValueError("no\nsuch\tthing " + "x" * 1000)
            case "named":
                raise DougongError("the lamp is broken; buy one")
            case "own":
                raise ToolError("mine")
            case "exit":
                raise SystemExit(3)
            case "empty":
                raise KeyError
            case _:
                return wrong(kind)

    assert fails({"kind": "value"}, wrong).startswith("wrong failed: ValueError: no such thing xxx")
    assert len(fails({"kind": "value"}, wrong)) < 400
    assert fails({"kind": "named"}, wrong) == "wrong: the lamp is broken; buy one"
    assert fails({"kind": "own"}, wrong) == "mine"
    assert fails({"kind": "exit"}, wrong) == "wrong failed: SystemExit: 3"
    assert fails({"kind": "empty"}, wrong) == "wrong failed: KeyError"
    assert fails({"kind": "deep"}, wrong) == "wrong failed: too deeply nested"
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    assert fails({"kind": deep}, wrong).startswith("wrong")


def test_an_interrupt_is_no_failure():
    @tool
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop.call({})
    with pytest.raises(KeyboardInterrupt):
        tool(timeout=5)(stop.function).call({})


def test_results_as_text():
    def give(kind: str) -> Any:
        return {"text": "é", "list": [1, {"a": "é"}], "none": None, "point": Point(1), "set": {2, 1},
                "object": threading, "inside": [Point(2)]}[kind]  # fmt: skip

    made = tool(give)
    assert made.call({"kind": "text"}) == "é"
    assert made.call({"kind": "list"}) == '[1, {"a": "é"}]'
    assert made.call({"kind": "none"}) == "null"
    assert made.call({"kind": "point"}) == '{"x": 1, "y": 0.0}'
    assert made.call({"kind": "inside"}) == '[{"x": 2, "y": 0.0}]'
    assert made.call({"kind": "set"}) == "[1, 2]"
    assert made.call({"kind": "object"}).startswith('"<module')
    assert tool(recite).call({}) == "?ok"
    with pytest.raises(ToolError, match="endless: it returned count, which gives its items one by one"):
        tool(endless).call({})


def test_a_late_tool_is_left_behind():
    released = threading.Event()

    @tool(timeout=0.05)
    def wait() -> str:
        released.wait(30)
        return "done"

    with pytest.raises(ToolError, match=r"wait took longer than its 0.05 seconds"):
        wait.call({})
    released.set()
    assert wait.call({}) == "done"


def test_a_tool_may_be_async():
    ended = threading.Event()

    @tool(timeout=0.5)
    async def sleep(seconds: float) -> str:
        try:
            await asyncio.sleep(seconds)
        finally:
            ended.set()
        return "rested"

    assert sleep.call({"seconds": 0}) == "rested"
    ended.clear()
    with pytest.raises(ToolError, match="sleep took longer"):
        sleep.call({"seconds": 60})
    assert ended.wait(10)  # it was cancelled, not left

    async def inside() -> str:
        return tool(sleep.function).call({"seconds": 0})  # where a loop runs already

    assert asyncio.run(inside()) == "rested"


def test_a_tool_s_own_timeout_error():
    @tool
    def ask() -> None:
        raise TimeoutError

    with pytest.raises(ToolError, match="ask failed: what it waited for took too long"):
        ask.call({})


def test_calls_side_by_side():
    barrier = threading.Barrier(4, timeout=20)

    @tool(timeout=30)
    def meet(number: int) -> int:
        barrier.wait()
        return number

    found: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda each=each: found.update({each: meet.call({"number": each})}))
        for each in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {each: str(each) for each in range(4)}
