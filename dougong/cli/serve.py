"""`dougong serve`: a model behind OpenAI's API, and a chat page."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from dougong.base import DougongError
from dougong.cli.options import Device, Dtype, Flag, ModelPath, Quantize, hint, open_model, parse

if TYPE_CHECKING:
    from dougong.hub import LanguageModel

KEY = "DOUGONG_API_KEY"


@dataclass(frozen=True)
class Serve:
    """Serve a model: OpenAI's API under /v1, a chat page at /, health at /health, numbers for Prometheus at /metrics.

    The key is read from the environment variable DOUGONG_API_KEY where --api-key is not given (others on this machine
    can see arguments). SIGTERM lets running requests end.

    examples:
      dougong serve runs/demo
      dougong serve runs/demo --port 9000 --api-key secret --host 0.0.0.0
      curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
        -d '{"messages": [{"role": "user", "content": "hello"}]}'
    """

    path: ModelPath
    """a model folder, a run folder, a llama2.c .bin file, or a hub id"""
    host: str = "127.0.0.1"
    """address to listen on; 0.0.0.0 for every one of this machine"""
    port: int = 8000
    """0 for any free one"""
    api_key: Annotated[str | None, hint("none")] = None
    """what clients must send as a bearer token"""
    adapter: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME=PATH")] = ()
    """an adapter folder (ours or PEFT's) that clients can ask for by this name instead of the base; may be repeated"""
    name: Annotated[str | None, hint("the folder's name")] = None
    """of the model, as clients ask for it"""
    max_batch: int = 32
    """answers that are generated side by side"""
    memory: Annotated[str | None, hint("a share of what is free", "SIZE")] = None
    """for the caches of running requests, such as 2GiB"""
    kv: Annotated[Literal["int8", "fp8"] | None, hint("as the weights")] = None
    """how cached keys and values are stored"""
    queue: int = 64
    """requests that may wait besides; more are answered 429"""
    max_tokens: int = 4096
    """new tokens of one answer at most"""
    max_body: int = 4 << 20
    """bytes of a request at most"""
    timeout: float = 600.0
    """seconds for one request, waiting included"""
    drain: float = 30.0
    """seconds for running requests to end after SIGTERM"""
    allow_origin: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """an origin whose web pages may call, such as https://example.org"""
    log_prompts: Flag = False
    """write prompts and answers to the log"""
    quantize: Quantize = None
    """of the weights while running"""
    dtype: Dtype = None
    """of the weights while running"""
    device: Device = None
    """where to run"""


def run(args: list[str]) -> int:
    options = parse(Serve, args, "serve")
    try:
        from dougong.serve import Limits, serve
    except ImportError as error:
        raise DougongError(
            f"serving needs the package {error.name}; install with: pip install 'dougong[serve]'"
        ) from None
    from dougong.serve.process import LOOPBACK, bound

    key = options.api_key or os.environ.get(KEY) or None
    local = options.host in LOOPBACK
    limits = Limits(
        queue=options.queue,
        max_tokens=options.max_tokens,
        body=options.max_body,
        seconds=options.timeout,
        drain=options.drain,
        key=key,
        origins=options.allow_origin,
        hosts=LOOPBACK if local else (),
        log_prompts=options.log_prompts,
    )
    from dougong.engine import Engine
    from dougong.engine.service import Service

    listener = bound(options.host, options.port)  # fails before the model is read
    lm = open_model(options.path, options.dtype, options.device, options.quantize)
    name = options.name or Path(options.path).name or options.path
    for each in options.adapter:
        _attach(lm, each, name)
    engine = Engine(lm, max_batch=options.max_batch, memory=options.memory, kv=options.kv)
    return serve(Service(engine), name, listener, limits)


def _attach(lm: LanguageModel, given: str, base: str) -> None:
    """Put the adapter of NAME=PATH on the model."""
    name, sign, path = given.partition("=")
    if not (name and sign and path):
        raise DougongError(f"--adapter {given}: expected NAME=PATH, such as --adapter legal=runs/legal/adapter")
    if name == base:
        raise DougongError(f"--adapter {given}: {name!r} is the base model's own name; give another, or --name")
    from dougong.engine.adapters import check_adapter
    from dougong.tune import load_adapter

    load_adapter(lm, path, name)
    check_adapter(lm.model, name)
