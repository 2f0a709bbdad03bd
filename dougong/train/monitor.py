"""What a run tells: metrics.jsonl (one record a step), TensorBoard where it is installed, and a line for the reader."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from dougong.base import DougongError, atomic_file


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line that a crash cut off is left out."""
    records = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return records


class Monitor:
    """Appends records to RUN/metrics.jsonl, and to TensorBoard's log in RUN/tensorboard if `tensorboard` is set."""

    def __init__(self, run: Path, start: int, tensorboard: bool = False):
        """`start`: the step the run goes on from; records of later steps (of a killed run) are dropped."""
        self.path = run / "metrics.jsonl"
        kept = [record for record in read_metrics(self.path) if record["step"] < start]
        with atomic_file(self.path) as stream:
            stream.writelines(json.dumps(record) + "\n" for record in kept)
        self.stream: IO[str] = self.path.open("a", encoding="utf-8")
        self.board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard.writer import SummaryWriter
            except ImportError:
                raise DougongError(
                    'TensorBoard is not installed; pip install "dougong[monitor]", or leave it off'
                ) from None
            self.board = SummaryWriter(str(run / "tensorboard"), purge_step=start)

    def write(self, record: Mapping[str, Any]) -> None:
        """One record: `step` and numbers."""
        self.stream.write(json.dumps(dict(record)) + "\n")
        self.stream.flush()
        if self.board is not None:
            for name, value in record.items():
                if name != "step" and isinstance(value, (int, float)):
                    self.board.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self.stream.close()
        if self.board is not None:
            self.board.close()


class Progress:
    """A bar on a terminal; elsewhere a line every `every` seconds. Use as a context manager, then `update`."""

    def __init__(self, label: str, total: int, done: int = 0, every: float = 10.0, quiet: bool = False):
        self.label, self.total, self.every, self.quiet = label, total, every, quiet
        self.bar: Any = None
        self.first = done
        self.spoken = time.monotonic()

    def __enter__(self) -> Progress:
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self.bar = Bar(*columns, console=Console(stderr=True))
            self.bar.start()
            self.task = self.bar.add_task(self.label, total=self.total, completed=self.first, note="")
        return self

    def update(self, done: int, note: str = "") -> None:
        """`done` of the total, and a few words on how it goes."""
        if self.bar is not None:
            self.bar.update(self.task, completed=done, note=note)
        elif not self.quiet and (time.monotonic() - self.spoken >= self.every or done == self.total):
            self.spoken = time.monotonic()
            print(f"{self.label}: {done}/{self.total}  {note}".rstrip(), file=sys.stderr, flush=True)

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.stop()
