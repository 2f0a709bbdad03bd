"""The contract of sublayers with a state, which every recurrence has to hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dougong.base import DougongError
from dougong.parts.context import Context
from dougong.parts.norm import LayerNorm, RMSNorm
from dougong.parts.state import Cache


def built(spec: Any, width: int, seed: int = 0) -> nn.Module:
    """The layer with all its parameters drawn at random, small enough to stay tame."""
    layer = spec.build(width)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        for module in layer.modules():
            if isinstance(module, (RMSNorm, LayerNorm)):
                module.weight.fill_(1.0)
            if hasattr(module, "initial"):
                module.initial(generator)
        for parameter in layer.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter += noise * (0.5 * parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.2)
    return layer


def whole(layer: nn.Module, x: Tensor, **context: Any) -> Tensor:
    return layer(x, Context.of(torch.zeros(x.shape[:2], dtype=torch.int64), **context))


def stepwise(spec: Any, layer: nn.Module, x: Tensor, sizes: list[int], lengths: list[int]) -> list[Tensor]:
    """Each row's outputs when its `lengths[b]` tokens come in steps of at most `sizes` tokens."""
    cache = Cache([spec.slots()], len(x), x.shape[1] + max(sizes))
    done, out = [0] * len(x), [[] for _ in x]
    for size in sizes:
        counts = torch.tensor([min(size, length - at) for length, at in zip(lengths, done, strict=True)])
        step = torch.full((len(x), size, x.shape[2]), 7.0)  # padding that would be noticed
        for row, count in enumerate(counts.tolist()):
            step[row, :count] = x[row, done[row] : done[row] + count]
        ctx = cache.context(torch.zeros(step.shape[:2], dtype=torch.int64), counts)
        y = layer(step, ctx, cache.layers[0])
        cache.advance(counts)
        for row, count in enumerate(counts.tolist()):
            out[row].append(y[row, :count])
            done[row] += count
    assert done == lengths
    return [torch.cat(rows) for rows in out]


def check_contract(spec: Any, width: int, tolerance: float = 2e-5) -> None:
    """Whole rows, token by token and in ragged chunks agree; documents and padding do not touch each other; the spec
    counts its parameters; gradients reach all of them; bfloat16 runs."""
    layer = built(spec, width)
    assert spec.parameters(width) == sum(p.numel() for p in layer.parameters())
    check_one_way(spec, layer, torch.randn(2, 5, width))
    assert spec.flops(width, 10) > 0
    x = torch.randn(2, 41, width, generator=torch.Generator().manual_seed(1))
    close = {"rtol": tolerance, "atol": tolerance}
    with torch.no_grad():
        full = whole(layer, x)
        for row in stepwise(spec, layer, x, [1] * 41, [41, 41]), stepwise(spec, layer, x, [17, 1, 20, 3], [41, 41]):
            torch.testing.assert_close(torch.stack(row), full, **close)
        ragged = stepwise(spec, layer, x, [5, 20, 1, 9, 30], [41, 23])
        torch.testing.assert_close(ragged[0], full[0], **close)
        torch.testing.assert_close(ragged[1], full[1, :23], **close)
        late = stepwise(spec, layer, x, [8, 33, 8], [41, 8])  # a row that waits
        torch.testing.assert_close(late[1], full[1, :8], **close)

        documents = torch.tensor([[0] * 11 + [1] * 30, [3] * 25 + [2] * 16])
        packed = whole(layer, x, documents=documents)
        for row, start, stop in ((0, 0, 11), (0, 11, 41), (1, 0, 25), (1, 25, 41)):
            alone = whole(layer, x[row : row + 1, start:stop])
            torch.testing.assert_close(packed[row, start:stop], alone[0], **close)
        padding = torch.zeros(2, 41, dtype=torch.bool)
        padding[0, :9] = True
        padded = whole(layer, x, padding=padding)
        torch.testing.assert_close(padded[0, 9:], whole(layer, x[:1, 9:])[0], **close)
        torch.testing.assert_close(padded[1], full[1], **close)

    whole(layer, x).square().mean().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name
    low = whole(layer.to(torch.bfloat16), x.bfloat16())
    assert low.dtype == torch.bfloat16
    assert (low.float() - full).norm() < 0.1 * full.norm()


def check_one_way(spec: Any, layer: nn.Module, x: Tensor) -> None:
    """Where tokens are to see later ones it refuses, with a state and without."""
    ids = torch.zeros(x.shape[:2], dtype=torch.int64)
    prefix = torch.ones_like(ids, dtype=torch.bool)
    for change in ({"causal": False}, {"both_ways": prefix}):
        cache = Cache([spec.slots()], len(x), x.shape[1])
        for ctx, state in ((Context.of(ids), None), (cache.context(ids), cache.layers[0])):
            with pytest.raises(DougongError, match="left to right"):
                layer(x, replace(ctx, **change), state)
