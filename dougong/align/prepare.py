"""Preference examples as rows of units, and each batch of them completed with what its objective reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dougong.align import losses
from dougong.align.preferences import Pair, Steps, Verdict, verdicts_of
from dougong.align.recipe import Prefer
from dougong.align.reference import as_reference, segment_logprobs
from dougong.align.segments import (
    Segment,
    Unit,
    UnitRows,
    answer_segment,
    arrange,
    fit,
    pair_unit,
    scored_unit,
    steps_segment,
    verdict_unit,
)
from dougong.base import DougongError
from dougong.data.batch import Batch
from dougong.model import Model
from dougong.tokenizer import Tokenizer
from dougong.train.ranks import Ranks

Preference = Pair | Verdict | Steps


@dataclass(frozen=True, eq=False)
class Prepared:
    """Examples as rows, and what is known of each unit (`tables`, (units,) each) whatever the model.

    others: kto's answers to other prompts than they follow, one a unit. truncated, dropped, equal: counts.
    """

    rows: UnitRows
    tables: dict[str, Tensor]
    others: tuple[Segment, ...] = ()
    truncated: int = 0
    dropped: int = 0
    equal: int = 0


def prepare(recipe: Prefer, tokenizer: Tokenizer, examples: Sequence[Preference]) -> Prepared:
    """Encode, cut and pack the examples of one side of the split. Raises DougongError for the wrong kind of data."""
    wanted = {"kto": (Verdict, "verdicts"), "process": (Steps, "steps")}.get(recipe.method, (Pair, "pairs"))
    if recipe.method == "kto":
        pairs = [each for each in examples if isinstance(each, Pair)]
        examples = [*(each for each in examples if not isinstance(each, Pair)), *verdicts_of(pairs)]
    for each in examples:
        if not isinstance(each, wanted[0]):
            raise DougongError(f"{each.source} is a {type(each).__name__.lower()}; {recipe.method} needs {wanted[1]}")
    units = [_unit(tokenizer, each, recipe.method == "reward") for each in examples]
    fitted = fit(units, recipe.length, recipe.data.too_long)
    kept = [examples[index] for index in fitted.kept]
    rows = arrange(fitted.units, recipe.length, tokenizer.pad_id or 0, recipe.layout)
    tables: dict[str, Tensor] = {}
    others: tuple[Segment, ...] = ()
    if recipe.method == "kto":
        verdicts = [each for each in kept if isinstance(each, Verdict)]
        tables["desirable"] = torch.tensor([float(each.good) for each in verdicts])
        others = _mismatched(tokenizer, verdicts, recipe.length)
    pairs = [each for each in kept if isinstance(each, Pair)]
    if pairs:
        tables["margin"] = torch.tensor([each.margin for each in pairs])
    return Prepared(rows, tables, others, fitted.truncated, fitted.dropped, sum(each.equal for each in pairs))


def _unit(tokenizer: Tokenizer, example: Preference, scored: bool) -> Unit:
    try:
        if isinstance(example, Pair):
            return scored_unit(tokenizer, example) if scored else pair_unit(tokenizer, example)
        if isinstance(example, Verdict):
            return verdict_unit(tokenizer, example)
        return (steps_segment(tokenizer, example),)
    except DougongError as error:
        raise DougongError(f"{example.source}: {error}") from None


def _mismatched(tokenizer: Tokenizer, verdicts: Sequence[Verdict], length: int) -> tuple[Segment, ...]:
    """After each prompt the answer of the example before (the first takes the last's), cut to a row."""
    found = []
    for index, each in enumerate(verdicts):
        segment = answer_segment(tokenizer, each.prompt, verdicts[index - 1].answer, each.tools)
        found.append(Segment(segment.tokens[:length], segment.targets[:length]))
    return tuple(found)


class Preparer:
    """Completes a batch of rows with what its objective reads: the reference's log-probabilities, means over the batch.

    reference: who computes them batch by batch, the model itself being asked with its adapters off; None: nobody.

    All of it is computed over the whole batch and all ranks before the batch is cut into micro-batches, so that an
    update is the same however it is cut.
    """

    def __init__(self, recipe: Prefer, model: Model, reference: Model | None, prepared: Prepared, low: bool):
        self.recipe, self.model, self.reference, self.prepared, self.low = recipe, model, reference, prepared, low
        self.others_reference: Tensor | None = None  # (units,)

    def use(self, kept: Tensor) -> None:
        """Take the reference's log-probabilities of every segment of every unit, and then of the others, computed
        before."""
        units, tables = self.prepared.rows.units, self.prepared.tables
        if self.prepared.others:
            tables["reference"], self.others_reference = kept[: len(units)], kept[len(units) :]
        else:
            tables["reference_chosen"], tables["reference_rejected"] = kept[0::2], kept[1::2]

    def segments(self) -> list[Segment]:
        """Every segment whose log-probability under the reference may be needed, in the order of `use`."""
        return [*(segment for unit in self.prepared.rows.units for segment in unit), *self.prepared.others]

    def __call__(self, batch: Batch, ranks: Ranks) -> Batch:
        unit = batch.further["unit"]
        tables = {name: table[unit.clamp(min=0)] for name, table in self.prepared.tables.items()}
        if self.reference is not None:
            tables |= self._from_copy(unit)
        if self.recipe.method == "kto":
            tables["kl"] = self._kl(unit, ranks).expand(len(unit))
        if self.recipe.method in ("simpo", "cpo", "orpo"):
            tables["mean_tokens"] = self._mean_tokens(batch, ranks).expand(len(unit))
        return replace(batch, further={**batch.further, **tables})

    def _from_copy(self, unit: Tensor) -> dict[str, Tensor]:
        """The reference's log-probabilities of a batch's units, computed now, as (B, U) tables."""
        present = unit >= 0
        units = [self.prepared.rows.units[index] for index in unit[present].tolist()]
        found = self._against([segment for each in units for segment in each])
        sides = {"reference": found} if self.prepared.others else {
            "reference_chosen": found[0::2], "reference_rejected": found[1::2]
        }  # fmt: skip
        return {name: torch.zeros(unit.shape).masked_scatter(present, values) for name, values in sides.items()}

    def _kl(self, unit: Tensor, ranks: Ranks) -> Tensor:
        """kto's reference point, over the whole batch."""
        indices = unit[unit >= 0].tolist()
        others = [self.prepared.others[index] for index in indices]
        policy = self._score(self.model, others)
        if self.reference is not None:
            against = self._against(others)
        else:
            assert self.others_reference is not None
            against = self.others_reference[indices]
        device = self.model.like.device
        total = (policy - against).sum().to(device)
        count = torch.tensor(float(len(indices)), device=device)
        ranks.sum(total, count)
        return losses.kto_kl((total / count)[None], torch.zeros_like(total)[None]).cpu()

    def _mean_tokens(self, batch: Batch, ranks: Ranks) -> Tensor:
        """Tokens of a chosen answer, on average over the whole batch."""
        units = [
            self.prepared.rows.units[index] for row in batch.further["unit"].tolist() for index in row if index >= 0
        ]
        device = self.model.like.device
        total = torch.tensor(float(sum(unit[0].asked for unit in units)), device=device)
        count = torch.tensor(float(len(units)), device=device)
        ranks.sum(total, count)
        return (total / count).cpu()

    def _score(self, model: Model, segments: Sequence[Segment]) -> Tensor:
        rows = max(1, self.recipe.batch // self.recipe.training.accumulate)
        return segment_logprobs(model, segments, self.recipe.length, rows, self.low)

    def _against(self, segments: Sequence[Segment]) -> Tensor:
        """What the reference says of the segments."""
        assert self.reference is not None
        with as_reference(self.reference, self.model):
            return self._score(self.reference, segments)
