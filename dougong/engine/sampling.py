"""What a request may ask of the engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dougong.base import DougongError


@dataclass(frozen=True)
class Sampling:
    """How the next tokens are chosen, and when to stop. The defaults sample from the model's own distribution.

    max_tokens   at most this many new tokens (fewer where the model's context ends first)
    temperature  logits are divided by it; 0 takes the most probable token (greedy)
    top_k        only the k most probable tokens; None for all
    top_p        only the fewest tokens whose probabilities sum to p or more; 1 for all
    min_p        only tokens at least min_p times as probable as the most probable one; 0 for all
    seed         of this request alone: what shares the batch does not matter. Requests with equal prompts and equal
                 seeds get equal answers; None draws a fresh seed
    stop         strings that end the text; they are cut from it, wherever token borders lie
    stop_ids     ids that end the text besides the model's own end-of-text ids
    ignore_eos   go on past end-of-text ids, up to max_tokens (for benchmarks)
    logprobs     report the chosen tokens' log-probabilities

    The temperature acts first, then top_k, top_p and min_p. Raises DougongError that names field, value and remedy.
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", _strings(self.stop))
        object.__setattr__(self, "stop_ids", _ids(self.stop_ids))
        if not _is_int(self.max_tokens) or self.max_tokens < 1:
            raise _wrong("max_tokens", self.max_tokens, "a whole number from 1")
        if not _is_number(self.temperature) or not 0 <= self.temperature < math.inf:
            raise _wrong("temperature", self.temperature, "0 for greedy, or a positive number")
        if self.top_k is not None and (not _is_int(self.top_k) or self.top_k < 1):
            raise _wrong("top_k", self.top_k, "a whole number from 1, or None for all tokens")
        if not _is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise _wrong("top_p", self.top_p, "a number above 0 and up to 1 (1 for all tokens)")
        if not _is_number(self.min_p) or not 0 <= self.min_p <= 1:
            raise _wrong("min_p", self.min_p, "a number from 0 (all tokens) to 1")
        if self.seed is not None and (not _is_int(self.seed) or not 0 <= self.seed < 1 << 63):
            raise _wrong("seed", self.seed, "a whole number from 0 to 2^63 - 1, or None for a fresh one")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def _wrong(name: str, value: Any, expected: str) -> DougongError:
    return DougongError(f"{name} is {value!r}; expected {expected}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _strings(value: Any) -> tuple[str, ...]:
    values = (value,) if isinstance(value, str) else value
    if not isinstance(values, Sequence) or not all(isinstance(each, str) and each for each in values):
        raise _wrong("stop", value, "strings of at least one character each")
    return tuple(values)


def _ids(value: Any) -> tuple[int, ...]:
    values = (value,) if _is_int(value) else value
    if not isinstance(values, Sequence) or not all(_is_int(each) and each >= 0 for each in values):
        raise _wrong("stop_ids", value, "token ids, whole numbers from 0")
    return tuple(values)
