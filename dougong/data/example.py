"""One example to learn from: ids, and which of them carry loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """One example: `ids` (n,) and `loss_mask` (n,), true where the token is to be learnt as a target.

    n tokens make n - 1 places: each token but the last is read, each but the first predicted.
    """

    ids: Sequence[int]
    loss_mask: Sequence[bool]
