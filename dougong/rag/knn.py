"""kNN-LM (Khandelwal et al. 2020, equations 2 and 3): what followed in places like this one joins the prediction.

    p(y | x) = lam p_knn(y | x) + (1 - lam) p_lm(y | x)
    p_knn(y | x) ~ sum over the k nearest stored (h_i, y_i) with y_i = y of exp(-|h - h_i|^2 / temperature)

A stored place is the last hidden state h before the head, and the token y that followed (`datastore`). Nothing is
trained. The engine does the rest: `Sampling(processor=KnnLM(...))` to generate, `Engine.score_texts(processor=...)` for
perplexity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.engine import Engine, LogitsProcessor
from dougong.model import ModelSpec
from dougong.parts.shapes import Float
from dougong.rag.datastore import Datastore, rows_of


@final
class KnnLM:
    """A `LogitsProcessor` that mixes in the next tokens of the nearest places of a datastore.

    lam          weight of the looked-up distribution, 0 (the model's own logits, untouched) to 1 (it alone)
    k            neighbours of a place
    temperature  of their squared distances; None: the mean squared distance of the neighbours at hand, which suits any
                 model (the paper's is 1)

    Raises DougongError for settings out of range and an empty datastore.
    """

    def __init__(self, datastore: Datastore, *, lam: float = 0.25, k: int = 16, temperature: float | None = None):
        if not 0 <= lam <= 1:
            raise DougongError(f"lam is {lam}; expected 0 (the model alone) to 1 (the datastore alone)")
        if k < 1:
            raise DougongError(f"k is {k}; expected at least 1 neighbour")
        if temperature is not None and not 0 < temperature < math.inf:
            raise DougongError(f"temperature is {temperature}; expected above 0, or None for that of the neighbours")
        if not len(datastore):
            raise DougongError("the datastore is empty; add texts to it first")
        self.datastore, self.lam, self.k, self.temperature = datastore, lam, k, temperature

    def check(self, spec: ModelSpec) -> None:
        """Raise DougongError for a model that reads both ways, or is not of the datastore's width and vocabulary."""
        if not spec.causal:
            raise DougongError("a kNN-LM predicts the next token; this model reads both ways")
        self.datastore.check(spec.width, spec.vocab)

    def process(self, hidden: Float[Tensor, "N D"], logits: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
        """Natural log-probabilities of the mixed distribution, float32; the logits themselves where lam is 0."""
        if self.lam == 0:
            return logits
        weights, values = self._neighbours(hidden)
        # Neighbours often have the same token: their weights are summed up before the logarithm.
        summed = torch.zeros(logits.shape, device=logits.device).scatter_add_(-1, values, weights)
        found = summed.gather(-1, values).log() + math.log(self.lam)
        kept = math.log1p(-self.lam) if self.lam < 1 else -math.inf
        mixed = logits.float().log_softmax(-1) + kept
        return mixed.scatter_(-1, values, torch.logaddexp(mixed.gather(-1, values), found))

    def _neighbours(self, hidden: Float[Tensor, "N D"]) -> tuple[Tensor, Tensor]:
        """Weights (N, k), which sum to 1, and values (N, k) of the nearest places."""
        distances, found = self.datastore.search(hidden.float().cpu().numpy(), self.k)
        far, values = torch.from_numpy(distances), torch.from_numpy(found)
        there = far.isfinite()
        scale = self.temperature
        if scale is None:
            mean = far.masked_fill(~there, 0).sum(-1, keepdim=True) / there.sum(-1, keepdim=True).clamp(min=1)
            scale = mean.clamp(min=1e-6)
        weights = ((far[:, :1] - far) / scale).softmax(-1)
        return weights.to(hidden.device), values.to(hidden.device)


def surprise(
    engine: Engine,
    texts: Sequence[Sequence[int]],
    processor: LogitsProcessor | None = None,
    length: int | None = None,
) -> tuple[float, int]:
    """(sum of -log p over all tokens but each text's first, how many those are), in nats; of a processor's distribution
    where one is given. Texts are read as `Datastore.add_texts` reads them; perplexity is exp(sum / count)."""
    rows = [row for text in texts for row in rows_of(text, engine.lm.spec.context if length is None else length)]
    told = engine.score_texts(rows, processor=processor)
    return -math.fsum(each.logprob for row in told for each in row), sum(map(len, told))
