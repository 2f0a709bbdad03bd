"""The trainer's objectives for preferences: a batch of packed units to the pure losses of `losses`."""

from __future__ import annotations

from torch import Tensor

from dougong.align import losses
from dougong.align.logprobs import by_document, logprobs, scores, with_routing
from dougong.align.recipe import SCORING, Method, PreferenceLoss
from dougong.data.batch import IGNORED, Batch
from dougong.model import Model
from dougong.train.loop import Objective
from dougong.train.objectives import Loss


def sides(values: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """(chosen, rejected) sums (N,) over the two documents of every pair in the batch, from values (B, T)."""
    present = batch.further["unit"] >= 0  # (B, U)
    assert batch.documents is not None
    sums = by_document(values, batch.documents, 2 * present.shape[1])
    return sums[:, 0::2][present], sums[:, 1::2][present]


def singles(values: Tensor, batch: Batch) -> Tensor:
    """Sums (N,) over the document of every unit of one segment."""
    present = batch.further["unit"] >= 0
    assert batch.documents is not None
    return by_document(values, batch.documents, present.shape[1])[present]


def of_units(batch: Batch, name: str) -> Tensor:
    """further[name] (B, U) of the units that are there, (N,)."""
    return batch.further[name][batch.further["unit"] >= 0]


def objective(method: Method, how: PreferenceLoss) -> Objective:
    """The objective of a method. It reads from a batch's `further`, (B, U) each: reference_chosen and
    reference_rejected, or reference and desirable (kto), margin (reward); and (B,): mean_tokens, kl."""
    if method in SCORING:
        return _reward(how) if method == "reward" else _process
    if method == "kto":
        return _kto(how)
    return _pairs(method, how)


def _pairs(method: Method, how: PreferenceLoss) -> Objective:
    def compute(model: Model, batch: Batch) -> Loss:
        values, _, output = logprobs(model, batch)
        policy = sides(values, batch)
        tokens = sides((batch.targets != IGNORED).float(), batch)
        if method in ("dpo", "cdpo", "ipo"):
            against = of_units(batch, "reference_chosen"), of_units(batch, "reference_rejected")
            if method == "ipo":
                loss = losses.ipo(*policy, *against, how.beta, *tokens)
            else:
                smoothing = how.label_smoothing if method == "cdpo" else 0.0
                loss = losses.dpo(*policy, *against, how.beta, smoothing)
        else:
            mean = batch.further["mean_tokens"][0]
            if method == "simpo":
                alpha = how.alpha or 0.0
                loss = losses.simpo(*policy, how.beta, how.gamma, *tokens, alpha, mean, how.label_smoothing)
            elif method == "cpo":
                alpha = 1.0 if how.alpha is None else how.alpha
                loss = losses.cpo(*policy, how.beta, alpha, tokens[0], how.label_smoothing, mean)
            else:
                loss = losses.orpo(*policy, how.beta, *tokens, mean_tokens=mean)
        return with_routing(loss, output)

    return compute


def _kto(how: PreferenceLoss) -> Objective:
    def compute(model: Model, batch: Batch) -> Loss:
        values, _, output = logprobs(model, batch)
        good = of_units(batch, "desirable") > 0
        against, kl = of_units(batch, "reference"), batch.further["kl"][0]
        loss = losses.kto(singles(values, batch), against, good, kl, how.beta, how.desirable, how.undesirable)
        return with_routing(loss, output)

    return compute


def _reward(how: PreferenceLoss) -> Objective:
    def compute(model: Model, batch: Batch) -> Loss:
        chosen, rejected = sides(scores(model, batch).squeeze(-1), batch)
        margin = of_units(batch, "margin") if how.margin else None
        return losses.reward(chosen, rejected, margin, how.center)

    return compute


def _process(model: Model, batch: Batch) -> Loss:
    return losses.process_reward(scores(model, batch), batch.targets)
