"""The loop: requests wait, join the batch in groups, take one token a step in lock step, and leave when they end."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from dougong.base import DougongError
from dougong.engine.filters import choose
from dougong.engine.prompts import prompt_ids
from dougong.engine.request import Completion, Event, Request
from dougong.engine.rows import by_length, capacity_for, decode, gather, prefill
from dougong.engine.sampling import Sampling
from dougong.engine.score import score_tokens
from dougong.parts.state import Cache

if TYPE_CHECKING:
    from dougong.hub import LanguageModel


class Engine:
    """Generates with a language model. It holds no state between calls, so an interrupted call leaves none behind.

    lm              what `dougong.load` gives: .model, .tokenizer (None: prompts are ids, texts are ""), .spec, .eos_ids
    max_batch       requests that run side by side; the others wait
    prefill_tokens  prompt tokens that go through the model at once, which bounds the memory for activations
    """

    def __init__(self, lm: LanguageModel, max_batch: int = 32, prefill_tokens: int = 2048):
        for name, value in (("max_batch", max_batch), ("prefill_tokens", prefill_tokens)):
            if value < 1:
                raise DougongError(f"{name} is {value}; expected at least 1")
        self.lm = lm
        self.max_batch = max_batch
        self.prefill_tokens = prefill_tokens

    def generate(
        self, prompts: Sequence[str | Sequence[int]], sampling: Sampling | Sequence[Sampling] | None = None
    ) -> list[Completion]:
        """Complete every prompt; the answers come in the prompts' order. See `stream` for the arguments and errors."""
        requests = self._requests(prompts, sampling)
        events: list[list[Event]] = [[] for _ in requests]
        for event in self._run(requests):
            events[event.index].append(event)
        return [_completion(request, own) for request, own in zip(requests, events, strict=True)]

    def stream(
        self, prompts: Sequence[str | Sequence[int]], sampling: Sampling | Sequence[Sampling] | None = None
    ) -> Iterator[Event]:
        """Complete every prompt, yielding each token as soon as its text is certain; requests take turns.

        prompts: texts (encoded as the tokenizer does by default, special tokens read as plain text) or lists of ids.
        sampling: one for all, or one for each prompt. Closing the iterator ends the work.

        Raises DougongError before any work when a prompt is empty and there is no beginning-of-text id, is longer than
        the model's context, holds an id outside the vocabulary, or is text (or has stop strings) without a tokenizer.
        """
        return self._run(self._requests(prompts, sampling))

    def score(
        self, prompts: Sequence[str | Sequence[int]], completions: Sequence[str | Sequence[int]]
    ) -> list[list[float]]:
        """Log-probability of every token of each completion after its prompt, by a full forward pass without a cache.

        A text after a text is encoded with it, then cut where the prompt's own ids end: so the tokens are those that
        the model would have met. Raises DougongError as `stream` does.
        """
        if len(prompts) != len(completions):
            raise DougongError(f"{len(prompts)} prompts and {len(completions)} completions; give as many of each")
        pairs = []
        for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            first = prompt_ids(self.lm, prompt, f"prompts[{index}]")
            where = f"completions[{index}]"
            if isinstance(prompt, str) and isinstance(completion, str):
                whole = prompt_ids(self.lm, prompt + completion, where)
                pairs.append((whole[: len(first)], whole[len(first) :]))
            else:
                pairs.append((first, prompt_ids(self.lm, completion, where, continues=True)))
            if sum(map(len, pairs[-1])) > self.lm.spec.context:
                raise DougongError(
                    f"prompts[{index}] and {where} have {sum(map(len, pairs[-1]))} tokens; the model's context is "
                    f"{self.lm.spec.context}; shorten them"
                )
        with self._evaluating():
            return score_tokens(self.lm.model, pairs, self.prefill_tokens)

    def _requests(
        self, prompts: Sequence[str | Sequence[int]], sampling: Sampling | Sequence[Sampling] | None
    ) -> list[Request]:
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if sampling is None or isinstance(sampling, Sampling):
            samplings = [sampling or Sampling()] * len(prompts)
        else:
            samplings = list(sampling)
        if len(samplings) != len(prompts):
            raise DougongError(f"{len(samplings)} samplings for {len(prompts)} prompts; give one, or one for each")
        if self.lm.tokenizer is None and any(each.stop for each in samplings):
            raise DougongError("stop strings need a tokenizer, and this model has none; use stop_ids")
        eos_ids = frozenset(self.lm.eos_ids)
        requests = []
        for index, (prompt, each) in enumerate(zip(prompts, samplings, strict=True)):
            ids = prompt_ids(self.lm, prompt, f"prompts[{index}]")
            requests.append(Request(index, ids, each, self.lm.tokenizer, self.lm.spec.context, eos_ids))
        return requests

    def _run(self, requests: list[Request]) -> Iterator[Event]:
        waiting = deque(requests)
        running: list[Request] = []
        cache: Cache | None = None
        with self._evaluating():
            while waiting or running:
                kept = [row for row, request in enumerate(running) if not request.finished]
                parts = [(cache, kept)] if cache is not None and kept else []
                running = [running[row] for row in kept]
                moved = cache is not None and len(kept) < len(cache.lengths)
                while waiting and len(running) < self.max_batch:
                    fresh = [waiting.popleft() for _ in range(min(len(waiting), self.max_batch - len(running)))]
                    for full in (request for request in fresh if not request.room):
                        full.finished = True
                        yield Event(full.index, None, "", 0.0, "length")
                    for group in by_length([request for request in fresh if request.room]):
                        own, logits = prefill(self.lm.model, group, self.prefill_tokens)
                        yield from self._accept(group, logits)
                        stay = [row for row, request in enumerate(group) if not request.finished]
                        parts.append((own, stay))
                        running += [group[row] for row in stay]
                        moved = True
                if not running:
                    cache = None
                    continue
                longest = max(int(part.lengths[list(rows)].max()) for part, rows in parts if rows)
                if moved or cache is None or longest >= cache.capacity:
                    cache = gather(self.lm.model, parts, capacity_for(running, longest))
                logits = decode(self.lm.model, running, cache)
                yield from self._accept(running, logits)

    def _accept(self, requests: list[Request], logits: torch.Tensor) -> Iterator[Event]:
        """Choose every row's next token before any of them is told: the iterator may be left between two events."""
        with torch.inference_mode():
            tokens, logprobs = choose(
                logits, [request.sampling for request in requests], [request.generator for request in requests]
            )
            chosen = list(zip(requests, tokens.tolist(), logprobs.tolist(), strict=True))
        for request, token, logprob in chosen:
            yield from request.accept(token, logprob)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """The model in evaluation mode, and afterwards as it was: rollouts run in the middle of training."""
        training = self.lm.model.training
        self.lm.model.eval()
        try:
            yield
        finally:
            self.lm.model.train(training)


def _completion(request: Request, events: list[Event]) -> Completion:
    told = [event for event in events if event.token is not None]
    reason = events[-1].finish_reason
    assert reason is not None
    return Completion(
        tokens=[event.token for event in told if event.token is not None],
        text="".join(event.text for event in events),
        logprobs=[event.logprob for event in told] if request.sampling.logprobs else [],
        finish_reason=reason,
        prompt=request.prompt,
    )
