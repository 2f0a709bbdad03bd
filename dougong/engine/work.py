"""What a step is asked for, and what it gives."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dougong.engine.sequence import Sequence
from dougong.parts.shapes import Float

# A forward pass costs about as much as this many tokens more in one that runs anyway: weights are read once a pass.
_PASS_COST = 12


@dataclass(frozen=True)
class Work:
    """Run `tokens` after what `seq` holds; logits are wanted of the last `want` of them."""

    seq: Sequence
    tokens: list[int]
    want: int = 0


class Result(NamedTuple):
    """hidden and logits after each of the last `want` tokens. rows: the logits of the whole pass, of which this
    result's begin at `at`."""

    hidden: Float[Tensor, "want D"]
    logits: Float[Tensor, "want V"]
    rows: Float[Tensor, "N V"]
    at: int


def stacked(results: Many[Result]) -> tuple[Float[Tensor, "N V"], list[int]]:
    """The logits of results that want one row each, and for each row the number of its result.

    Results of one pass stand side by side already, in an order of the pass's own: nothing is copied then.
    """
    first = results[0].rows
    order = sorted(range(len(results)), key=lambda number: results[number].at)
    side_by_side = all(results[number].at == row for row, number in enumerate(order))
    if side_by_side and len(first) == len(results) and all(result.rows is first for result in results):
        return first, order
    return torch.cat([result.logits for result in results]), list(range(len(results)))


def last_wanted(rows: Many[Work], hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "N D"]:
    """The hidden states after the last `want` tokens of each row, one row after the other."""
    if all(each.want == 1 and len(each.tokens) == hidden.shape[1] for each in rows):
        return hidden[:, -1]
    picked = [
        (row, place) for row, each in enumerate(rows) for place in range(len(each.tokens) - each.want, len(each.tokens))
    ]
    where = torch.tensor(picked, dtype=torch.int64, device=hidden.device).view(-1, 2)
    return hidden[where[:, 0], where[:, 1]]


def by_cost(lengths: Many[int]) -> list[list[int]]:
    """Numbers of the rows that share a pass: a row joins shorter ones while the padding they then need costs less than
    a pass of its own."""
    groups: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda number: lengths[number]):
        if groups and len(groups[-1]) * (lengths[number] - lengths[groups[-1][-1]]) <= _PASS_COST:
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups


def batches(lengths: Many[int], budget: int) -> Iterator[list[int]]:
    """Numbers of texts that share a forward pass of about `budget` tokens, padding included: those of similar length,
    the longest first, so that memory does not run out late."""
    order = sorted(range(len(lengths)), key=lambda number: lengths[number])
    while order:
        batch = [order.pop()]
        longest = lengths[batch[0]]
        while order and (len(batch) + 1) * longest <= budget and 2 * lengths[order[-1]] >= longest:
            batch.append(order.pop())
        yield batch
