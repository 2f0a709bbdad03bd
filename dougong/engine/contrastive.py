"""Contrastive search (Su et al. 2022, equation 5): probable tokens whose hidden state is unlike all before it."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.engine.choose import adjusted, told
from dougong.engine.request import Event, Request
from dougong.engine.runner import Runner
from dougong.engine.sequence import Sequence
from dougong.engine.setting import Setting
from dougong.engine.work import Result, Work
from dougong.parts.shapes import Float, Int

# Tokens of the prompt that are read at once: all of them have logits, which nobody needs, beside their hidden states.
_CHUNK = 16


def degeneration(past: Float[Tensor, "T D"], hidden: Float[Tensor, "K D"]) -> Float[Tensor, " K"]:
    """max_j cos(hidden_k, past_j), for vectors of length 1."""
    return (hidden @ past.T).amax(-1)


class ContrastiveSearch:
    """A driver (see `driver.Driver`): each step runs the k most probable tokens, and keeps one."""

    def __init__(self, runner: Runner, request: Request, setting: Setting | None = None):
        asked = request.sampling.contrastive
        assert asked is not None
        self._runner = runner
        self._request = request
        self._setting = setting or Setting(runner.model)
        self._alpha, self._k = asked.alpha, asked.k
        self._sequences: list[Sequence] = []  # the text's own, or one for each candidate
        self._past: Tensor | None = None  # (T, D), of length 1
        self._logits: Tensor | None = None  # (1, V), after the text
        self._tokens: list[int] = []  # candidates, the most probable first
        self._probabilities: Tensor | None = None
        # What others left in the prefix cache comes without hidden states: a key of its own finds nothing there.
        self._root = os.urandom(16) + self._setting.root

    @property
    def finished(self) -> bool:
        return self._request.finished

    def work(self) -> list[Work]:
        request = self._request
        text = request.text
        if not self._sequences:
            self._sequences = [self._setting.open(self._runner, text, request.size, self._root)]
        seq = self._sequences[0]
        if seq.length < len(text):
            chunk = text[seq.length : seq.length + _CHUNK]
            known = 0 if self._past is None else len(self._past)
            return [Work(seq, chunk, max(0, min(len(chunk), seq.length + len(chunk) - known)))]
        while len(self._sequences) < len(self._tokens):
            self._sequences.append(self._runner.fork(seq))
        return [Work(each, [token], 1) for each, token in zip(self._sequences, self._tokens, strict=True)]

    def take(self, results: list[Result]) -> list[Event]:
        text = len(self._request.text)
        hidden = torch.nn.functional.normalize(torch.cat([result.hidden for result in results]).float(), dim=-1)
        if self._sequences[0].length <= text:
            self._remember(hidden)
            if self._sequences[0].length < text or not len(hidden):
                return []
            self._logits = results[0].logits[-1:].float()
            return self._candidates()
        assert self._past is not None and self._probabilities is not None and self._logits is not None
        scores = (1 - self._alpha) * self._probabilities - self._alpha * degeneration(self._past, hidden)
        best = int(scores.argmax())
        token: Int[Tensor, " 1"] = torch.tensor([self._tokens[best]], device=hidden.device)
        choice = told(self._logits, token, [self._request])[0]
        self._remember(hidden[best : best + 1])
        for place, seq in enumerate(self._sequences):
            if place != best:
                self._runner.close(seq)
        self._sequences = [self._sequences[best]]
        events = self._request.accept(choice.token, choice.logprob, choice.top)
        if self._request.finished:
            self.close()
            return events
        self._logits = results[best].logits.float()
        return events + self._candidates()

    def _remember(self, hidden: Tensor) -> None:
        self._past = hidden if self._past is None else torch.cat((self._past, hidden))

    def _candidates(self) -> list[Event]:
        """Which tokens the next step tries."""
        assert self._logits is not None
        if not bool(self._logits.amax().isfinite()):
            raise DougongError("the model's logits are not finite; its weights are damaged, or overflow in this dtype")
        scores = adjusted(self._logits, [self._request])
        if not bool((scores > -torch.inf).any()):
            events = self._request.accept(None, 0.0)
            self.close()
            return events
        values, ids = scores.softmax(-1)[0].topk(min(self._k, scores.shape[-1]))
        possible = max(1, int((values > 0).sum()))
        self._probabilities, self._tokens = values[:possible], ids[:possible].tolist()
        return []

    def pause(self) -> None:
        """Give all state back for now. The hidden states stay: they are small, and the text is not read twice."""
        for seq in self._sequences:
            self._runner.close(seq)
        self._sequences = []

    def scrub(self) -> None:
        """Leave nothing that is no number where others will write."""
        for seq in self._sequences:
            self._runner.scrub(seq)

    def close(self) -> None:
        self.pause()
