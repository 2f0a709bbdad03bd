"""Answers as segments of rows: what a loss compares (two sides of a pair, one judged answer) stays in one row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from dougong.align.preferences import Pair, Steps, Verdict
from dougong.base import DougongError
from dougong.data.batch import IGNORED, Batch, batch_from
from dougong.data.chat import Message
from dougong.data.packing import best_fit
from dougong.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class Segment:
    """One text: `tokens` that the model reads and a target for each, -100 where nothing is asked."""

    tokens: list[int]
    targets: list[int]

    @property
    def asked(self) -> int:
        """How many places have a target."""
        return sum(target != IGNORED for target in self.targets)


Unit = tuple[Segment, ...]  # segments that a loss needs together


def answer_segment(
    tokenizer: Tokenizer, prompt: Sequence[Message], answer: Sequence[Message], tools: Sequence[dict[str, Any]] = ()
) -> Segment:
    """Prompt and answer through the chat template; the targets are the answer's tokens, its end of turn included.

    Raises DougongError when the template marks none of them as the assistant's.
    """
    whole = tokenizer.render_ids([*prompt, *answer], list(tools) or None)
    before = tokenizer.render_ids(list(prompt), list(tools) or None, add_generation_prompt=True).ids
    begin = len(before)
    if whole.ids[:begin] != before:
        # A template may write earlier turns otherwise than the last: then the answer is the last run of the mask.
        last = len(whole.assistant) - 1 - whole.assistant[::-1].index(True) if any(whole.assistant) else 0
        begin = last
        while begin and whole.assistant[begin - 1]:
            begin -= 1
    mask = [marked and place >= begin for place, marked in enumerate(whole.assistant)]
    if not any(mask):
        raise DougongError(
            "the chat template marks no token as the assistant's, so no answer could be told from its prompt; use a "
            "template with {% generation %} blocks"
        )
    targets = [token if marked else IGNORED for token, marked in zip(whole.ids[1:], mask[1:], strict=True)]
    return Segment(whole.ids[:-1], targets)


def text_segment(tokenizer: Tokenizer, prompt: Sequence[Message], answer: Sequence[Message]) -> Segment:
    """Prompt and answer with one target, 0, at the very end: where a text's score is read."""
    ids = tokenizer.render_ids([*prompt, *answer]).ids
    return Segment(ids, [IGNORED] * (len(ids) - 1) + [0])


def steps_segment(tokenizer: Tokenizer, example: Steps) -> Segment:
    """A chain of thought; the target at the last token of each step is its verdict (1: right)."""
    ids = list(tokenizer.render_ids(list(example.prompt), add_generation_prompt=True).ids)
    targets = [IGNORED] * len(ids)
    for step, right in zip(example.steps, example.right, strict=True):
        # Each step by itself, so that its last token ends it and sees nothing of the next.
        own = tokenizer.encode(step)
        if not own:
            raise DougongError(f"{example.source} has an empty step; leave it out")
        ids += own
        targets += [IGNORED] * (len(own) - 1) + [int(right)]
    return Segment(ids, targets)


def pair_unit(tokenizer: Tokenizer, pair: Pair) -> Unit:
    return tuple(answer_segment(tokenizer, pair.prompt, side, pair.tools) for side in (pair.chosen, pair.rejected))


def scored_unit(tokenizer: Tokenizer, pair: Pair) -> Unit:
    return tuple(text_segment(tokenizer, pair.prompt, side) for side in (pair.chosen, pair.rejected))


def verdict_unit(tokenizer: Tokenizer, verdict: Verdict) -> Unit:
    return (answer_segment(tokenizer, verdict.prompt, verdict.answer, verdict.tools),)


