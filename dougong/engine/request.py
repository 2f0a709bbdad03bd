"""One answer on its way: its prompt, its tokens so far, and why it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from dougong.engine.sampling import Sampling
from dougong.engine.text import TextStream

if TYPE_CHECKING:
    from dougong.engine.grammar import Matcher
    from dougong.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "cancelled", "error"]
Top = tuple[tuple[int, float], ...]


class Event(NamedTuple):
    """One step of one answer. Put together, an answer's events are its Completion.

    index: the prompt's place in the list, or its ticket's number. token: None in a last event that brings only the
    reason. text: what the token completed, never half a character. logprob, top: see Completion. finish_reason: None
    until the last event. choice: which of n answers to the prompt.
    """

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]  (nobody looks for a value in an event)
    token: int | None
    text: str
    logprob: float
    finish_reason: FinishReason | None
    top: Top = ()
    choice: int = 0


@dataclass(frozen=True)
class Completion:
    """An answer.

    tokens         generated ids, an end-of-text id included; after a stop string, the fewest that spell the text
    text           what they spell as a continuation of the prompt, without end of text and stop string
    logprobs       of each token under the model's own, untempered distribution; empty where not asked for
    finish_reason  "stop" (an end-of-text id, a stop id, a stop string, a grammar's end), "length" (max_tokens, or the
                   context's end), "cancelled", or "error" (see the ticket)
    prompt         the prompt's ids
    tops           of each token, the most probable (id, log-probability) at its place; empty where not asked for
    choice         which of n answers to the prompt
    """

    tokens: list[int]
    text: str
    logprobs: list[float]
    finish_reason: FinishReason
    prompt: list[int]
    tops: list[Top] = field(default_factory=list)
    choice: int = 0


def completed(prompt: list[int], sampling: Sampling, choice: int, events: Sequence[Event]) -> Completion:
    """One answer's events put together."""
    told = [event for event in events if event.token is not None]
    reason = events[-1].finish_reason
    assert reason is not None
    return Completion(
        tokens=[event.token for event in told if event.token is not None],
        text="".join(event.text for event in events),
        logprobs=[event.logprob for event in told] if sampling.logprobs else [],
        finish_reason=reason,
        prompt=prompt,
        tops=[event.top for event in told] if sampling.top_logprobs else [],
        choice=choice,
    )


class Request:
    """One answer to a prompt. What choosing a token needs of it is `choose.Row`.

    virtual   ids of a soft prompt, which the model reads before the prompt
    room      tokens that it may still generate
    size      tokens of all these and of the answer together, at most
    output    ids generated so far
    ends      ids that end it
    matcher   where its output stands in its grammar
    source    ids that the encoder of an encoder-decoder reads
    """

    def __init__(
        self,
        index: int,
        prompt: list[int],
        sampling: Sampling,
        tokenizer: Tokenizer | None,
        context: int,
        eos_ids: frozenset[int],
        choice: int = 0,
        matcher: Matcher | None = None,
        source: list[int] | None = None,
        virtual: list[int] | None = None,
    ):
        self.index = index
        self.choice = choice
        self.prompt = prompt
        self.virtual = virtual or []
        self.sampling = sampling
        self.matcher = matcher
        self.source = source
        self.output: list[int] = []
        self.room = max(0, min(sampling.max_tokens, context - len(self.virtual) - len(prompt)))
        self.size = len(self.virtual) + len(prompt) + self.room
        self.ends = frozenset(sampling.stop_ids) | (frozenset() if sampling.ignore_eos else eos_ids)
        self._text = TextStream(tokenizer, prompt, sampling.stop, sampling.include_stop)
        self.generator = torch.Generator()
        if sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed((sampling.seed + choice) % (1 << 63))
        self.finished = False

    @property
    def given(self) -> list[int]:
        """What the model reads before the answer."""
        return self.virtual + self.prompt

    @property
    def text(self) -> list[int]:
        """What the model has to have read before the next token."""
        return self.virtual + self.prompt + self.output

    def accept(self, token: int | None, logprob: float, top: Top = ()) -> list[Event]:
        """Take the token chosen for this answer; returns the events that are certain now. None: no token is allowed,
        because the grammar and the bans leave none."""
        if token is None:
            done = self.matcher is not None and self.matcher.completed
            return self.end("stop" if done else "error")
        self.output.append(token)
        self.room -= 1
        ended = token in self.ends
        if self.matcher is not None and not ended:
            self.matcher.accept(token)
            closed = self.matcher.finished
        else:
            closed = False
        full = self.room == 0 and not ended and not closed
        pieces = self._text.push(token, logprob, silent=ended, last=ended or closed or full, top=top)
        events = [
            Event(self.index, piece.token, piece.text, piece.logprob, None, piece.top, self.choice) for piece in pieces
        ]
        if not (ended or closed or full or self._text.stopped):
            return events
        return self.end("length" if full and not self._text.stopped else "stop", events)

    def end(self, reason: FinishReason, events: list[Event] | None = None) -> list[Event]:
        """The answer's end: `events`, the last of them with the reason; where there are none, one that brings it."""
        self.finished = True
        if events:
            return [*events[:-1], events[-1]._replace(finish_reason=reason)]
        return [Event(self.index, None, "", 0.0, reason, (), self.choice)]
