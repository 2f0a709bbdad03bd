"""Weight initialisation, all of it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import nn

from dougong.model.decoder import Model
from dougong.parts.embedding import EmbeddingLayer, Normalised
from dougong.parts.linear import Dense, Linear
from dougong.parts.norm import BatchNorm, LayerNorm, RMSNorm


@runtime_checkable
class Initial(Protocol):
    """A part with parameters that are neither a Linear's nor a norm's."""

    def initial(self, generator: torch.Generator) -> None:
        """Fill them in place."""
        ...


def initialise(model: Model, seed: int = 0) -> Model:
    """Fill a model's parameters from a generator of its own, so that they do not depend on what ran before.

    Normal with these standard deviations; biases 0, norms 1.
    - inputs of a residual branch (q, k, v, gate, up): fan_in^-1/2, which keeps the variance of the activations
    - outputs onto the residual path (o, down): 0, so that every layer starts as the identity and the token's own
      embedding reaches the last layer undisturbed (docs/log.md has what that gains)
    - embedding: 1, the size of what the layers will add; 0.02 when it is tied to the head
    - head: 0.02, so that the first loss is close to ln(vocab); so for the scores of a task
    - relative positions: 0.02. Parts with parameters of another kind fill them themselves (`initial`).
    """
    generator = torch.Generator().manual_seed(seed)
    tied = model.spec.head is not None and model.spec.head.tied
    embedding = 0.02 if tied else 1.0

    def fill(parameter: torch.Tensor, deviation: float) -> None:
        values = torch.empty(parameter.shape).normal_(0.0, deviation, generator=generator)
        parameter.copy_(values)

    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, EmbeddingLayer):
                for storage in (module.storage, module.position, module.types):
                    if isinstance(storage, Dense):
                        fill(storage.weight, embedding)
            elif isinstance(module, Linear):
                if isinstance(module.storage, (Dense, Normalised)) and not (tied and module is model.head):
                    out = name.endswith((".o", ".down"))
                    scores = module is model.head or name == "task.output"
                    deviation = 0.02 if scores else 0.0 if out else module.in_features**-0.5
                    fill(module.storage.weight, deviation)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, (RMSNorm, LayerNorm, BatchNorm)):
                if module.weight is not None:
                    nn.init.constant_(module.weight, 1.0 - module.offset if isinstance(module, RMSNorm) else 1.0)
                if not isinstance(module, RMSNorm) and module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, Initial):
                module.initial(generator)
            if isinstance(module, Model) and isinstance(module.relative, Dense):
                fill(module.relative.weight, 0.02)
    return model
