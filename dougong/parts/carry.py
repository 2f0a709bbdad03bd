"""Running a recurrence along rows: from a fresh state, document by document, or on from the state in hand."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dougong.parts.context import Context
from dougong.parts.segments import by_document, check_one_way
from dougong.parts.shapes import Float, Int
from dougong.parts.state import LayerState, Slots

Pieces = dict[str, Tensor]
Counts = Int[Tensor, " B"] | None
Run = Callable[[Tensor, Pieces, Counts], tuple[Tensor, Pieces]]

ENDLESS = 1 << 20  # the context of models that read texts of any length: a spec has to name one


def carry(
    run: Run, x: Float[Tensor, "B T D"], ctx: Context, state: LayerState | None, slots: Slots
) -> Float[Tensor, "B T E"]:
    """`run(rows, past, counts) -> (y, new)`, where past and new hold a tensor (B, *shape) for each of `slots`.

    Without a state every document of the batch is run from zeros. With one, `past` is read from it and `new`, which is
    the state after the first counts[b] tokens of row b (None: after all), is written back. Raises DougongError in a
    context where tokens see later ones.
    """
    if state is not None:
        check_one_way(ctx)
        y, new = run(x, {name: state.read(name) for name in slots}, ctx.counts)
        for name, value in new.items():
            state.write(name, value)
        return y

    def fresh(rows: Tensor) -> Tensor:
        past = {
            name: torch.zeros(len(rows), *slot.shape, dtype=slot.dtype or rows.dtype, device=rows.device)
            for name, slot in slots.items()
        }
        return run(rows, past, None)[0]

    return by_document(fresh, x, ctx)


def real_tokens(x: Float[Tensor, "B T *D"], counts: Counts) -> Tensor | None:
    """Which tokens of each row are no padding, (B, T); None: all of them."""
    return None if counts is None else torch.arange(x.shape[1], device=x.device) < counts[:, None]


def without_padding(x: Float[Tensor, "B T *D"], counts: Counts) -> Float[Tensor, "B T *D"]:
    """x with zeros in place of what stands at padding."""
    real = real_tokens(x, counts)
    return x if real is None else x.masked_fill(~real.view(*real.shape, *(1,) * (x.ndim - 2)), 0)


def pad_to_chunks(x: Float[Tensor, "B T *D"], size: int) -> Float[Tensor, "B n c *D"]:
    """The tokens in chunks of `size`, the last one filled up with zeros."""
    batch, tokens = x.shape[:2]
    missing = -tokens % size
    if missing:
        x = torch.cat((x, x.new_zeros(batch, missing, *x.shape[2:])), 1)
    return x.unflatten(1, (-1, size))
