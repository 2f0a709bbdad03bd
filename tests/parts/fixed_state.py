"""What holds for every mixer with a fixed-size state: the same result however its tokens are handed over."""

from __future__ import annotations

import torch

from dougong.parts.context import Context
from dougong.parts.state import Cache
from tests.parts.sublayers import check_one_way


def filled(module, seed=0):
    """The module with random weights that keep its activations of a moderate size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            size = parameter.shape[-1] if parameter.ndim > 1 else 1
            parameter.copy_(torch.empty(parameter.shape).normal_(0, size**-0.5, generator=generator))
            if "norm" in name:
                parameter.add_(1)
    return module


def tokens(batch, count):
    return torch.zeros(batch, count, dtype=torch.int64)


def close(actual, expected, tolerance=1e-5):
    scale = max(1e-3, float(expected.detach().abs().max()))
    assert float((actual - expected).detach().abs().max()) <= tolerance * scale


def check_contract(spec, width=24, length=37, tolerance=1e-5):
    """Whole rows = in steps of any sizes = packed = left-padded; padding at the end of a step changes nothing."""
    layer = filled(spec.build(width))
    check_one_way(spec, layer, torch.randn(2, 5, width))
    assert sum(parameter.numel() for parameter in layer.parameters()) == spec.parameters(width)
    torch.manual_seed(1)
    x = torch.randn(3, length, width)
    whole = layer(x, Context.of(tokens(3, length)))
    for steps in ([1] * length, [5, 1, 1, length - 7], [length]):
        close(in_steps(spec, layer, x, steps), whole, tolerance)
    check_ragged(spec, layer, x, whole, tolerance)
    packed = torch.cat((x[0, :9], x[1, :1], x[2, :20]))[None]
    documents = torch.tensor([[0] * 9 + [1] + [2] * 20])
    got = layer(packed, Context.of(tokens(1, 30), documents=documents))
    close(got, torch.cat((whole[0, :9], whole[1, :1], whole[2, :20]))[None], tolerance)
    padded = torch.cat((torch.randn(3, 4, width), x), 1)
    padding = torch.zeros(3, length + 4, dtype=torch.bool)
    padding[:, :4] = True
    close(layer(padded, Context.of(tokens(3, length + 4), padding))[:, 4:], whole, tolerance)


def in_steps(spec, layer, x, steps):
    cache = Cache([spec.slots()], x.shape[0], x.shape[1])
    out = []
    for part in x.split(steps, 1):
        out.append(layer(part, cache.context(tokens(*part.shape[:2])), cache.layers[0]))
        cache.advance(part.shape[1])
    return torch.cat(out, 1)


def check_ragged(spec, layer, x, whole, tolerance):
    """Rows that advance by different numbers of tokens, none at all among them."""
    cache = Cache([spec.slots()], 3, 64)
    place = [0, 0, 0]
    for counts in ([3, 7, 1], [4, 0, 2], [1, 1, 1], [2, 9, 5]):
        longest = max(counts)
        part = torch.randn(3, longest, x.shape[-1])
        for row, count in enumerate(counts):
            part[row, :count] = x[row, place[row] : place[row] + count]
        got = layer(part, cache.context(tokens(3, longest), torch.tensor(counts)), cache.layers[0])
        cache.advance(torch.tensor(counts))
        for row, count in enumerate(counts):
            if count:
                close(got[row, :count], whole[row, place[row] : place[row] + count], tolerance)
            place[row] += count


def check_gradients(spec, width=16, length=70):
    """Finite, none missing, and no part of the past seen by what came before it."""
    layer = filled(spec.build(width))
    x = torch.randn(1, length, width, requires_grad=True)
    y = layer(x, Context.of(tokens(1, length)))
    early = torch.autograd.grad(y[:, :30].square().sum(), x, retain_graph=True)[0]
    assert early[:, :30].abs().sum() > 0
    assert early[:, 30:].abs().sum() == 0
    y.square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name
