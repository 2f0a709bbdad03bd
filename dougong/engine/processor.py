"""A hook between the model and the choice of a token: what makes another distribution of the model's own.

A processor sees the final hidden states beside the logits, so it may look a state up (kNN-LM), read the logits of an
earlier layer's kind, or only change numbers. It stands before everything else that a request asks: biases, penalties,
bans, grammar, temperature and cuts act on what it gives, beams and speculation search and confirm under it, and
log-probabilities are told of it. What is stored of a text does not depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.engine.work import Result
from dougong.model import ModelSpec
from dougong.parts.shapes import Float


@runtime_checkable
class LogitsProcessor(Protocol):
    """Rows are independent of each other: which of them share a call must not matter."""

    def check(self, spec: ModelSpec) -> None:
        """Raise DougongError for a model that it cannot serve. Asked before a request begins."""
        ...

    def process(self, hidden: Float[Tensor, "N D"], logits: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
        """Logits in the place of the model's own: the next token's distribution is their softmax. hidden: the states
        that the head made the logits of, after the last norm. Neither may be written to. Raises DougongError, which
        ends the requests of this processor alone."""
        ...


def processed(
    processor: LogitsProcessor, hidden: Float[Tensor, "N D"], logits: Float[Tensor, "N V"]
) -> Float[Tensor, "N V"]:
    """What a processor makes of logits. Raises DougongError for an answer of another shape."""
    made = processor.process(hidden, logits)
    if made.shape != logits.shape:
        raise DougongError(
            f"{type(processor).__name__} gave logits of shape {tuple(made.shape)} for {tuple(logits.shape)}; a "
            "processor gives a row of the vocabulary's size for each row"
        )
    return made


@torch.inference_mode()
def process(results: Sequence[Result], processors: Sequence[LogitsProcessor | None]) -> list[Result | DougongError]:
    """Results of a step with the logits that each one's processor gives (None: the model's own), a call for each
    processor; in the place of those whose processor refuses, why."""
    out: list[Result | DougongError] = list(results)
    asking: dict[int, list[int]] = {}
    for number, (result, processor) in enumerate(zip(results, processors, strict=True)):
        if processor is not None and len(result.logits):
            asking.setdefault(id(processor), []).append(number)
    for numbers in asking.values():
        processor = processors[numbers[0]]
        assert processor is not None
        hidden = torch.cat([results[number].hidden for number in numbers])
        try:
            logits = processed(processor, hidden, torch.cat([results[number].logits for number in numbers]))
        except DougongError as error:
            for number in numbers:
                out[number] = error
            continue
        start = 0
        for number in numbers:
            own = slice(start, start + len(results[number].logits))
            out[number] = Result(results[number].hidden, logits[own], logits, start)
            start = own.stop
    return out
