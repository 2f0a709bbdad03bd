"""Structured logs: one JSON object a line, without what people wrote unless that is asked for."""

from __future__ import annotations

import json
import sys
import threading
from datetime import UTC, datetime
from typing import Any, TextIO


class Log:
    """Writes lines to a stream (default: standard error as it is when a line comes)."""

    def __init__(self, stream: TextIO | None = None):
        self._stream = stream
        self._lock = threading.Lock()

    def write(self, event: str, **facts: Any) -> None:
        """One line: the time in UTC, what happened, and its facts (those that are None are left out)."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        known = {name: value for name, value in facts.items() if value is not None}
        line = json.dumps({"time": now, "event": event, **known}, ensure_ascii=False, default=str)
        stream = self._stream or sys.stderr
        with self._lock:
            try:
                stream.write(line + "\n")
                stream.flush()
            except (OSError, ValueError):  # a reader that went away must not end requests
                pass
