"""A server on a free port, in a thread of its own."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jaxtyping
import pytest

pytest.importorskip("fastapi", reason="the server needs fastapi")
pytest.importorskip("prometheus_client", reason="the server needs prometheus-client")
uvicorn = pytest.importorskip("uvicorn", reason="the server needs uvicorn")

import dougong.engine  # noqa: E402, F401  (loads torch now, not within the first request)
from dougong.serve import Limits, create_app  # noqa: E402
from dougong.serve.log import Log  # noqa: E402
from dougong.serve.process import bound  # noqa: E402
from tests.serve.standin import Standin  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def unchecked() -> Iterator[None]:
    """No checking of annotations at run time: these tests are about what is answered."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@dataclass
class Running:
    """A server: where it is, what generates, and what it wrote."""

    url: str
    service: Any
    app: Any
    server: Any
    written: io.StringIO

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.written.getvalue().splitlines()]

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """Whether it came true within some seconds."""
        end = time.monotonic() + 10
        while time.monotonic() < end:
            if condition():
                return True
            time.sleep(0.005)
        return condition()

    def client(self, **options: Any) -> Any:
        openai = pytest.importorskip("openai", reason="the official client is not installed")
        options = {"api_key": "none", "max_retries": 0, "timeout": 20, **options}
        return openai.OpenAI(base_url=f"{self.url}/v1", **options)


def _starting() -> Iterator[Callable[..., Running]]:
    started: list[tuple[Any, threading.Thread]] = []

    def start(service: Any = None, **limits: Any) -> Running:
        service = service or Standin()
        written = io.StringIO()
        app = create_app(service, "small", Limits(**limits), Log(written))
        listener = bound("127.0.0.1", 0)
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=5)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        started.append((server, thread))
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.002)
        return Running(f"http://127.0.0.1:{listener.getsockname()[1]}", service, app, server, written)

    yield start
    for server, thread in started:
        server.should_exit = True
        thread.join(timeout=10)
        assert not thread.is_alive(), "the server does not end"


@pytest.fixture
def serve() -> Iterator[Callable[..., Running]]:
    """serve(service, **limits) -> a running server named "small"."""
    yield from _starting()


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    """One server for tests that only send bad requests."""
    for start in _starting():
        yield start()
