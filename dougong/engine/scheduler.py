"""Who runs in the next step: continuous batching under a budget of tokens and of pages.

Requests wait in order of priority, then of arrival, and are admitted in that order when their prompt has room. Every
step runs what the running ones want next: single tokens first, then prompts, a chunk at a time, up to `step_tokens`.
When pages run out, the request that would be admitted last gives its own back and waits again (it is recomputed later,
from whatever the prefix cache still has); so the first in line always goes on.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from typing import cast

import torch

from dougong.base import DougongError
from dougong.engine.choose import Choice, choose
from dougong.engine.driver import Driver, Plain
from dougong.engine.pages import OutOfPages
from dougong.engine.processor import process
from dougong.engine.request import Event, FinishReason, Request
from dougong.engine.runner import Runner
from dougong.engine.work import Result, Work, stacked

_SHORT = 16  # tokens of one sequence that are run at once, whatever the budget


@dataclass(eq=False)
class Job:
    """A request under way.

    number    of its ticket; answers have the numbers 0 to `answers` - 1
    tokens    of its prompt, and of what it has generated when it is preempted
    width     sequences that it runs side by side
    pending   what its driver wants run, as far as it has not been; results of what has been
    error     why it ended with "error"
    """

    number: int
    driver: Driver | Plain
    requests: list[Request]
    width: int = 1
    priority: int = 0
    pending: list[Work] = field(default_factory=list)
    results: list[Result | None] = field(default_factory=list)
    running: bool = False
    fresh: bool = True  # nothing has been planned since it was admitted
    done: bool = False
    error: str | None = None
    told: set[int] = field(default_factory=set)

    @property
    def rank(self) -> tuple[int, int]:
        return -self.priority, self.number

    @property
    def tokens(self) -> int:
        return len(self.requests[0].given) + max(len(request.output) for request in self.requests)

    @property
    def owed(self) -> int:
        """Tokens that it is about to store, about."""
        return self.tokens if self.fresh else max(self.width, sum(len(each.tokens) for each in self.pending))

    @property
    def short(self) -> bool:
        """Whether it wants single tokens, or a few: not a prompt."""
        return all(len(each.tokens) <= _SHORT for each in self.pending)


class Scheduler:
    """max_batch: sequences that run side by side (a wider request runs alone). step_tokens: of prompts, in one step."""

    def __init__(self, runner: Runner, max_batch: int, step_tokens: int):
        self.runner = runner
        self._max_batch = min(max_batch, runner.division.rows)
        self._step_tokens = step_tokens
        self.waiting: list[Job] = []  # in order of rank
        self.running: list[Job] = []  # in order of rank
        self._late: list[tuple[Job, list[Event]]] = []
        self.generated = 0  # tokens, so far
        self.preempted = 0  # times

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.running or self._late)

    def add(self, job: Job) -> None:
        """Put a request in line."""
        bisect.insort(self.waiting, job, key=lambda each: each.rank)

    def refuse(self, job: Job, reason: FinishReason) -> None:
        """End a request that needs no run; the next step tells."""
        self._late.append((job, self._end(job, reason)))

    def cancel(self, job: Job, reason: FinishReason = "cancelled") -> list[Event]:
        """End a request at once; returns the events that say so. Its pages are free when this returns."""
        if job.done:
            return []
        return self._end(job, reason)

    def step(self) -> list[tuple[Job, list[Event]]]:
        """Run one step; returns what it brought, request by request. An exception ends all running requests first, for
        their state may be half written: what they have generated is told by the next step, with the reason "error"."""
        out, self._late = self._late, []
        self._admit()
        try:
            plan = self._plan()
            while plan:
                try:
                    results = self.runner.step([work for _, _, work in plan])
                    break
                except OutOfPages:
                    self._make_room()
                    plan = self._plan()
            else:
                return out
            told = process(results, [job.requests[0].sampling.processor for job, _, _ in plan])
            out += self._done(self._sort(plan, told))
        except BaseException as error:
            self._late += out + [(job, self._fail(job, repr(error))) for job in list(self.running)]
            raise
        return out

    def _admit(self) -> None:
        if not self.waiting:
            return
        # Summed up once: whoever is admitted adds to it, or a long line would cost its length squared.
        width, stored = self._held()
        while self.waiting:
            job = self.waiting[0]
            while self.running and (
                width + job.width > self._max_batch or not self.runner.room_for(job.tokens + stored)
            ):
                victim = self.running[-1]
                if victim.priority >= job.priority or not _can_pause(victim):
                    return
                self._preempt(victim)
                width, stored = self._held()
            self.waiting.pop(0)
            job.running = True
            bisect.insort(self.running, job, key=lambda each: each.rank)
            width, stored = width + job.width, stored + self._stores(job)

    def _held(self) -> tuple[int, int]:
        """Of those who run: sequences, and tokens that they are about to store."""
        return sum(each.width for each in self.running), sum(map(self._stores, self.running))

    def _stores(self, job: Job) -> int:
        """Tokens that a request is about to store, and a page more for each of its sequences."""
        return job.owed + job.width * self.runner.page_size

    def _plan(self) -> list[tuple[Job, int, Work]]:
        """Work of this step: (its request, its number in the request's pending work, the piece to run)."""
        for job in list(self.running):
            while job.running and not job.pending:
                try:
                    job.pending = job.driver.work()
                    job.results, job.fresh = [None] * len(job.pending), False
                except OutOfPages:
                    self._make_room(unless=job)
        plan: list[tuple[Job, int, Work]] = []
        budget = self._step_tokens
        for job in self.running:
            for place, work in enumerate(job.pending):
                if job.results[place] is not None:
                    continue
                # Whoever is generating waits for no prompt.
                piece = work if job.short else self._piece(work, budget)
                if piece is not None:
                    plan.append((job, place, piece))
                    budget -= 0 if job.short else len(piece.tokens)
        return plan

    def _piece(self, work: Work, budget: int) -> Work | None:
        """As much of a prompt as the step has room for."""
        count, page = len(work.tokens), self.runner.page_size
        if count > budget:
            count = min(budget, count - work.want)
            if count <= 0:
                return None
        if self.runner.recurrent and self.runner.prefixes is not None:
            # Snapshots are taken where a piece ends with a page.
            end = (work.seq.length + min(count, len(work.tokens) - max(work.want, 1))) // page * page
            count = end - work.seq.length if end > work.seq.length else count
        return work if count == len(work.tokens) else Work(work.seq, work.tokens[:count], 0)

    def _make_room(self, unless: Job | None = None) -> None:
        """Pages have run out: the last in line gives its own back. Where only one is left, it cannot go on."""
        for victim in reversed(self.running):
            if _can_pause(victim) and (len(self.running) > 1):
                self._preempt(victim)
                return
        job = unless or self.running[-1]
        text = "its state outgrew the engine's memory; raise memory, or ask for fewer answers or tokens"
        self._late.append((job, self._fail(job, text)))

    def _preempt(self, job: Job) -> None:
        job.driver.pause()  # pyright: ignore[reportAttributeAccessIssue]
        job.pending, job.results, job.running, job.fresh = [], [], False, True
        self.running.remove(job)
        bisect.insort(self.waiting, job, key=lambda each: each.rank)
        self.preempted += 1

    def _sort(self, plan: list[tuple[Job, int, Work]], results: list[Result | DougongError]) -> list[Job]:
        """Results to their requests; returns those whose work is complete. A request with an error ends."""
        touched: dict[int, Job] = {}
        for (job, place, piece), result in zip(plan, results, strict=True):
            if job.done:
                continue
            if isinstance(result, DougongError):
                self._late.append((job, self._fail(job, str(result))))
                continue
            touched[id(job)] = job
            whole = job.pending[place]
            if len(piece.tokens) == len(whole.tokens):
                job.results[place] = result
            else:
                job.pending[place] = Work(whole.seq, whole.tokens[len(piece.tokens) :], whole.want)
        return [job for job in touched.values() if not job.done and all(each is not None for each in job.results)]

    def _done(self, jobs: list[Job]) -> list[tuple[Job, list[Event]]]:
        """Let the requests decide about their results: plain ones all at once."""
        out: list[tuple[Job, list[Event]]] = []
        plain = [job for job in jobs if isinstance(job.driver, Plain)]
        for job, choices in self._choose(plain):
            if choices is None:
                text = "the model's logits are not finite; its weights are damaged, or overflow in this dtype"
                out.append((job, self._fail(job, text)))
            else:
                out.append(self._took(job, cast(Plain, job.driver).accept(choices)))
        for job in jobs:
            if isinstance(job.driver, Plain):
                continue
            try:
                with torch.inference_mode():
                    events = job.driver.take(cast(list[Result], job.results))
            except DougongError as error:
                out.append((job, self._fail(job, str(error))))
                continue
            out.append(self._took(job, events))
        return out

    def _took(self, job: Job, events: list[Event]) -> tuple[Job, list[Event]]:
        job.pending, job.results = [], []
        self.generated += sum(event.token is not None for event in events)
        job.told |= {event.choice for event in events if event.finish_reason is not None}
        if job.driver.finished:
            self._retire(job)
        return job, events

    def _choose(self, jobs: list[Job]) -> list[tuple[Job, list[Choice] | None]]:
        """Tokens for all who asked; None for a request whose logits are broken, which harms no other."""
        rows: list[Request] = []
        results: list[Result] = []
        owners: list[Job] = []
        for job in jobs:
            asked = cast(Plain, job.driver).asks()
            own = cast(list[Result], job.results)
            rows += asked
            results += own if len(own) == len(asked) else own * len(asked)
            owners += [job] * len(asked)
        if not rows:
            return []
        chosen: dict[int, list[Choice] | None] = {id(job): [] for job in jobs}
        with torch.inference_mode():
            try:
                logits, order = stacked(results)
                told = choose(logits, [rows[number] for number in order])
                by_row = dict(zip(order, told, strict=True))
            except DougongError:
                by_row = {}
                for number, (row, result) in enumerate(zip(rows, results, strict=True)):
                    try:
                        by_row[number] = choose(result.logits, [row])[0]
                    except DougongError:
                        chosen[id(owners[number])] = None
            for number, owner in enumerate(owners):
                mine = chosen[id(owner)]
                if mine is not None:
                    mine.append(by_row[number])
        return [(job, chosen[id(job)]) for job in jobs]

    def _fail(self, job: Job, text: str) -> list[Event]:
        job.error = text
        return self._end(job, "error")

    def _end(self, job: Job, reason: FinishReason) -> list[Event]:
        if reason == "error" and hasattr(job.driver, "scrub"):
            job.driver.scrub()  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(job.driver, Plain):
            events = job.driver.end(reason)
        else:
            job.driver.close()
            first = job.requests[0]
            answers = range(first.sampling.n)
            events = [Event(first.index, None, "", 0.0, reason, (), each) for each in answers if each not in job.told]
        self._retire(job)
        return events

    def _retire(self, job: Job) -> None:
        job.driver.close()
        job.pending, job.results, job.done = [], [], True
        for line in (self.running, self.waiting):
            if job in line:
                line.remove(job)
        job.running = False


def _can_pause(job: Job) -> bool:
    return hasattr(job.driver, "pause")
