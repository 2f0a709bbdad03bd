"""Guesses at the next tokens, for speculation: cheap ways to say what the model may confirm."""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from dougong.engine.choose import Ahead, Row, adjusted, uniforms
from dougong.engine.filters import distribution, draw
from dougong.engine.pages import OutOfPages
from dougong.engine.runner import Runner
from dougong.engine.sequence import Mark, Sequence
from dougong.engine.work import Work
from dougong.model import Model
from dougong.parts.context import Context
from dougong.parts.shapes import Float

# The longest ending of the text that prompt lookup looks for, and the hidden states that further layers look back on.
NGRAM = 3
WINDOW = 16
_CHUNK = 512


class Guesses(NamedTuple):
    """tokens that may come next. probabilities (k, V): from which each was drawn; None: they are simply named."""

    tokens: list[int]
    probabilities: Float[Tensor, "k V"] | None = None


@runtime_checkable
class Proposer(Protocol):
    """Guesses for one request. `window`: hidden states of the text's last tokens that it wants to see, 0 for none."""

    window: int

    def propose(self, row: Row, most: int) -> Guesses:
        """At most `most` tokens that may follow row.prompt + row.output."""
        ...

    def observe(self, start: int, hidden: Float[Tensor, "N D"]) -> None:
        """The model's last hidden states of the text's tokens from `start` on."""
        ...

    def pause(self) -> None:
        """Give all state back for now."""
        ...


class PromptLookup:
    """What followed the last time that the text's last tokens were there (Saxena 2023). The longest ending of at most
    NGRAM tokens decides, and of its places the latest."""

    window = 0

    def __init__(self, ngram: int = NGRAM):
        self._ngram = ngram
        self._text: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # where the token after it stood

    def propose(self, row: Row, most: int) -> Guesses:
        text = self._text
        new = [*row.prompt, *row.output] if not text else row.output[len(text) - len(row.prompt) :]
        for token in new:
            # Only now, so that the ending itself is never its own earlier place.
            for size in range(1, min(self._ngram, len(text)) + 1):
                self._after[tuple(text[-size:])] = len(text)
            text.append(token)
        for size in range(min(self._ngram, len(text)), 0, -1):
            place = self._after.get(tuple(text[-size:]))
            if place is not None:
                return Guesses(text[place : place + most])
        return Guesses([])

    def observe(self, start: int, hidden: Float[Tensor, "N D"]) -> None:
        pass

    def pause(self) -> None:
        pass


class DraftModel:
    """A smaller model with the same tokens, whose own runner keeps its state (Leviathan et al. 2023).

    vocab: rows of the model that it works for; ids that only one of the two has are never guessed.
    """

    window = 0

    def __init__(self, runner: Runner, vocab: int, seed: int):
        self._runner = runner
        self._vocab = vocab
        self._generator = torch.Generator().manual_seed(seed)
        self._seq: Sequence | None = None
        self._sure = 0  # tokens of the sequence that are the text's, not guesses
        self._mark: Mark | None = None

    def propose(self, row: Row, most: int) -> Guesses:
        text = [*row.prompt, *row.output]
        most = min(most, self._runner.model.spec.context - len(text))
        if most < 1:
            return Guesses([])
        try:
            return self._propose(row, text, most)
        except OutOfPages:
            self.pause()
            return Guesses([])

    def _propose(self, row: Row, text: list[int], most: int) -> Guesses:
        logits = self._read(text, most)
        tokens: list[int] = []
        rows: list[Tensor] = []
        for step in range(most):
            ahead = Ahead(row.sampling, self._generator, row.prompt, [*row.output, *tokens], row.ends)
            token, probabilities = guess(_of_width(logits.float(), self._vocab), ahead)
            tokens.append(token)
            if probabilities is not None:
                rows.append(probabilities)
            if token in row.ends or step == most - 1 or token >= self._runner.model.spec.vocab:
                break
            assert self._seq is not None
            logits = self._runner.step([Work(self._seq, [token], 1)])[0].logits
        return Guesses(tokens, torch.cat(rows) if rows else None)

    def _read(self, text: list[int], most: int) -> Float[Tensor, "1 V"]:
        """Bring the sequence up to the text; returns the logits after it."""
        runner = self._runner
        if self._seq is None:
            self._seq = runner.open(text, min(len(text) + 256, runner.model.spec.context))
        seq = self._seq
        if runner.recurrent:
            if self._mark is not None:
                runner.back(seq, self._mark)
        else:
            same = self._sure
            while same < min(seq.length, len(text) - 1) and seq.tokens[same] == text[same]:
                same += 1
            runner.truncate(seq, min(seq.length, same) if self._sure else seq.length)
        logits = None
        while seq.length < len(text):
            chunk = text[seq.length : seq.length + _CHUNK]
            logits = runner.step([Work(seq, chunk, 1)])[0].logits
        assert logits is not None
        self._sure = len(text)
        self._mark = runner.mark(seq) if runner.recurrent else None
        return logits

    def observe(self, start: int, hidden: Float[Tensor, "N D"]) -> None:
        pass

    def pause(self) -> None:
        if self._seq is not None:
            self._runner.close(self._seq)
        self._seq, self._mark, self._sure = None, None, 0


