"""What a model makes of texts, by full forward passes: the states of their tokens, or one vector for each text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dougong.engine.adapters import adapted
from dougong.engine.encoding import encoding
from dougong.engine.work import batches
from dougong.model import Model
from dougong.model.decoder import Output
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
    out: list[Tensor | None] = [None] * len(texts)
    for batch in batches([len(text) for text in texts], budget):
        run, padding = _run(model, [texts[index] for index in batch])
        vectors = _vectors(model, run.hidden, ~padding if bool(padding.any()) else None)
        for row, index in enumerate(batch):
            out[index] = vectors[row]
    found = [each for each in out if each is not None]
    return torch.stack(found) if found else torch.zeros(0, model.spec.width)


def _vectors(model: Model, hidden: Float[Tensor, "B T D"], real: Bool[Tensor, "B T"] | None) -> Float[Tensor, "B D"]:
    if isinstance(model.spec.task, Pooled):
        assert model.task is not None
        return model.task(hidden, real).float()
    return F.normalize(pool(hidden, real, "mean").float(), dim=-1)


@torch.inference_mode()
def states_of(
    model: Model, texts: Sequence[list[int]], budget: int, adapter: str | None = None
) -> list[Float[Tensor, "T D"]]:
    """The last hidden states of each text's tokens, in the texts' order and the model's type. Texts of similar length
    share a forward pass of about `budget` tokens. adapter: see `Engine.stream`."""
    out: dict[int, Tensor] = {}
    for batch in batches([len(text) for text in texts], budget):
        with adapted(model, [adapter] * len(batch)):
            hidden = _run(model, [texts[index] for index in batch])[0].hidden
        for row, index in enumerate(batch):
            out[index] = hidden[row, : len(texts[index])].clone()  # padding would be kept with a view
    return [out[index] for index in range(len(texts))]


def _run(model: Model, texts: Sequence[list[int]]) -> tuple[Output, Bool[Tensor, "B T"]]:
    """A forward pass over texts, padded at their ends, and where they are padded. The first is the longest."""
    tokens = torch.zeros(len(texts), len(texts[0]), dtype=torch.int64)
    padding = torch.ones(len(texts), len(texts[0]), dtype=torch.bool)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = torch.tensor(text)
        padding[row, : len(text)] = False
    device = model.like.device
    tokens, padding = tokens.to(device), padding.to(device)
    ragged = padding if bool(padding.any()) else None
    return model.run(tokens, Context.of(tokens, ragged, causal=model.spec.causal)), padding
