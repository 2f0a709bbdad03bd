"""One request: its prompt, its tokens so far, and why it ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from dougong.engine.sampling import Sampling
from dougong.engine.text import TextStream

if TYPE_CHECKING:
    from dougong.tokenizer import Tokenizer

FinishReason = Literal["stop", "length"]


class Event(NamedTuple):
    """One step of one request. Put together, a request's events are its Completion.

    index: the prompt's place in the list. token: None in a last event that brings only the reason. text: what the token
    completed, never half a character. logprob: see Completion. finish_reason: None until the last event.
    """

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]  (nobody looks for a value in an event)
    token: int | None
    text: str
    logprob: float
    finish_reason: FinishReason | None


@dataclass(frozen=True)
class Completion:
    """An answer.

    tokens         generated ids, an end-of-text id included; after a stop string, the fewest that spell the text
    text           what they spell as a continuation of the prompt, without end of text and stop string
    logprobs       of each token under the model's own, untempered distribution; empty where not asked for
    finish_reason  "stop" (an end-of-text id, a stop id, a stop string) or "length" (max_tokens, or the context's end)
    prompt         the prompt's ids
    """

    tokens: list[int]
    text: str
    logprobs: list[float]
    finish_reason: FinishReason
    prompt: list[int]


class Request:
    """A prompt on its way to a completion: the only mutable thing in the engine besides a batch's cache."""

    def __init__(
        self,
        index: int,
        prompt: list[int],
        sampling: Sampling,
        tokenizer: Tokenizer | None,
        context: int,
        eos_ids: frozenset[int],
    ):
        self.index = index
        self.prompt = prompt
        self.sampling = sampling
        self.room = min(sampling.max_tokens, context - len(prompt))  # tokens it may still generate
        self.size = len(prompt) + self.room  # tokens of prompt and answer together, at most
        self.last = -1  # the newest token: generated, not yet run through the model
        self._ends = frozenset(sampling.stop_ids) | (frozenset() if sampling.ignore_eos else eos_ids)
        self._text = TextStream(tokenizer, prompt, sampling.stop)
        self.generator = torch.Generator()
        if sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(sampling.seed)
        self.finished = False

    def accept(self, token: int, logprob: float) -> list[Event]:
        """Take the token chosen for this request; returns the events that are certain now."""
        self.last = token
        self.room -= 1
        ended = token in self._ends
        full = self.room == 0 and not ended
        pieces = self._text.push(token, logprob, silent=ended, last=ended or full)
        events = [Event(self.index, piece.token, piece.text, piece.logprob, None) for piece in pieces]
        if ended or full or self._text.stopped:
            self.finished = True
            reason: FinishReason = "stop" if ended or self._text.stopped else "length"
            if events:
                events[-1] = events[-1]._replace(finish_reason=reason)
            else:
                events = [Event(self.index, None, "", 0.0, reason)]
        return events
