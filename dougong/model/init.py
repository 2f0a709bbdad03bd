"""Weight initialisation, all of it."""

from __future__ import annotations

import torch
from torch import nn

from dougong.model.decoder import Model
from dougong.parts.embedding import EmbeddingLayer
from dougong.parts.linear import Dense, Linear
from dougong.parts.norm import LayerNorm, RMSNorm


def initialise(model: Model, seed: int = 0) -> Model:
    """Fill a model's parameters from a generator of its own, so that they do not depend on what ran before.

    Normal with these standard deviations; biases 0, norms 1.
    - inputs of a residual branch (q, k, v, gate, up): fan_in^-1/2, which keeps the variance of the activations
    - outputs onto the residual path (o, down): 0, so that every layer starts as the identity and the token's own
      embedding reaches the last layer undisturbed (docs/log.md has what that gains)
    - embedding: 1, the size of what the layers will add; 0.02 when it is tied to the head
    - head: 0.02, so that the first loss is close to ln(vocab)
    """
    generator = torch.Generator().manual_seed(seed)
    embedding = 0.02 if model.spec.head.tied else 1.0

    def fill(parameter: torch.Tensor, deviation: float) -> None:
        values = torch.empty(parameter.shape).normal_(0.0, deviation, generator=generator)
        parameter.copy_(values)

    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, EmbeddingLayer):
                for storage in (module.storage, module.position):
                    if isinstance(storage, Dense):
                        fill(storage.weight, embedding)
            elif isinstance(module, Linear):
                tied = module is model.head and model.spec.head.tied
                if isinstance(module.storage, Dense) and not tied:
                    out = name.endswith((".o", ".down"))
                    deviation = 0.02 if module is model.head else 0.0 if out else module.in_features**-0.5
                    fill(module.storage.weight, deviation)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, (RMSNorm, LayerNorm)):
                nn.init.ones_(module.weight)
                if isinstance(module, LayerNorm) and module.bias is not None:
                    nn.init.zeros_(module.bias)
    return model
