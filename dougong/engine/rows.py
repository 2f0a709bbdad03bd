"""Sequences that run side by side, and moving their state between caches."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dougong.engine.request import Request
from dougong.model import Model
from dougong.parts.shapes import Float
from dougong.parts.state import Cache


def by_length(requests: Sequence[Request]) -> list[list[Request]]:
    """Groups to be prefilled together: in each, no prompt is longer than twice the shortest, so most of the work is
    on real tokens and not on padding."""
    groups: list[list[Request]] = []
    for request in sorted(requests, key=lambda request: len(request.prompt)):
        if groups and len(request.prompt) <= 2 * len(groups[-1][0].prompt):
            groups[-1].append(request)
        else:
            groups.append([request])
    return groups


def capacity_for(requests: Sequence[Request], longest: int) -> int:
    """Tokens a cache should hold for these requests, the longest of which has `longest` now: twice that (so growing
    costs O(1) a token), but not more than any of them can reach."""
    return max(longest + 1, min(max(2 * longest, 64), max(request.size for request in requests)))


def gather(model: Model, parts: Sequence[tuple[Cache, Sequence[int]]], capacity: int) -> Cache:
    """One new cache with the chosen rows of several, in order: how sequences leave, join and get more room.

    parts: caches, each with the rows to keep.
    """
    parts = [(cache, rows) for cache, rows in parts if rows]
    joined = model.cache(sum(len(rows) for _, rows in parts), capacity)
    first = 0
    for cache, rows in parts:
        span = slice(first, first + len(rows))
        chosen = torch.tensor(rows, device=cache.lengths.device)
        lengths = cache.lengths[chosen]
        longest = int(lengths.max())
        joined.lengths[span] = lengths
        for layer, slots, old in zip(joined.layers, model.spec.state_slots(), cache.layers, strict=True):
            for name, slot in slots.items():
                if slot.per_source:
                    continue  # made anew from the joined source
                if slot.per_token:
                    layer.tensors[name][span, :, :longest] = old.tensors[name][chosen, :, :longest]
                else:
                    layer.tensors[name][span] = old.tensors[name][chosen]
        first = span.stop
    return joined


@torch.inference_mode()
def prefill(model: Model, requests: Sequence[Request], budget: int) -> tuple[Cache, Float[torch.Tensor, "B V"]]:
    """Run the prompts; returns their cache and the logits after each prompt's last token.

    At most `budget` tokens go through the model at once (but one a row), which bounds the memory for activations.
    Shorter prompts are padded at their end, where causal attention never looks.
    """
    device = next(model.parameters()).device
    lengths = torch.tensor([len(request.prompt) for request in requests], device=device)
    longest = max(len(request.prompt) for request in requests)
    tokens = torch.zeros(len(requests), longest, dtype=torch.int64)
    for row, request in enumerate(requests):
        tokens[row, : len(request.prompt)] = torch.tensor(request.prompt)
    tokens = tokens.to(device)
    cache = model.cache(len(requests), longest)
    width = max(1, budget // len(requests))
    last: torch.Tensor | None = None
    for start in range(0, longest, width):
        chunk = tokens[:, start : start + width]
        counts = (lengths - start).clamp(0, chunk.shape[1])
        hidden = model.run(chunk, cache.context(chunk, counts), cache).hidden  # (B, T, D)
        cache.advance(counts)
        final = lengths - 1 - start  # where each prompt's last token stands in this chunk
        here = ((final >= 0) & (final < chunk.shape[1])).nonzero()[:, 0]
        if last is None:
            last = hidden.new_empty(len(requests), hidden.shape[-1])
        last[here] = hidden[here, final[here]]
    assert last is not None
    return cache, model.logits(last)


@torch.inference_mode()
def decode(model: Model, requests: Sequence[Request], cache: Cache) -> Float[torch.Tensor, "B V"]:
    """Run each row's newest token; returns the logits that follow it."""
    tokens = torch.tensor([[request.last] for request in requests], device=cache.lengths.device)
    hidden = model.run(tokens, cache.context(tokens), cache).hidden
    cache.advance(1)
    return model.logits(hidden[:, -1])
