"""One vector for each text: what its model's own pooling gives, or the mean of its hidden states."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dougong.engine.encoding import encoding
from dougong.model import Model
from dougong.parts.context import Context
from dougong.parts.heads import Pooled, pool
from dougong.parts.shapes import Bool, Float


@torch.inference_mode()
def embed_tokens(model: Model, texts: Sequence[list[int]], budget: int) -> Float[Tensor, "N D"]:
    """Embeddings in the texts' order, float32. Models without a pooling of their own: the mean over a text's last
    hidden states, brought to length 1. Texts of similar length share a forward pass of about `budget` tokens, or all go
    by tape."""
    if (read := encoding(model).read(model, texts)) is not None:
        return torch.cat([_vectors(model, hidden[None], None) for hidden in read])
    device = model.like.device
    out: list[Tensor | None] = [None] * len(texts)
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    while order:
        batch = [order.pop()]
        longest = len(texts[batch[0]])
        while order and (len(batch) + 1) * longest <= budget and 2 * len(texts[order[-1]]) >= longest:
            batch.append(order.pop())
        tokens = torch.zeros(len(batch), longest, dtype=torch.int64)
        padding = torch.ones(len(batch), longest, dtype=torch.bool)
        for row, index in enumerate(batch):
            tokens[row, : len(texts[index])] = torch.tensor(texts[index])
            padding[row, : len(texts[index])] = False
        tokens, padding = tokens.to(device), padding.to(device)
        ragged = padding if bool(padding.any()) else None
        run = model.run(tokens, Context.of(tokens, ragged, causal=model.spec.causal))
        vectors = _vectors(model, run.hidden, None if ragged is None else ~ragged)
        for row, index in enumerate(batch):
            out[index] = vectors[row]
    found = [each for each in out if each is not None]
    return torch.stack(found) if found else torch.zeros(0, model.spec.width)


def _vectors(model: Model, hidden: Float[Tensor, "B T D"], real: Bool[Tensor, "B T"] | None) -> Float[Tensor, "B D"]:
    if isinstance(model.spec.task, Pooled):
        assert model.task is not None
        return model.task(hidden, real).float()
    return F.normalize(pool(hidden, real, "mean").float(), dim=-1)
