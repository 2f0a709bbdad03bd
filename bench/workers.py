"""Contenders of a benchmark, each in a process of its own, as its users would run it; steps are timed by turns."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, final


def serve(step: Callable[[], Any], warm: int = 3) -> None:
    """In the worker: answer each line on standard input with the seconds of a step, after `warm` that do not count."""
    for _ in range(warm):
        step()
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        step()
        print(time.perf_counter() - began, flush=True)


@final
class Worker:
    """A process that `serve`s. Raises RuntimeError with its last words where it does not come to that."""

    def __init__(self, command: list[str]):
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([sys.executable, *command], text=True, stdin=pipe, stdout=pipe, stderr=pipe)
        assert self.process.stdout is not None and self.process.stderr is not None
        while (line := self.process.stdout.readline()) and line.strip() != "ready":
            pass
        if not line:
            raise RuntimeError((self.process.stderr.read().strip().splitlines() or ["it ended at once"])[-1])

    def step(self) -> float:
        """Seconds of one step."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