@dataclass(frozen=True, eq=False)
class UnitRows:
    """Units arranged in rows of `length` places: a layout for the loader (data/loader.py).

    The segments of a row's units are its documents, in order: of units of two, documents 2k and 2k + 1 are the sides of
    the row's k-th pair. A batch's further["unit"] (B, most units a row) has the index of each unit, -1 for none.
    """

    units: tuple[Unit, ...]
    rows: tuple[tuple[int, ...], ...]
    length: int
    pad_id: int

    @property
    def count(self) -> int:
        """Rows in an epoch."""
        return len(self.rows)

    @property
    def most(self) -> int:
        """Units in the fullest row."""
        return max(map(len, self.rows), default=0)

    @property
    def identity(self) -> str:
        """The data and the layout, in words."""
        places = sum(len(segment.tokens) for unit in self.units for segment in unit)
        return f"{len(self.units)} units of {places} places in {self.count} rows of {self.length}"

    @property
    def filled(self) -> float:
        """The share of places that hold a token rather than padding."""
        return sum(len(segment.tokens) for unit in self.units for segment in unit) / (self.count * self.length)

    def build(self, places: list[tuple[int, int]]) -> Batch:
        """(rows, length) each: the rows at (epoch, row); an epoch changes only their order."""
        shape = (len(places), self.length)
        tokens = np.full(shape, self.pad_id, dtype=np.int64)
        targets = np.full(shape, IGNORED, dtype=np.int64)
        positions = np.zeros(shape, dtype=np.int64)
        documents = np.zeros(shape, dtype=np.int64)
        filled = np.zeros(len(places), dtype=np.int64)
        unit = np.full((len(places), self.most), -1, dtype=np.int64)
        for at, (_, row) in enumerate(places):
            unit[at, : len(self.rows[row])] = self.rows[row]
            begin, number = 0, 0
            for segment in (segment for index in self.rows[row] for segment in self.units[index]):
                end = begin + len(segment.tokens)
                tokens[at, begin:end] = segment.tokens
                targets[at, begin:end] = segment.targets
                positions[at, begin:end] = np.arange(end - begin)
                documents[at, begin:end] = number
                begin, number = end, number + 1
            # Padding is one more document: it sees itself alone, so no row of a mask is empty.
            positions[at, begin:] = np.arange(self.length - begin)
            documents[at, begin:] = number
            filled[at] = begin
        batch = batch_from(tokens, targets, positions, documents)
        return replace(batch, filled=torch.from_numpy(filled), further={"unit": torch.from_numpy(unit)})


@dataclass(frozen=True)
class Fitted:
    """Units that fit: which of those given (`kept`), how many lost an end, how many were dropped."""

    units: tuple[Unit, ...]
    kept: tuple[int, ...]
    truncated: int
    dropped: int


def fit(units: Sequence[Unit], length: int, too_long: Literal["refuse", "truncate", "drop"]) -> Fitted:
    """Bring units to a row's length; where one is longer, each of its segments may have an equal share of the row.

    "truncate" cuts the ends of such segments, and drops units of which a side keeps no target. Raises DougongError
    where a unit is too long and that is refused.
    """
    done: list[Unit] = []
    kept: list[int] = []
    truncated = 0
    for index, unit in enumerate(units):
        room = length // len(unit)
        size = sum(len(segment.tokens) for segment in unit)
        if size > length:
            if too_long == "refuse":
                raise DougongError(
                    f"example {index} has {size} tokens, more than the {length} of a row; raise length, or truncate"
                )
            if too_long == "drop":
                continue
            unit = tuple(Segment(segment.tokens[:room], segment.targets[:room]) for segment in unit)
            if all(segment.asked for segment in unit):
                truncated += 1
        if all(segment.asked for segment in unit):
            done.append(unit)
            kept.append(index)
    return Fitted(tuple(done), tuple(kept), truncated, len(units) - len(done))


def arrange(
    units: Sequence[Unit], length: int, pad_id: int = 0, layout: Literal["packed", "padded"] = "packed"
) -> UnitRows:
    """Units that fit, in rows: several in a row by best-fit decreasing, or one."""
    sizes = [sum(len(segment.tokens) for segment in unit) for unit in units]
    rows = best_fit(sizes, length) if layout == "packed" else [(index,) for index in range(len(units))]
    return UnitRows(tuple(units), tuple(rows), length, pad_id)
