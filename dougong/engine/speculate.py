"""Speculation: guess some tokens, run them all at once, keep what the model confirms. The distribution stays the
model's own, filters and grammar included.

Named guesses (greedy, or looked up) are kept as long as the request itself, with its own random numbers, chooses the
same tokens: so an answer is, token by token and seed by seed, the one without speculation. Guesses drawn from a
distribution q are kept with probability min(1, p / q), and the first one refused is replaced by a draw from
norm(max(p - q, 0)) (Leviathan et al. 2023, theorem 1 and appendix A.1: the result is distributed as p).
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass

import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.engine.choose import Ahead, Choice, adjusted, choose, told, uniforms
from dougong.engine.filters import distribution, draw
from dougong.engine.propose import Guesses, Proposer, accepts
from dougong.engine.request import Event, Request
from dougong.engine.runner import Runner
from dougong.engine.sequence import Mark, Sequence
from dougong.engine.setting import Setting
from dougong.engine.work import Result, Work
from dougong.parts.shapes import Float, Int

# Tokens that are fed beside guesses: with more of them (a prompt) nothing is guessed.
_SHORT = 16


class Speculative:
    """A driver (see `driver.Driver`) of one request that guesses ahead."""

    def __init__(self, runner: Runner, request: Request, proposer: Proposer, setting: Setting | None = None):
        self._runner = runner
        self._request = request
        self._proposer = proposer
        self._setting = setting or Setting(runner.model)
        self._seq: Sequence | None = None
        self._guesses = Guesses([])
        self._mark: Mark | None = None
        self.guessed = 0  # tokens, so far
        self.confirmed = 0

    @property
    def finished(self) -> bool:
        return self._request.finished

    def work(self) -> list[Work]:
        request = self._request
        text = request.text
        if self._seq is None:
            self._seq = self._setting.open(self._runner, text, request.size)
        seq = self._seq
        pending = text[seq.length :]
        most = min(request.sampling.draft_tokens, request.room - 1)
        self._guesses = Guesses([])
        if most > 0 and len(pending) <= _SHORT:
            self._guesses = _until_the_end(self._proposer.propose(request, most), request.ends)
        guessed = self._guesses.tokens
        self._mark = self._runner.mark(seq) if guessed and self._runner.recurrent else None
        tokens = pending + guessed
        return [Work(seq, tokens, min(len(tokens), max(len(guessed) + 1, self._proposer.window)))]

    def take(self, results: list[Result]) -> list[Event]:
        result, seq, request = results[0], self._seq, self._request
        assert seq is not None
        guessed = self._guesses.tokens
        choices = verify(result.logits[len(result.logits) - len(guessed) - 1 :], self._guesses, request)
        kept = len(choices) - 1
        self.guessed += len(guessed)
        self.confirmed += kept
        refused = len(guessed) - kept
        hidden = result.hidden[: len(result.hidden) - refused]
        start = seq.length - refused - len(hidden) - len(request.virtual)  # whoever guesses knows of no virtual tokens
        self._proposer.observe(max(start, 0), hidden[max(-start, 0) :])
        events: list[Event] = []
        for choice in choices:
            events += request.accept(choice.token, choice.logprob, choice.top)
            if request.finished:
                self.close()
                return events
        if refused and self._mark is not None:
            self._runner.back(seq, self._mark)  # what was confirmed is fed again with the next guesses
        elif refused:
            self._runner.truncate(seq, seq.length - refused)
        return events

    def pause(self) -> None:
        """Give all state back for now."""
        if self._seq is not None:
            self._runner.close(self._seq)
        self._seq = None
        self._proposer.pause()

    def scrub(self) -> None:
        """Leave nothing that is no number where others will write."""
        if self._seq is not None:
            self._runner.scrub(self._seq)

    def close(self) -> None:
        self.pause()


class Several:
    """A driver of several, side by side: n answers of a prompt."""

    def __init__(self, drivers: Many[Speculative]):
        self._drivers = list(drivers)
        self._working: list[tuple[Speculative, int]] = []

    @property
    def finished(self) -> bool:
        return all(driver.finished for driver in self._drivers)

    def work(self) -> list[Work]:
        out: list[Work] = []
        self._working = []
        for driver in self._drivers:
            if not driver.finished:
                own = driver.work()
                self._working.append((driver, len(own)))
                out += own
        return out

    def take(self, results: list[Result]) -> list[Event]:
        events: list[Event] = []
        start = 0
        for driver, count in self._working:
            events += driver.take(results[start : start + count])
            start += count
        return events

    def pause(self) -> None:
        for driver in self._drivers:
            driver.pause()

    def scrub(self) -> None:
        for driver in self._drivers:
            driver.scrub()

    def close(self) -> None:
        for driver in self._drivers:
            driver.close()


def _until_the_end(guesses: Guesses, ends: frozenset[int]) -> Guesses:
    tokens = accepts(guesses.tokens, ends)
    return Guesses(tokens, None if guesses.probabilities is None else guesses.probabilities[: len(tokens)])


def verify(logits: Float[Tensor, "k1 V"], guesses: Guesses, request: Request) -> list[Choice]:
    """The next tokens, one more than guesses were confirmed: row i of the logits follows i guesses.

    Raises DougongError when logits are not finite.
    """
    rows = _rows(request, guesses.tokens)
    logits = logits[: len(rows)].float()
    if guesses.probabilities is not None:
        return _by_rejection(logits, guesses, rows)
    # A row uses one random number, so that many are taken back as there are tokens that do not come about.
    before = request.generator.get_state()
    choices = choose(logits, rows)
    kept = 0
    while kept < len(rows) - 1 and choices[kept].token == guesses.tokens[kept]:
        kept += 1
    if not request.sampling.greedy:
        request.generator.set_state(before)
        uniforms([request.generator] * (kept + 1), torch.device("cpu"))
    return choices[: kept + 1]


def _by_rejection(logits: Float[Tensor, "k1 V"], guesses: Guesses, rows: Many[Ahead]) -> list[Choice]:
    scores = adjusted(logits, rows)
    best = logits.amax(-1)
    if not bool(best.isfinite().all()):
        raise DougongError("the model's logits are not finite; its weights are damaged, or overflow in this dtype")
    assert guesses.probabilities is not None
    possible = (scores.amax(-1) > -torch.inf).tolist()
    sampling, generator, device = rows[0].sampling, rows[0].generator, logits.device
    tokens: list[int] = []
    for place, row in enumerate(scores):
        if not possible[place]:
            tokens.append(-1)
            break
        p = distribution(row[None], sampling)
        if place == len(guesses.tokens):
            tokens.append(int(draw(p, uniforms([generator], device))))
            break
        guess, q = guesses.tokens[place], guesses.probabilities[place : place + 1].to(device)
        if float(uniforms([generator], device)) * float(q[0, guess]) < float(p[0, guess]):
            tokens.append(guess)
            if place == len(rows) - 1:
                break  # the grammar allows the guess, and nothing is known of what follows
            continue
        left = (p - q).clamp(min=0)
        tokens.append(int(draw(left if bool(left.any()) else p, uniforms([generator], device))))
        break
    chosen: Int[Tensor, " N"] = torch.tensor([max(token, 0) for token in tokens], device=device)
    return told(logits[: len(tokens)], chosen, rows[: len(tokens)], [token < 0 for token in tokens])


@dataclass(frozen=True)
class _Mask:
    packed: Tensor

    def mask(self) -> Int[Tensor, " words"]:
        return self.packed


def _rows(request: Request, guesses: Many[int]) -> list[Ahead]:
    """The request after 0, 1, 2 ... of the guesses, as far as its grammar takes them."""
    matcher = request.matcher
    rows = []
    taken = 0
    for count in range(len(guesses) + 1):
        guide = None if matcher is None else _Mask(matcher.mask())
        output = [*request.output, *guesses[:count]]
        rows.append(Ahead(request.sampling, request.generator, request.prompt, output, request.ends, guide))
        if matcher is not None and count < len(guesses):
            if guesses[count] in request.ends or not matcher.accept(guesses[count]):
                break
            taken += 1
    if matcher is not None:
        matcher.rollback(taken)
    return rows
