"""The same update from fewer rows: of a rollout, only what carries a gradient of its own is computed."""

from __future__ import annotations

import torch
from torch import Tensor

from dougong.align.policy import How
from dougong.data.batch import IGNORED, Batch
from dougong.parts.shapes import Float


def condensed(batch: Batch, advantages: Float[Tensor, "B T"], how: How, least: int = 1) -> tuple[Batch, Tensor]:
    """(rows, advantages) that give the gradient of the whole rollout where a row's loss is in proportion to its
    advantage, as for a ratio that begins at one and no divergence:

    - rows without an advantage are left out, which is all of a group of equal rewards
    - of equal answers to one prompt one stays, its advantage multiplied by their number
    - all advantages are scaled by the weight (rows, or tokens for `how` "token") of what stayed over that of all, so
      that the mean over what stayed is the mean over all

    At least `least` rows stay, dull ones too. Rows are cut to the longest that stayed. batch has nothing `further` yet.
    """
    mask = batch.targets != IGNORED
    copies: dict[tuple[bytes, ...], list[int]] = {}
    dull = []
    for row in range(len(batch.tokens)):
        if bool((advantages[row] != 0).any()):
            parts = (batch.tokens[row], batch.targets[row], advantages[row])
            copies.setdefault(tuple(part.numpy().tobytes() for part in parts), []).append(row)
        else:
            dull.append(row)
    stayed = torch.tensor([rows[0] for rows in copies.values()] + dull[: max(0, least - len(copies))])
    if len(stayed) < least:
        return batch, advantages
    counts = torch.ones(len(stayed))
    counts[: len(copies)] = torch.tensor([float(len(rows)) for rows in copies.values()])
    made, kept = batch.take(stayed), mask[stayed]
    share = float(kept.sum() / mask.sum().clamp(min=1)) if how == "token" else len(stayed) / len(mask)
    places = batch.tokens.shape[1] if made.filled is None else max(1, int(made.filled.max()))
    cut = Batch(made.tokens[:, :places], made.targets[:, :places], made.positions[:, :places], None, made.filled)
    return cut, (advantages[stayed] * counts[:, None] * share)[:, :places]
