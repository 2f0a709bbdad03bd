"""What cross-attention reads, for a batch at once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as Many
from typing import NamedTuple

import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.engine.sequence import Sequence

_KEPT = 2  # batches: those who decode, and those who are being read


class Source(NamedTuple):
    """The sources of a batch side by side. kept: what the layers have made of them."""

    hidden: Tensor
    padding: Tensor
    kept: dict[tuple[int, str], Tensor]


class Sources:
    """Remembers the sources of the last batches while their sequences are open."""

    def __init__(self) -> None:
        self._found: OrderedDict[tuple[int, ...], Source] = OrderedDict()

    def of(self, order: Many[Sequence]) -> Source:
        key = tuple(id(seq) for seq in order)
        if key not in self._found:
            rows = []
            for seq in order:
                if seq.source is None:
                    raise DougongError("this model has an encoder; open its sequences with a source")
                rows.append(seq.source)
            hidden = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            lengths = torch.tensor([len(row) for row in rows], device=hidden.device)
            padding = torch.arange(hidden.shape[1], device=hidden.device) >= lengths[:, None]
            self._found[key] = Source(hidden, padding, {})
            while len(self._found) > _KEPT:
                self._found.popitem(last=False)
        self._found.move_to_end(key)
        return self._found[key]

    def leave(self, seq: Sequence) -> None:
        """The sequence is closed."""
        for key in [key for key in self._found if id(seq) in key]:
            del self._found[key]
