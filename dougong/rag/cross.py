"""Training a reranker: a cross-encoder must score a query's own passage above others (localised contrast)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dougong.align.heads import with_task
from dougong.base import DougongError
from dougong.hub import LanguageModel
from dougong.parts.embedding import Transform
from dougong.parts.heads import Classifier, Pooled
from dougong.parts.shapes import Float
from dougong.rag.contrastive import Pair, Training, fitted
from dougong.rag.rerank import framed, padded
from dougong.train.objectives import Loss

RELEVANT = ("relevant",)


def cross_encoder(lm: LanguageModel, seed: int = 0) -> LanguageModel:
    """A classifier of pairs with one label on copies of an encoder's weights: its pooler where it has one, else a fresh
    one, and a fresh score. Raises DougongError for a model that is no encoder."""
    if lm.spec.causal or lm.spec.encoder is not None:
        raise DougongError("a reranker reads both ways, and this model does not; begin with an encoder such as MiniLM")
    own = lm.spec.task.transform if isinstance(lm.spec.task, Pooled) else None
    task = Classifier(RELEVANT, at="first", transform=own or Transform("tanh", None))
    made = with_task(lm, task, seed)
    weights, there = lm.model.weights(), made.model.weights()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in there.items():
            if own is not None and name.startswith("task.transform."):
                parameter.copy_(weights[name])
            elif name.startswith("task.") and parameter.ndim > 1:
                parameter.normal_(0.0, 0.02, generator=draw)
    return made


def localised_contrast(scores: Float[Tensor, "B C"]) -> Loss:
    """Localised contrastive estimation (Gao, Dai and Callan 2021): of each row's candidates the first one answers,

    sum over rows of -ln( exp(s_0) / sum over j of exp(s_j) )

    Candidates that are not there have -inf.
    """
    target = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
    total = F.cross_entropy(scores, target, reduction="sum")
    right = (scores.argmax(1) == 0).sum()
    weight = torch.tensor(float(len(scores)), device=scores.device)
    return Loss(total, weight, {"accuracy": right.float().detach()})


def train_reranker(
    lm: LanguageModel,
    pairs: Sequence[Pair],
    settings: Training,
    progress: Callable[[int, float, float], None] | None = None,
    kept: Path | None = None,
) -> None:
    """Train `lm` (of `cross_encoder`) in place, as `train_embedder` trains: each query's passage against its negatives
    and one passage of another query of the batch. temperature and dims say nothing here.

    Raises DougongError as `train_embedder` does, and for a model that is no cross-encoder.
    """
    if not isinstance(lm.spec.task, Classifier) or len(lm.spec.task.labels) != 1:
        raise DougongError(
            f"a reranker has one label, but this model's task is {lm.spec.task}; make it by cross_encoder"
        )
    core = framed(lm, settings.limit)
    kinds = getattr(lm.spec.embedding, "types", 0) or 0

    def loss(batch: list[Pair], step: int) -> Loss:
        draw = random.Random(f"{settings.seed} {step}")
        rows, widest = [], 0
        for place, each in enumerate(batch):
            others = [other.passage for other in batch if other.passage not in (each.passage, *each.negatives)]
            texts = [each.passage, *each.negatives, *draw.sample(others, min(1, len(others)))]
            rows += [(place, each.query, text) for text in texts]
            widest = max(widest, len(texts))
        encoded = core.encode_batch([(query, text) for _, query, text in rows])
        tokens, types, padding = padded([(row.ids, row.type_ids) for row in encoded])
        found = lm.model(tokens, padding=padding, types=types if kinds > 1 else None).logits.float()[:, 0]
        scores, counts = torch.full((len(batch), widest), -torch.inf), [0] * len(batch)
        columns = []
        for place, _, _ in rows:
            columns.append(counts[place])
            counts[place] += 1
        where = torch.tensor([place for place, _, _ in rows]), torch.tensor(columns)
        return localised_contrast(scores.index_put(where, found))

    fitted(lm.model, pairs, replace(settings, dims=()), loss, progress, kept)
