"""Virtual tokens in rows: put in front of every document before the model reads them, and taken out of its output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.parts.shapes import Bool, Int
from dougong.tune.tuning import Tuning

if TYPE_CHECKING:
    from dougong.model import Model


@dataclass(frozen=True)
class Inserted:
    """Rows with virtual tokens. `places` (B, T) says where each of the given tokens stands now."""

    tokens: Int[Tensor, "B S"]
    positions: Int[Tensor, "B S"]
    documents: Int[Tensor, "B S"]
    places: Int[Tensor, "B T"]

    def spread(self, values: Tensor, fill: int | bool) -> Tensor:
        """(B, S): values of the given tokens at their new places, `fill` at all others."""
        return torch.full_like(self.tokens, int(fill), dtype=values.dtype).scatter_(1, self.places, values)


def insert(
    tokens: Int[Tensor, "B T"],
    prompts: list[range],
    padding: Bool[Tensor, "B T"] | None = None,
    documents: Int[Tensor, "B T"] | None = None,
    positions: Int[Tensor, "#B T"] | None = None,
) -> Inserted:
    """Put row b's `prompts[b]` (ids, perhaps none) before each of its documents. Padding is document -1, and gets none.

    Positions count on from the prompt. Rows with fewer virtual tokens than others are filled up with padding.
    """
    batch, length = tokens.shape
    documents = torch.zeros_like(tokens) if documents is None else documents
    if padding is not None:
        documents = documents.masked_fill(padding, -1)
    column = torch.arange(length, device=tokens.device).expand(batch, -1)
    before = torch.cat((documents.new_full((batch, 1), -1), documents[:, :-1]), 1)
    starts = (documents >= 0) & (documents != before)
    if positions is None:
        positions = column if padding is None else ((documents >= 0).cumsum(-1) - 1).clamp(min=0)
    count = torch.tensor([len(prompt) for prompt in prompts], device=tokens.device)[:, None]
    order = starts.cumsum(1)
    places = column + count * order
    total = length + int((count[:, 0] * order[:, -1]).max())
    new = tokens.new_zeros(batch, total)
    made = Inserted(new, torch.zeros_like(new), torch.full_like(new, -1), places)
    made.tokens.scatter_(1, places, tokens)
    made.documents.scatter_(1, places, documents)
    made.positions.scatter_(1, places, positions.expand(batch, -1) + count * (documents >= 0))
    for row, prompt in enumerate(prompts):
        if len(prompt):
            steps = torch.arange(len(prompt), device=tokens.device)
            at = starts[row].nonzero()  # (documents, 1)
            spots = places[row][at] - len(prompt) + steps
            made.tokens[row, spots] = steps + prompt.start
            made.positions[row, spots] = steps.expand(spots.shape)
            made.documents[row, spots] = documents[row][at].expand(spots.shape)
    return made


def prompts_of(tunings: Mapping[str, Tuning], batch: int) -> list[range]:
    """Each row's virtual ids: those of the adapters that are on and serve it, one after another in the order of ids."""
    rows = [range(0)] * batch
    for tuning in tunings.values():
        if not tuning.on or not tuning.ids:
            continue
        units = tuning.units
        served = range(batch) if units is None else units.chosen.tolist()
        if units is not None and units.total != batch:
            raise DougongError("prompts go by whole rows; in a packed step write an adapter's prompt_ids yourself")
        for row in served:
            if len(rows[row]) and rows[row].stop != tuning.ids.start:
                raise DougongError(f"row {row} has two prompts with others between them; turn one of the adapters off")
            rows[row] = range(rows[row].start if len(rows[row]) else tuning.ids.start, tuning.ids.stop)
    return rows


def prompted(model: Model, tunings: Mapping[str, Tuning]) -> list[Callable[[], None]]:
    """Have `model(tokens, ...)` put the prompts in and take them out again. Returns what undoes it."""
    if model.__dict__.get("prompted"):
        return []
    model.__dict__["prompted"] = True
    waiting: list[Inserted | None] = []

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        kwargs = {**dict(zip(("tokens", "source", "padding"), args, strict=False)), **kwargs}
        tokens = kwargs["tokens"]
        prompts = prompts_of(tunings, len(tokens))
        if not any(map(len, prompts)) or int(tokens.max()) >= model.embedding.vocab:
            waiting.append(None)
            return (), kwargs
        if kwargs.get("coordinates") is not None:
            raise DougongError("prompts have no coordinates of time, height and width; detach the prompt")
        padding, documents = kwargs.get("padding"), kwargs.get("documents")
        made = insert(tokens, prompts, padding, documents, kwargs.get("positions"))
        waiting.append(made)
        kwargs |= {"tokens": made.tokens, "positions": made.positions, "padding": None}
        if documents is not None:
            kwargs["documents"] = made.documents
        elif bool((made.documents < 0).any()):
            kwargs["padding"] = made.documents < 0
        for name in ("types", "both_ways"):
            if kwargs.get(name) is not None:
                kwargs[name] = made.spread(kwargs[name], 0)
        return (), kwargs

    def after(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        made = waiting.pop()
        if made is not None:
            places = made.places[..., None].expand(-1, -1, output.hidden.shape[-1])
            output.hidden = output.hidden.gather(1, places)
            if output._real is not None:
                output._real = output._real.expand(made.tokens.shape).gather(1, made.places)
        return output

    hooks = (
        model.register_forward_pre_hook(before, with_kwargs=True),
        model.register_forward_hook(after, with_kwargs=True),
    )

    def undo() -> None:
        if not any(tuning.ids for tuning in tunings.values()):
            model.__dict__["prompted"] = False
            for hook in hooks:
                hook.remove()

    return [undo]