class FurtherLayers:
    """The model's own further layers for multi-token prediction (DeepSeek-V3 2024): see `model.mtp`.

    They run on the text's last WINDOW tokens, anew for each guess; past their depth the last one goes on from itself.
    """

    window = WINDOW

    def __init__(self, model: Model, seed: int):
        self._model = model
        self._generator = torch.Generator().manual_seed(seed)
        self._hidden: Tensor | None = None  # (W, D), of the places up to _end - 1
        self._end = 0

    def observe(self, start: int, hidden: Float[Tensor, "N D"]) -> None:
        held = self._hidden
        if held is None or start > self._end or start < self._end - len(held):
            self._hidden = hidden[-self.window :]
        else:
            self._hidden = torch.cat((held[: len(held) - (self._end - start)], hidden))[-self.window :]
        self._end = start + len(hidden)

    @torch.inference_mode()
    def propose(self, row: Row, most: int) -> Guesses:
        text = [*row.prompt, *row.output]
        model, further = self._model, self._model.mtp
        if self._hidden is None or self._end != len(text) - 1 or further is None:
            return Guesses([])
        hidden, width, layers = self._hidden[None], len(self._hidden), further.layers
        places = torch.arange(self._end - width, self._end, device=hidden.device)[None]
        tokens: list[int] = []
        rows: list[Tensor] = []
        for step in range(most):
            # Depth k joins the state of place t with the token at t + k.
            later = (text + tokens)[self._end - width + step + 1 : self._end + step + 1]
            ids = torch.tensor([later], device=hidden.device)
            ctx = Context.of(ids, positions=places)
            ctx.memo["tokens"] = ids  # for routers that go by them
            embedded = model.embedding(ids, ctx)
            hidden = layers[min(step, len(layers) - 1)](hidden, embedded, ctx)
            ahead = Ahead(row.sampling, self._generator, row.prompt, [*row.output, *tokens], row.ends)
            token, probabilities = guess(model.logits(hidden[:, -1]).float(), ahead)
            tokens.append(token)
            if probabilities is not None:
                rows.append(probabilities)
            if token in row.ends:
                break
        return Guesses(tokens, torch.cat(rows) if rows else None)

    def pause(self) -> None:
        pass


def guess(logits: Float[Tensor, "1 V"], row: Row) -> tuple[int, Float[Tensor, "1 V"] | None]:
    """A token as the request itself would choose it, and the distribution from which it was drawn (None: greedy)."""
    scores = adjusted(logits, [row])
    best, token = scores.max(-1)
    if row.sampling.greedy or not bool(best.isfinite()):
        return int(token), None if row.sampling.greedy else torch.zeros_like(scores).index_fill_(-1, token, 1)
    probabilities = distribution(scores, row.sampling)
    return int(draw(probabilities, uniforms([row.generator], scores.device))), probabilities


def _of_width(logits: Float[Tensor, "B N"], vocab: int) -> Float[Tensor, "B V"]:
    """Logits over `vocab` ids: those beyond are cut, those that are missing impossible."""
    if logits.shape[-1] >= vocab:
        return logits[:, :vocab]
    return torch.nn.functional.pad(logits, (0, vocab - logits.shape[-1]), value=-torch.inf)


def accepts(tokens: Many[int], ends: frozenset[int]) -> list[int]:
    """Guesses up to the first that would end the text: nothing follows it."""
    for place, token in enumerate(tokens):
        if token in ends:
            return list(tokens[: place + 1])
    return list(tokens)
