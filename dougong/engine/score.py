"""Log-probabilities of given tokens, by full forward passes: what training computes, and the engine must agree with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from dougong.engine.adapters import adapted
from dougong.engine.processor import LogitsProcessor, processed
from dougong.engine.request import Top
from dougong.engine.work import batches
from dougong.model import Model
from dougong.parts.context import Context

# Logits held at once, in numbers: 64 MB in float32, whatever the vocabulary.
_LOGITS = 1 << 24


class Scored(NamedTuple):
    """A token's log-probability, and the most probable tokens at its place, (id, log-probability) each."""

    logprob: float
    top: Top = ()


@torch.inference_mode()
def score_tokens(
    model: Model,
    pairs: Sequence[tuple[list[int], list[int]]],
    budget: int,
    top: int = 0,
    adapter: str | None = None,
    processor: LogitsProcessor | None = None,
) -> list[list[Scored]]:
    """log p(token | all before it) for every token of each pair's second list, untempered, with the `top` best.

    Texts of similar length share a forward pass of about `budget` tokens, padded at the end, which no token sees.
    adapter: see `Engine.stream`. processor: see `Sampling`.
    """
    device = model.like.device
    scores: list[list[Scored]] = [[] for _ in pairs]
    for batch in batches([sum(map(len, pair)) for pair in pairs], budget):
        longest = sum(map(len, pairs[batch[0]]))
        tokens = torch.zeros(len(batch), longest, dtype=torch.int64)
        for row, index in enumerate(batch):
            whole = pairs[index][0] + pairs[index][1]
            tokens[row, : len(whole)] = torch.tensor(whole, dtype=torch.int64)
        tokens = tokens.to(device)
        with adapted(model, [adapter] * len(batch)):
            hidden = model.run(tokens, Context.of(tokens)).hidden  # (B, T, D)
        for row, index in enumerate(batch):
            prompt, completion = pairs[index]
            before = hidden[row, len(prompt) - 1 : len(prompt) + len(completion) - 1]
            chosen = torch.tensor(completion, dtype=torch.int64, device=device)
            with adapted(model, [adapter]):
                scores[index] = _chosen(model, before, chosen, top, processor)
    return scores


def _chosen(
    model: Model, hidden: torch.Tensor, tokens: torch.Tensor, top: int, processor: LogitsProcessor | None
) -> list[Scored]:
    """log softmax(head(hidden)) at `tokens`, and its largest values, some rows at a time."""
    rows = max(1, _LOGITS // model.spec.vocab)
    found: list[Scored] = []
    for start in range(0, len(tokens), rows):
        logits = model.logits(hidden[start : start + rows])
        if processor is not None:
            logits = processed(processor, hidden[start : start + rows], logits)
        logits = logits.float()
        norm = logits.logsumexp(-1, keepdim=True)
        chosen = (logits.gather(-1, tokens[start : start + rows, None]) - norm)[:, 0].tolist()
        if not top:
            found += [Scored(each) for each in chosen]
            continue
        values, ids = (logits - norm).topk(min(top, logits.shape[-1]), dim=-1)
        tops = zip(ids.tolist(), values.tolist(), strict=True)
        found += [Scored(own, tuple(zip(*best, strict=True))) for own, best in zip(chosen, tops, strict=True)]
    return found
