"""Log-probabilities with gradients, the policy's side of every loss here, without holding all logits at once."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dougong.data.batch import IGNORED, Batch
from dougong.model import Model, Output
from dougong.parts.context import Context
from dougong.parts.shapes import Float, Int
from dougong.train.objectives import Loss

# Logits held at once, in numbers: 64 MB in float32, whatever the vocabulary. Beyond it they are computed twice.
_LOGITS = 1 << 24


def logprobs(
    model: Model, batch: Batch, temperature: float = 1.0, entropy: bool = False
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"], Output]:
    """(log p(target), entropy of p) of p = softmax(logits / temperature), float32, 0 where the target is -100; and the
    forward pass. Only places with a target reach the head. The entropy has no gradient, and is 0 unless asked for."""
    output = model(batch.tokens, documents=batch.documents, positions=batch.positions)
    kept = batch.targets != IGNORED
    hidden, targets = output.hidden[kept], batch.targets[kept]
    rows = max(1, _LOGITS // model.spec.vocab)
    parts: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(targets), rows):
        span = slice(start, start + rows)
        if len(targets) <= rows or not torch.is_grad_enabled():
            parts.append(_chosen(model, hidden[span], targets[span], temperature, entropy))
        else:
            part = checkpoint(_chosen, model, hidden[span], targets[span], temperature, entropy, use_reentrant=False)
            assert isinstance(part, tuple)
            parts.append(part)
    values = [hidden.new_zeros(kept.shape, dtype=torch.float32) for _ in range(2)]
    if parts:
        found = [torch.cat(each) for each in zip(*parts, strict=True)]
        values = [value.masked_scatter(kept, each) for value, each in zip(values, found, strict=True)]
    return values[0], values[1], output


def _chosen(model: Model, hidden: Tensor, targets: Tensor, temperature: float, entropy: bool) -> tuple[Tensor, Tensor]:
    logits = model.logits(hidden).float()
    if temperature != 1:
        logits = logits / temperature
    normaliser = logits.logsumexp(-1)
    chosen = logits.gather(-1, targets[:, None])[:, 0] - normaliser
    if not entropy:
        return chosen, torch.zeros_like(chosen)
    with torch.no_grad():
        return chosen, normaliser - (logits.softmax(-1) * logits).sum(-1)


def scores(model: Model, batch: Batch) -> Float[Tensor, "*shape labels"]:
    """What the task head says at every place whose target is not -100 (0 elsewhere), (B, T, labels): a text's score at
    its end, a step's at the step's. Documents may share a row, for each place is asked for itself."""
    assert model.task is not None
    ctx = Context.of(batch.tokens, None, batch.documents, batch.positions, model.spec.causal)
    hidden = model.run(batch.tokens, ctx).hidden
    kept = batch.targets != IGNORED
    head = model.task.output
    assert isinstance(head, torch.nn.Module)
    found = head(hidden[kept]).float()  # (n, labels)
    empty = found.new_zeros((*kept.shape, found.shape[-1]))
    return empty.masked_scatter(kept[..., None], found)


def by_document(values: Float[Tensor, "B T"], documents: Int[Tensor, "B T"], count: int) -> Float[Tensor, "B {count}"]:
    """Sums over the places of each document 0 .. count-1 of a row; padding is one more, which is left out."""
    sums = values.new_zeros(len(values), count + 1)
    return sums.scatter_add(1, documents.clamp(max=count), values)[:, :count]


def with_routing(loss: Loss, output: Output) -> Loss:
    """`loss` with what the routers of experts ask for, as a mean over tokens; their loads go to the trainer."""
    if output.auxiliary is None:
        return replace(loss, loads=output.loads)
    extra = output.auxiliary * loss.weight
    metrics = {**loss.metrics, "auxiliary": extra.detach()}
    return replace(loss, sum=loss.sum + extra, metrics=metrics, loads=output.loads)
