"""A service that says what it is told to: the server's own work, without a model's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch

from dougong.base import DougongError
from dougong.tokenizer import Tokenizer, byte_tokenizer

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "[TOOL_CALLS]")
CONTEXT = 4096


class Said(NamedTuple):
    """The engine's event."""

    index: int
    token: int | None
    text: str
    logprob: float
    finish_reason: str | None
    top: tuple[tuple[int, float], ...] = ()
    choice: int = 0


class Standin:
    """says: the answer, or a function of (prompt ids, sampling, choice) that gives it. Byte b is token b.

    going: while it is False, no answer goes on after its first `lead` tokens. open: streams under way.
    """

    def __init__(self, says: str | Callable[..., str] = "hello", tokenizer: Tokenizer | None = None, batch: int = 4):
        self.tokenizer = tokenizer or byte_tokenizer(SPECIALS)
        spec = SimpleNamespace(vocab=self.tokenizer.vocab_size, context=CONTEXT)
        model = torch.nn.Module()  # without adapters
        lm = SimpleNamespace(
            model=model, tokenizer=self.tokenizer, spec=spec, generation={}, eos_ids=(258,), bos_id=256
        )
        self.engine = SimpleNamespace(lm=lm, max_batch=batch)
        self.says = says
        self.going = True
        self.lead = 0
        self.open = 0
        self.samplings: list[Any] = []
        self.prompts: list[list[int]] = []
        self.closed = False
        self.fails: Exception | None = None

    async def stream(
        self, prompt: list[int], sampling: Any, *, priority: int = 0, adapter: Any = None
    ) -> AsyncIterator[Said]:
        self.prompts.append(prompt)
        self.samplings.append(sampling)
        self.open += 1
        try:
            if self.fails is not None:
                raise self.fails
            for choice in range(sampling.n):
                said = self.says(prompt, sampling, choice) if callable(self.says) else self.says
                ids = self.tokenizer.encode(said, specials=True)
                decoder = self.tokenizer.stream()
                top = tuple((token, -1.0 - token) for token in range(sampling.top_logprobs))
                for at, token in enumerate(ids):
                    await asyncio.sleep(0)
                    while not self.going and at >= self.lead:
                        await asyncio.sleep(0.002)
                    full = at + 1 == sampling.max_tokens
                    yield Said(0, token, decoder.push(token), -0.5, "length" if full else None, top, choice)
                    if full:
                        break
                else:
                    yield Said(0, 258, "", -0.1, "stop", top, choice)
        finally:
            self.open -= 1

    async def embed(self, texts: list[Any]) -> list[np.ndarray]:
        if self.fails is not None:
            raise self.fails
        return [np.full(4, len(text), np.float32) for text in texts]

    def stats(self) -> dict[str, Any]:
        return {"running": self.open, "waiting": 0, "free_pages": 100 - self.open}

    def close(self) -> None:
        self.closed = True

    def prompt_text(self, which: int = -1) -> str:
        return self.tokenizer.decode(self.prompts[which], skip_special=False)


FAILURE = DougongError("the prompt can never fit")
