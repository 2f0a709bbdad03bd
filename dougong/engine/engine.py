"""The engine: requests in, events out."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.engine.adapters import check_adapter, virtual_ids
from dougong.engine.budget import parse_memory
from dougong.engine.embed import embed_tokens, states_of
from dougong.engine.evaluating import evaluating, modules
from dougong.engine.processor import LogitsProcessor
from dougong.engine.prompts import prompt_ids
from dougong.engine.request import Completion, Event, completed
from dougong.engine.runner import Runner
from dougong.engine.sampling import Sampling
from dougong.engine.scheduler import Scheduler
from dougong.engine.score import Scored, score_tokens
from dougong.engine.settle import settle
from dougong.engine.store import KV
from dougong.engine.ticket import Prompt, Ticket, Tickets
from dougong.parts.shapes import Float
from dougong.tune import attached

if TYPE_CHECKING:
    from dougong.hub import LanguageModel


class Engine:
    """Generates with a language model, many requests at once, and scores and embeds texts with it.

    lm              what `dougong.load` gives: .model, .tokenizer (None: prompts are ids, texts are ""), .spec, .eos_ids
    max_batch       sequences that run side by side; the others wait
    prefill_tokens  prompt tokens that go through the model at once, which bounds the memory for activations
    memory          for the state of sequences: bytes, or a text such as "2GiB"; None: two fifths of what is free now
    page_size       tokens that are stored, shared and found again together
    kv              None: keys and values as the model makes them; "int8", "fp8": as bytes, scaled by token and head
    prefix_cache    keep what is known of texts, for those that begin alike
    draft           a small model with the same tokenizer, for speculation

    Interrupted calls leave nothing behind. Calls from several threads take turns, step by step.
    """

    def __init__(
        self,
        lm: LanguageModel,
        max_batch: int = 32,
        prefill_tokens: int = 2048,
        memory: int | float | str | None = None,
        page_size: int = 16,
        kv: KV | None = None,
        prefix_cache: bool = True,
        draft: LanguageModel | None = None,
    ):
        for name, value in (("max_batch", max_batch), ("prefill_tokens", prefill_tokens), ("page_size", page_size)):
            if value < 1:
                raise DougongError(f"{name} is {value}; expected at least 1")
        self.lm = lm
        self.draft = draft
        self.max_batch = max_batch
        self.prefill_tokens = prefill_tokens
        self._memory = memory
        self._page_size, self._prefix_cache = page_size, prefix_cache
        self._kv: KV | None = kv
        self._lock = threading.RLock()
        self._tickets: dict[int, Ticket] = {}
        self._kept: list[Event] = []  # of submitted requests, met while another call ran the steps
        self._weights: tuple[Any, ...] = ()
        self._prompt_tokens = 0
        if memory is not None:
            parse_memory(memory, torch.device("cpu"))

    @property
    def runner(self) -> Runner:
        """Where sequences are stored; made at the first request."""
        if "_runner" in self.__dict__:  # who only asks does not wait for the step that runs
            return self._runner
        with self._lock:
            return self._runner

    @cached_property
    def _budget(self) -> int:
        return parse_memory(self._memory, self.lm.model.like.device)

    @cached_property
    def _runner(self) -> Runner:
        memory = self._budget if self.draft is None else self._budget - self._budget // 5
        # Searches fork before they drop: they hold up to twice their width for a moment.
        sequences = 2 * self.max_batch + 16
        settle(self.lm.model)
        return Runner(self.lm.model, memory, self._page_size, self._kv, sequences, self._prefix_cache)

    @cached_property
    def _scheduler(self) -> Scheduler:
        return Scheduler(self.runner, self.max_batch, self.prefill_tokens)

    @cached_property
    def _making(self) -> Tickets:
        return Tickets(self.lm, lambda: self.runner, self._draft_runner, self.prefill_tokens)

    def _draft_runner(self) -> Runner:
        """Where the draft model keeps its sequences: within a fifth of the memory."""
        if self.draft is None:
            raise DougongError("speculation is 'draft', but this engine has no draft model; give Engine(draft=...)")
        own, other = self.lm.tokenizer, self.draft.tokenizer
        if own is not None and other is not None and own.vocab_size != other.vocab_size:
            raise DougongError(
                f"the draft model's tokenizer has {other.vocab_size} tokens, the model's {own.vocab_size}; "
                "a draft model must have the same tokenizer"
            )
        self.draft.model.eval()
        settle(self.draft.model)
        memory = self._budget // 5
        return Runner(self.draft.model, memory, self._page_size, None, 2 * self.max_batch + 16, self._prefix_cache)

    def generate(
        self,
        prompts: Sequence[Prompt] | Tensor,
        sampling: Sampling | Sequence[Sampling] | None = None,
        source: Sequence[Prompt] | None = None,
        adapter: str | Sequence[str | None] | None = None,
    ) -> list[Completion]:
        """Complete every prompt; the answers come in the prompts' order, n to each. See `stream` for the rest.

        Raises DougongError also when the model gives no usable numbers.
        """
        tickets = self._making.several(prompts, sampling, source, adapter)
        events: dict[tuple[int, int], list[Event]] = {
            (index, choice): [] for index, ticket in enumerate(tickets) for choice in range(ticket.sampling.n)
        }
        for event in self._run(tickets):
            events[event.index, event.choice].append(event)
        return [
            completed(tickets[index].prompt, tickets[index].sampling, choice, own)
            for (index, choice), own in events.items()
        ]

    def stream(
        self,
        prompts: Sequence[Prompt] | Tensor,
        sampling: Sampling | Sequence[Sampling] | None = None,
        source: Sequence[Prompt] | None = None,
        adapter: str | Sequence[str | None] | None = None,
    ) -> Iterator[Event]:
        """Complete every prompt, yielding each token as soon as its text is certain; requests take turns.

        prompts: texts (encoded as the tokenizer does by default, special tokens read as plain text) or lists of ids.
        sampling: one for all, or one for each prompt. source: of each prompt what the encoder of an encoder-decoder
        reads; the prompt is then how the decoder begins. adapter: the name of an attached one for all prompts, or one
        for each; None: the model as it is, with every adapter that is on; "": the base alone. Closing the iterator
        ends the work.

        Raises DougongError before any work when a prompt is empty and there is no beginning-of-text id, is longer than
        the model's context, holds an id outside the vocabulary, or is text (or has stop strings) without a tokenizer;
        and when a request could never fit into the engine's memory.
        """
        # Not a generator itself: that would take requests, and refuse them, only when somebody looks.
        return self._run(self._making.several(prompts, sampling, source, adapter))

    def submit(
        self,
        prompt: Prompt,
        sampling: Sampling | None = None,
        priority: int = 0,
        source: Prompt | None = None,
        adapter: str | None = None,
    ) -> Ticket:
        """Put a request in line; `step` brings its events, whose index is the ticket's number. Higher priorities go
        first, and take the place of lower ones that run. Raises DougongError as `stream` does."""
        ticket = self.prepare(prompt, sampling, source, adapter)
        self.begin(ticket, priority)
        return ticket

    def prepare(
        self,
        prompt: Prompt,
        sampling: Sampling | None = None,
        source: Prompt | None = None,
        adapter: str | None = None,
    ) -> Ticket:
        """The first half of `submit`: checks the request and encodes its texts, and may run beside a step."""
        return self._making.one(prompt, sampling or Sampling(), "the prompt", source, adapter)

    def begin(self, ticket: Ticket, priority: int = 0) -> None:
        """The second half of `submit`: puts a prepared request in line."""
        with self._lock:
            self._begin(ticket, None, priority)

    def cancel(self, ticket: Ticket) -> list[Event]:
        """End a request now; returns its last events ("cancelled"), none if it had ended before."""
        with self._lock:
            self._tickets.pop(ticket.number, None)
            ticket.done = True
            return [] if ticket.job is None else self._scheduler.cancel(ticket.job)

    def step(self) -> list[Event]:
        """Run one step of everything that was submitted; returns the events that it brought, none when idle."""
        with self._lock:
            kept, self._kept = self._kept, []
            if self._scheduler.idle:
                return kept
            if self.lm.model.training:
                with evaluating(self.lm.model):
                    return kept + self._stepped()
            return kept + self._stepped()

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits, and no event is left to be told."""
        return self._scheduler.idle and not self._kept

    def stats(self) -> dict[str, float]:
        """Counts, now and so far."""
        with self._lock:
            runner, scheduler = self.runner, self._scheduler
            prefixes = runner.prefixes
            return {
                "running": len(scheduler.running),
                "waiting": len(scheduler.waiting),
                "pages": sum(pages.total for pages in runner.pages),
                "free_pages": sum(pages.free for pages in runner.pages),
                "cached_pages": sum(pages.idle for pages in runner.pages),
                "free_bytes": runner.free_bytes,
                "prompt_tokens": self._prompt_tokens,
                "generated_tokens": scheduler.generated,
                "prefix_asked_tokens": prefixes.asked if prefixes else 0,
                "prefix_hit_tokens": prefixes.hit if prefixes else 0,
                "preempted": scheduler.preempted,
            }

    def embed(self, texts: Sequence[Prompt]) -> Float[Tensor, "N D"]:
        """An embedding for each text: what the model's own pooling gives, else the mean of the last hidden states,
        brought to length 1. Raises DougongError as `stream` does."""
        ids = [prompt_ids(self.lm, text, f"texts[{index}]") for index, text in enumerate(texts)]
        with self._lock, evaluating(self.lm.model):
            return embed_tokens(self.lm.model, ids, self.prefill_tokens)

    def hidden_states(self, texts: Sequence[Prompt], adapter: str | None = None) -> list[Float[Tensor, "T D"]]:
        """The final hidden state at each token of each text: what the head makes the next token's logits of, in the
        model's own type. adapter: as in `stream`. Raises DougongError as `stream` does."""
        ids = [prompt_ids(self.lm, text, f"texts[{index}]") for index, text in enumerate(texts)]
        check_adapter(self.lm.model, adapter)
        virtual = virtual_ids(self.lm.model, adapter)
        with self._lock, evaluating(self.lm.model):
            rows = states_of(self.lm.model, [virtual + each for each in ids], self.prefill_tokens, adapter)
        return [row[len(virtual) :] for row in rows]

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Prompt],
        adapter: str | None = None,
        processor: LogitsProcessor | None = None,
    ) -> list[list[float]]:
        """Log-probability of every token of each completion after its prompt, by a full forward pass without a cache.

        A text after a text is encoded with it, then cut where the prompt's own ids end: so the tokens are those that
        the model would have met. adapter: as in `stream`; processor: as in `Sampling`. Raises DougongError as `stream`
        does.
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
        return [[each.logprob for each in row] for row in self._scored(pairs, 0, adapter, processor)]

    def score_texts(
        self,
        texts: Sequence[Prompt],
        top: int = 0,
        adapter: str | None = None,
        processor: LogitsProcessor | None = None,
    ) -> list[list[Scored]]:
        """Of each text, every token but the first: its log-probability, and the `top` most probable in its place.
        adapter, processor: as in `score`. Raises DougongError as `stream` does."""
        ids = [prompt_ids(self.lm, text, f"texts[{index}]") for index, text in enumerate(texts)]
        return self._scored([(text[:1], text[1:]) for text in ids], top, adapter, processor)

    def _scored(
        self,
        pairs: Sequence[tuple[list[int], list[int]]],
        top: int,
        adapter: str | None,
        processor: LogitsProcessor | None,
    ) -> list[list[Scored]]:
        check_adapter(self.lm.model, adapter)
        if processor is not None:
            processor.check(self.lm.spec)
        virtual = virtual_ids(self.lm.model, adapter)
        given = [(virtual + prompt, completion) for prompt, completion in pairs]
        with self._lock, evaluating(self.lm.model):
            return score_tokens(self.lm.model, given, self.prefill_tokens, top, adapter, processor)

    def _begin(self, ticket: Ticket, inbox: deque[Event] | None, priority: int) -> None:
        """Put a checked ticket in line. Its events go to the inbox, where there is one."""
        assert ticket.job is not None
        if self._scheduler.idle:
            self._notice_weights()
        ticket.inbox = inbox
        self._tickets[ticket.number] = ticket
        self._prompt_tokens += len(ticket.prompt)
        ticket.job.priority = priority
        if ticket.job.requests[0].room:
            self._scheduler.add(ticket.job)
        else:
            self._scheduler.refuse(ticket.job, "length")

    def _notice_weights(self) -> None:
        """Training goes on between calls: what old weights made of a text is worth nothing then."""
        now: tuple[Any, ...] = tuple(
            (id(tensor), tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version)
            for module in modules(self.lm.model)
            for tensor in (*module._parameters.values(), *module._buffers.values())
            if tensor is not None
        )
        now += tuple((name, tuning.on) for name, tuning in attached(self.lm).items())
        if now != self._weights:
            self._weights = now
            self.runner.forget()

    def reset(self) -> None:
        """Forget all texts: for those who change weights behind PyTorch's back (`weight.data`)."""
        with self._lock:
            self.runner.forget()

    def _run(self, tickets: list[Ticket]) -> Iterator[Event]:
        inbox: deque[Event] = deque()
        try:
            with self._lock:
                for ticket in tickets:
                    self._begin(ticket, inbox, 0)
            with evaluating(self.lm.model):
                while inbox or not all(ticket.done for ticket in tickets):
                    if not inbox:
                        with self._lock:
                            self._kept += self._stepped()
                    while inbox:
                        event = inbox.popleft()
                        if event.finish_reason == "error":
                            raise DougongError(self._error(tickets, event))
                        yield event
        finally:
            for ticket in tickets:
                self.cancel(ticket)

    def _error(self, tickets: list[Ticket], event: Event) -> str:
        return tickets[event.index].error or "no token is allowed: bans and grammar leave none"

    def _stepped(self) -> list[Event]:
        """One step; returns the events of submitted requests, and puts those of others into their inboxes."""
        out: list[Event] = []
        for job, events in self._scheduler.step():
            ticket = self._tickets.get(job.number)
            if ticket is None:
                continue
            if ticket.inbox is None:
                out += events
            else:
                ticket.inbox.extend(events)
            if job.done:
                ticket.done = True
                del self._tickets[job.number]
        return out
