"""Log-probabilities of given tokens, by full forward passes: what training computes, and the engine must agree with."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dougong.model import Model
from dougong.parts.context import Context

# Logits held at once, in numbers: 64 MB in float32, whatever the vocabulary.
_LOGITS = 1 << 24


@torch.inference_mode()
def score_tokens(model: Model, pairs: Sequence[tuple[list[int], list[int]]], budget: int) -> list[list[float]]:
    """log p(token | all before it) for every token of each pair's second list, untempered.

    Texts of similar length share a forward pass of about `budget` tokens, padded at the end, which no token sees.
    """
    device = next(model.parameters()).device
    scores: list[list[float]] = [[] for _ in pairs]
    order = sorted(range(len(pairs)), key=lambda index: sum(map(len, pairs[index])))
    while order:
        # The longest first: the first batch is the largest, so memory does not run out late.
        batch = [order.pop()]
        longest = sum(map(len, pairs[batch[0]]))
        while order and (len(batch) + 1) * longest <= budget and 2 * sum(map(len, pairs[order[-1]])) >= longest:
            batch.append(order.pop())
        tokens = torch.zeros(len(batch), longest, dtype=torch.int64)
        for row, index in enumerate(batch):
            whole = pairs[index][0] + pairs[index][1]
            tokens[row, : len(whole)] = torch.tensor(whole, dtype=torch.int64)
        tokens = tokens.to(device)
        hidden = model.run(tokens, Context.of(tokens)).hidden  # (B, T, D)
        for row, index in enumerate(batch):
            prompt, completion = pairs[index]
            before = hidden[row, len(prompt) - 1 : len(prompt) + len(completion) - 1]
            scores[index] = _chosen(model, before, torch.tensor(completion, dtype=torch.int64, device=device))
    return scores


def _chosen(model: Model, hidden: torch.Tensor, tokens: torch.Tensor) -> list[float]:
    """log softmax(head(hidden)) at `tokens`, some rows at a time."""
    rows = max(1, _LOGITS // model.spec.vocab)
    found: list[float] = []
    for start in range(0, len(tokens), rows):
        logits = model.logits(hidden[start : start + rows]).float()
        chosen = logits.gather(-1, tokens[start : start + rows, None])[:, 0]
        found += (chosen - logits.logsumexp(-1)).tolist()
    return found
