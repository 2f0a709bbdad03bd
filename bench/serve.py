"""What stands between a model and a client: the engine's own work over a bare loop around the model, and the server's
over the engine. Random weights of the exact shape of Qwen2.5-0.5B; arms take turns within each round, in one process
(the clients live in another), and medians and ratios are printed.

    python bench/serve.py                          # int8, everything
    python bench/serve.py --storage bf16 --clients 4 --rounds 9
    python bench/serve.py --quick                  # 2 layers, few tokens: that it runs at all
    python bench/serve.py --quick --profile loop   # where the event loop's (or the engine's) thread spends its time

loop      the model with a contiguous cache, one row, argmax: what any engine needs at least
engine    `Engine.generate`, one request, or as many as clients, to prompts of different lengths
server    the same requests through HTTP, streamed, each by a client of its own
first     seconds from asking to the first token of one request: `Engine.stream`, and HTTP
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import pstats
import selectors
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from generators import QUICK, SHAPE, STORAGES, fill

Prompts = list[list[int]]


def build(storage: str, shape: dict[str, Any], threads: int) -> Any:
    """The random model as a LanguageModel in its storage."""
    import torch

    from dougong.base.allocator import keep_memory
    from dougong.compress import fuse, quantize
    from dougong.hub import LanguageModel
    from dougong.hub.families import family_named
    from dougong.model import Model

    torch.set_num_threads(threads)
    kind, method, group = STORAGES[storage]
    model = Model(family_named("qwen2").from_config(shape)).to(getattr(torch, kind))
    fill(model)
    lm = LanguageModel(model.eval(), family="qwen2")
    if method is not None:
        fuse(lm)
        quantize(lm, method, group)
    keep_memory()
    return lm


def loop(model: Any, prompt: list[int], n: int) -> float:
    """Seconds of the tokens after the first, one row, greedily."""
    import torch

    with torch.inference_mode():
        cache = model.cache(1, len(prompt) + n)

        def step(tokens: Any) -> Any:
            ctx = cache.context(tokens)
            hidden = model.run(tokens, ctx, cache).hidden
            cache.advance(tokens.shape[1])
            return model.logits(hidden[:, -1]).argmax(-1)

        token = step(torch.tensor([prompt]))
        int(token)
        began = time.perf_counter()
        for _ in range(n - 1):
            token = step(token[:, None])
            int(token)  # as an engine must, to know whether it is the end
        return time.perf_counter() - began


def alone(engine: Any, prompts: Prompts, n: int, processor: Any = None) -> tuple[float, float]:
    """(seconds to the first token of all, seconds of the rest). processor: of the requests' Sampling"""
    from dougong.engine import Sampling

    sampling = Sampling(max_tokens=n, temperature=0.0, ignore_eos=True, logprobs=False, processor=processor)
    began = time.perf_counter()
    waiting, first = len(prompts), 0.0
    seen: set[int] = set()
    for event in engine.stream(prompts, sampling):
        if event.index not in seen:
            seen.add(event.index)
            waiting -= 1
            if not waiting:
                first = time.perf_counter() - began
    return first, time.perf_counter() - began - first


class Server:
    """The server around an engine, in threads of this process, and the process of its clients."""

    def __init__(self, engine: Any, clients: int, profile: str | None):
        import uvicorn

        from dougong.engine import Service
        from dougong.serve import Limits, create_app
        from dougong.serve.log import Log
        from dougong.serve.process import bound

        self.service = Service(engine)
        self._sink = open("/dev/null", "w")  # noqa: SIM115
        app = create_app(self.service, "bench", Limits(queue=clients), Log(self._sink))
        listener = bound("127.0.0.1", 0)
        config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False)
        self.server = uvicorn.Server(config)
        self.busy: dict[int, list[float]] = {}  # seconds of a core a token, by requests at once
        self.profile = cProfile.Profile() if profile == "loop" else None
        self.thread = threading.Thread(target=self._run, args=(listener,), daemon=True)
        self.thread.start()
        assert self.thread.ident is not None
        self.clock = time.pthread_getcpuclockid(self.thread.ident)
        while not self.server.started:
            time.sleep(0.01)
        command = [sys.executable, __file__, "--client", f"127.0.0.1:{listener.getsockname()[1]}"]
        self.clients = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _run(self, listener: socket.socket) -> None:
        if self.profile:
            self.profile.enable()
        asyncio.run(self.server.serve(sockets=[listener]))
        if self.profile:
            self.profile.disable()

    def ask(self, prompts: Prompts, n: int) -> tuple[float, float]:
        """As `alone`, as the clients see it."""
        assert self.clients.stdin is not None and self.clients.stdout is not None
        body = {"max_tokens": n, "temperature": 0, "ignore_eos": True, "stream": True}
        self.clients.stdin.write(json.dumps([{**body, "prompt": prompt} for prompt in prompts]) + "\n")
        self.clients.stdin.flush()
        before = time.clock_gettime(self.clock)
        first, rest = json.loads(self.clients.stdout.readline())
        used = (time.clock_gettime(self.clock) - before) / (n * len(prompts))
        self.busy.setdefault(len(prompts), []).append(used)
        return first, rest

    def close(self) -> None:
        assert self.clients.stdin is not None
        self.clients.stdin.close()
        self.clients.wait()
        self.server.should_exit = True
        self.thread.join()


