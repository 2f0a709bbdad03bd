"""The objective of multi-token prediction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dougong.data.batch import Batch
from dougong.model import Model
from dougong.parts.context import Context
from dougong.parts.cross_entropy import cross_entropy
from dougong.parts.linear import Linear
from dougong.parts.shapes import Float, Int
from dougong.train.objectives import Loss


def later_targets(
    targets: Int[Tensor, "B T"], depth: int, documents: Int[Tensor, "B T"] | None = None
) -> Int[Tensor, "B T"]:
    """What depth `depth` predicts: the target `depth` places on; -100 where the document does not reach so far."""
    later = F.pad(targets[:, depth:], (0, min(depth, targets.shape[1])), value=-100)
    if documents is None:
        return later
    beyond = F.pad(documents[:, depth:], (0, min(depth, targets.shape[1])), value=-1)
    return torch.where(beyond == documents, later, -100)


def mtp_loss(
    main: Loss,
    hiddens: Sequence[Float[Tensor, "B T D"]],
    head: Linear,
    targets: Int[Tensor, "B T"],
    documents: Int[Tensor, "B T"] | None = None,
    share: float = 0.3,
    softcap: float | None = None,
) -> Loss:
    """main + share / D sum_k CE_k over the D depths (DeepSeek-V3, equations 24 and 25; its share was 0.3, later 0.1).

    hiddens are those of the depths 1 to D, targets those of the main loss. As in the paper every depth is divided by
    the number of the main targets, though it has a few less. The metric "mtp" is the mean CE_k over that number.
    """
    sums = [
        cross_entropy(hidden, head, later_targets(targets, depth, documents), softcap=softcap)[0]
        for depth, hidden in enumerate(hiddens, 1)
    ]
    extra = torch.stack(sums).mean()
    return Loss(main.sum + share * extra, main.weight, {**main.metrics, "mtp": extra.detach()})


def with_mtp(model: Model, batch: Batch, hidden: Float[Tensor, "B T D"], main: Loss) -> Loss:
    """`main`, with the loss of the model's further layers where it has them; `hidden` is what they begin with."""
    if model.mtp is None or model.spec.head is None:
        return main
    ctx = Context.of(batch.tokens, None, batch.documents, batch.positions)
    later = model.mtp(hidden, model.embedding(batch.tokens, ctx), ctx)
    features = [model.features(each) for each in later]
    return mtp_loss(main, features, model.head, batch.targets, batch.documents, softcap=model.spec.head.softcap)
