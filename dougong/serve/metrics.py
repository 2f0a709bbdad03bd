"""Numbers for Prometheus, in a registry of the app's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """stats: gives the service's numbers; inside: answers under way, waiting ones included."""

    def __init__(self, stats: Callable[[], dict[str, Any]], inside: Callable[[], int]):
        self._registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests by path and status.", ("path", "status"))
        self.prompt = self._counter("prompt_tokens", "Tokens read.")
        self.generated = self._counter("generated_tokens", "Tokens written.")
        self.seconds = self._histogram("request_seconds", "Time of a request, to its last byte.", ("path",))
        self.first = self._histogram("first_token_seconds", "Time to the first token of an answer.")
        self._stats = stats
        self._inside = inside
        self._registry.register(self)  # pyright: ignore[reportArgumentType]  (anything with `collect` will do)

    def _counter(self, name: str, about: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"dougong_{name}", about, labels, registry=self._registry)

    def _histogram(self, name: str, about: str, labels: tuple[str, ...] = ()) -> Histogram:
        return Histogram(f"dougong_{name}", about, labels, buckets=_SECONDS, registry=self._registry)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """What is true at the moment: the service's own numbers, whichever it has."""
        yield GaugeMetricFamily("dougong_inside", "Answers under way, waiting ones included.", value=self._inside())
        for name, value in sorted(self._stats().items()):
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                yield GaugeMetricFamily(f"dougong_engine_{name}", "As the engine says.", value=value)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)