def clients(address: str) -> None:
    """For each list of bodies on standard input, send them all at once, each on a connection of its own, and tell the
    seconds to the first token of all and of the rest. A light client: it counts events and reads none."""
    parts = urlsplit(f"//{address}")
    for line in sys.stdin:
        bodies = [json.dumps(body).encode() for body in json.loads(line)]
        chosen = selectors.DefaultSelector()
        began = time.perf_counter()
        for body in bodies:
            connection = socket.create_connection((parts.hostname or "", parts.port or 0))
            head = f"POST /v1/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            chosen.register(connection, selectors.EVENT_READ, bytearray())
        waiting, first, begun = len(bodies), 0.0, set()
        while chosen.get_map():
            for key, _ in chosen.select():
                assert isinstance(key.fileobj, socket.socket)
                data = key.fileobj.recv(1 << 16)
                key.data.extend(data)
                if key.fd not in begun and b"data: " in key.data:
                    assert key.data.startswith(b"HTTP/1.1 200"), bytes(key.data[:500])
                    begun.add(key.fd)
                    waiting -= 1
                    first = first if waiting else time.perf_counter() - began
                if not data:
                    assert b"data: [DONE]" in key.data, bytes(key.data[-500:])
                    chosen.unregister(key.fileobj)
                    key.fileobj.close()
        print(json.dumps([first, time.perf_counter() - began - first]), flush=True)


def race(options: argparse.Namespace, shape: dict[str, Any]) -> None:
    import random

    from dougong.engine import Engine

    lm = build(options.storage, shape, options.threads)
    engine = Engine(lm, memory="2GiB", prefix_cache=False)
    server = Server(engine, options.clients, options.profile)
    n, size = options.tokens, options.prompt
    draw = random.Random(0)

    def prompts(count: int) -> Prompts:
        lengths = [size] if count == 1 else [size // 4 + size * row // 20 for row in range(count)]
        return [[draw.randrange(shape["vocab_size"]) for _ in range(length)] for length in lengths]

    results: dict[str, list[float]] = {}

    def one(count: int, ask: Callable[[Prompts, int], tuple[float, float]], name: str) -> dict[str, float]:
        first, rest = ask(prompts(count), n)
        told = {f"{name}, {count} at once": count * (n - 1) / rest}
        return told | ({f"first token, {name}": first} if count == 1 else {})

    for number in range(options.rounds + 1):  # the first round is to warm up
        told = {"loop, 1 at once": (n - 1) / loop(lm.model, prompts(1)[0], n)}
        for count in dict.fromkeys((1, options.clients)):
            for name, ask in (("engine", lambda made, n: alone(engine, made, n)), ("server", server.ask)):
                told |= one(count, ask, name)
        for name, value in told.items() if number else ():
            results.setdefault(name, []).append(value)
    server.close()
    if server.profile:
        pstats.Stats(server.profile).sort_stats("tottime").print_stats(40)
    report({name: statistics.median(values) for name, values in results.items()}, results, options.clients)
    for count, busy in server.busy.items():
        print(f"event loop:             {1e6 * statistics.median(busy):6.0f} us of a core a token, {count} at once")


def report(medians: dict[str, float], results: dict[str, list[float]], many: int) -> None:
    for name, value in medians.items():
        if not name.startswith("first"):
            print(f"{name:24}{value:10.1f} tokens/s")
    for name in ("engine", "server"):
        print(f"{f'first token, {name}':24}{1000 * medians[f'first token, {name}']:10.1f} ms")

    def paired(name: str, other: str) -> float:
        """Median over rounds of the ratio within a round: what else the machine does touches both alike."""
        return statistics.median(a / b for a, b in zip(results[name], results[other], strict=True))

    ratio = paired("loop, 1 at once", "engine, 1 at once")
    print(f"\nengine over the loop:   {100 * (ratio - 1):+6.1f} % time a token")
    for count in dict.fromkeys((1, many)):
        ratio = paired(f"engine, {count} at once", f"server, {count} at once")
        print(f"server over the engine: {100 * (ratio - 1):+6.1f} % time a token, {count} at once")
    later = [b - a for a, b in zip(results["first token, engine"], results["first token, server"], strict=True)]
    print(f"first token later by:   {1000 * statistics.median(later):+6.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", choices=list(STORAGES), default="int8")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", choices=["loop"])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--client", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        clients(options.client)
        return
    if options.quick:
        options.rounds, options.prompt, options.tokens = min(options.rounds, 3), 32, 32
    race(options, QUICK if options.quick else SHAPE)


if __name__ == "__main__":
    main()
