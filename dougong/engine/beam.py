"""Beam search: of all continuations, those with the highest sum of log-probabilities that a bounded width can find.

Step by step as in transformers, so that texts and scores are equal: the score of a finished beam is
sum log p / tokens ** length_penalty; only candidates among the `beams` best may finish; penalties and bans act on the
log-probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass

import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.engine.choose import Ahead, adjusted
from dougong.engine.grammar import Matcher
from dougong.engine.pages import OutOfPages
from dougong.engine.request import Event, Request, Top
from dougong.engine.runner import Runner
from dougong.engine.sampling import Sampling
from dougong.engine.sequence import Sequence
from dougong.engine.setting import Setting
from dougong.engine.work import Result, Work


@dataclass(eq=False)
class Beam:
    """tokens of the answer, their log-probabilities under the model itself, the best ones at their places. score: the
    sum of their log-probabilities after penalties; of a finished beam divided by tokens ** length_penalty."""

    tokens: list[int]
    score: float
    logprobs: list[float]
    tops: list[Top]
    matcher: Matcher | None = None
    seq: Sequence | None = None


@dataclass(frozen=True)
class _Candidate:
    score: float
    parent: Beam
    row: int  # of the logits
    token: int


class BeamSearch:
    """A driver (see `driver.Driver`) that gives the best beams as the answers `requests`, all at its end."""

    def __init__(self, runner: Runner, requests: Many[Request], setting: Setting | None = None):
        self._runner = runner
        self._requests = list(requests)
        self._setting = setting or Setting(runner.model)
        first = self._requests[0]
        self._sampling: Sampling = first.sampling
        self._room = first.room
        matcher = None if first.matcher is None else first.matcher.fork()
        self._beams = [Beam([], 0.0, [], [], matcher)]
        self.best: list[Beam] = []  # finished ones, the best first

    @property
    def finished(self) -> bool:
        return all(request.finished for request in self._requests)

    def work(self) -> list[Work]:
        prompt, size = self._requests[0].given, self._requests[0].size
        out = []
        for beam in self._beams:
            text = prompt + beam.tokens
            if beam.seq is None:
                beam.seq = self._setting.open(self._runner, text, size)
            out.append(Work(beam.seq, text[beam.seq.length :], 1))
        return out

    def take(self, results: list[Result]) -> list[Event]:
        logits = torch.cat([result.logits for result in results]).float()
        if not bool(logits.amax(-1).isfinite().all()):
            raise DougongError("the model's logits are not finite; its weights are damaged, or overflow in this dtype")
        own = logits.log_softmax(-1)
        candidates = self._candidates(adjusted(own, [self._row(beam) for beam in self._beams]))
        going = self._finish(candidates, own)
        if going and self._can_improve(going):
            self._go_on(going, own)
            return []
        return self._tell()

    def _row(self, beam: Beam) -> Ahead:
        first = self._requests[0]
        return Ahead(first.sampling, first.generator, first.prompt, beam.tokens, first.ends, beam.matcher)

    def _candidates(self, scores: Tensor) -> list[_Candidate]:
        """The best continuations of all beams, enough of them that `beams` do not end the text."""
        sums = scores + torch.tensor([beam.score for beam in self._beams], device=scores.device)[:, None]
        # One kind of continuation for each way to end, and one that goes on.
        count = self._sampling.beams * max(2, 1 + len(self._requests[0].ends))
        values, places = sums.flatten().topk(min(count, sums.numel()))
        vocab = scores.shape[-1]
        return [
            _Candidate(value, self._beams[place // vocab], place // vocab, place % vocab)
            for value, place in zip(values.tolist(), places.tolist(), strict=True)
            if value > -torch.inf
        ]

    def _finish(self, candidates: Many[_Candidate], own: Tensor) -> list[_Candidate]:
        """Keep what is finished among the best; returns what goes on."""
        width, ends = self._sampling.beams, self._requests[0].ends
        going: list[_Candidate] = []
        for rank, candidate in enumerate(candidates):
            length = len(candidate.parent.tokens) + 1
            if candidate.token in ends or length >= self._room or self._closes(candidate):
                if rank < width:
                    done = self._child(candidate, own, candidate.score / length**self._sampling.length_penalty)
                    self.best.append(done)
            else:
                going.append(candidate)
        self.best = sorted(self.best, key=lambda beam: -beam.score)[:width]
        return going[:width]

    def _closes(self, candidate: _Candidate) -> bool:
        """Whether the candidate's token completes its grammar."""
        if candidate.parent.matcher is None:
            return False
        matcher = candidate.parent.matcher
        if not matcher.accept(candidate.token):
            return False
        closes = matcher.finished
        matcher.rollback(1)
        return closes

    def _child(self, candidate: _Candidate, own: Tensor, score: float) -> Beam:
        parent, row = candidate.parent, own[candidate.row]
        top: Top = ()
        if self._sampling.top_logprobs:
            values, ids = row.topk(min(self._sampling.top_logprobs, len(row)))
            top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        logprobs = [*parent.logprobs, float(row[candidate.token])]
        return Beam([*parent.tokens, candidate.token], score, logprobs, [*parent.tops, top])

    def _can_improve(self, going: Many[_Candidate]) -> bool:
        """Whether the search goes on, by the best running beam's score against the worst finished one's."""
        sampling = self._sampling
        if len(self.best) < sampling.beams:
            return True
        if sampling.early_stopping is True:
            return False
        length = len(going[0].parent.tokens) + 1
        if sampling.early_stopping == "never" and sampling.length_penalty > 0:
            length = self._room
        return going[0].score / length**sampling.length_penalty > self.best[-1].score

    def _go_on(self, going: Many[_Candidate], own: Tensor) -> None:
        """The next step's beams: the first child of each takes over its state, the others get copies."""
        kept = {id(candidate.parent) for candidate in going}
        for beam in self._beams:
            if id(beam) not in kept:
                self._leave(beam)
        states = {id(beam): (beam.seq, beam.matcher) for beam in self._beams}
        heirs: set[int] = set()
        beams: list[Beam] = []
        for candidate in going:
            parent = candidate.parent
            seq, matcher = states[id(parent)]
            child = self._child(candidate, own, candidate.score)
            if id(parent) in heirs and seq is not None:
                try:
                    seq = self._runner.fork(seq)
                except OutOfPages:
                    seq = None  # `work` opens it again when there is room
            elif id(parent) in heirs:
                seq = None
            heirs.add(id(parent))
            parent.seq = None
            child.seq = seq
            child.matcher = None if matcher is None else matcher.fork()
            beams.append(child)
        for child in beams:
            if child.matcher is not None:
                child.matcher.accept(child.tokens[-1])
        self._beams = beams

    def _tell(self) -> list[Event]:
        """Every request its beam."""
        self.close()
        events: list[Event] = []
        for request, beam in zip(self._requests, self.best, strict=False):
            for token, logprob, top in zip(beam.tokens, beam.logprobs, beam.tops, strict=True):
                events += request.accept(token, logprob if self._sampling.logprobs else 0.0, top)
                if request.finished:
                    break
        for request in self._requests:
            if not request.finished:  # bans and grammar left less than was asked for
                events += request.end("error")
        return events

    def _leave(self, beam: Beam) -> None:
        if beam.seq is not None:
            self._runner.close(beam.seq)
            beam.seq = None

    def pause(self) -> None:
        """Give all state back for now."""
        for beam in self._beams:
            self._leave(beam)

    def scrub(self) -> None:
        """Leave nothing that is no number where others will write."""
        for beam in self._beams:
            if beam.seq is not None:
                self._runner.scrub(beam.seq)

    def close(self) -> None:
        self.pause()
