"""What the routes share."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from dougong.base import nearest
from dougong.serve.errors import APIError
from dougong.serve.gate import Gate
from dougong.serve.limits import Limits
from dougong.serve.log import Log
from dougong.serve.metrics import Metrics

if TYPE_CHECKING:
    from dougong.chat.format import ChatFormat
    from dougong.hub import LanguageModel


@dataclass(frozen=True)
class Serving:
    """service: what generates; lm: its model, served as `name`; form: its chat format, None where it cannot chat."""

    service: Any
    lm: LanguageModel
    name: str
    limits: Limits
    gate: Gate
    log: Log
    metrics: Metrics
    form: ChatFormat | None
    created: int

    @cached_property
    def models(self) -> list[str]:
        """What clients can ask for: the base, and the adapters on it."""
        from dougong.tune import attached

        return [self.name, *attached(self.lm)]

    def check_model(self, asked: str | None, adapters: bool = True) -> str:
        """The model asked for, None meaning the base. Raises APIError for one that is not served (here)."""
        known = self.models if adapters else self.models[:1]
        if asked is not None and asked not in known:
            raise APIError(
                404, f"the model {asked!r} is not served here{nearest(asked, known)}", "model", "model_not_found"
            )
        return self.name if asked is None else asked

    def adapter(self, asked: str | None) -> str | None:
        """The adapter to generate with, as the engine takes it."""
        if len(self.models) == 1:
            return None
        return "" if asked in (None, self.name) else asked

    def deadline(self) -> float:
        """When a request that begins now must have ended, by the running loop's clock."""
        return asyncio.get_running_loop().time() + self.limits.seconds

    def room(self, prompt: int, asked: int | None, field: str) -> int:
        """New tokens for a prompt of so many: at most those asked for, fewer where the context ends first. Raises
        APIError, naming the prompt's `field`, where it leaves no room at all."""
        left = self.lm.spec.context - prompt
        if left < 1:
            told = f"{field} has {prompt} tokens, but the model's context is {self.lm.spec.context}; shorten it"
            raise APIError(400, told, field, "context_length_exceeded")
        return min(left, asked or self.limits.max_tokens)

    def told(self, request: Request, first: bool = False, **facts: Any) -> None:
        """Remember facts of a request for its line in the log; first: its first token has come."""
        record = request.scope["state"]["record"]
        if first and "first_seconds" not in record:
            seconds = time.monotonic() - request.scope["state"]["begun"]
            record["first_seconds"] = round(seconds, 4)
            self.metrics.first.observe(seconds)
        record.update(facts)

    def counted(self, request: Request, prompt: int, generated: int) -> dict[str, int]:
        """Count a request's tokens; returns them as responses tell them."""
        self.metrics.prompt.inc(prompt)
        self.metrics.generated.inc(generated)
        self.told(request, prompt_tokens=prompt, generated_tokens=generated)
        return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}
