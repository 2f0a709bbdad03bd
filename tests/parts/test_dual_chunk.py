"""DCA: the paper's distances, plain attention within a chunk, and any cut of the text."""

from __future__ import annotations

import pytest
import torch

from dougong.base import DougongError
from dougong.parts import dual_chunk
from dougong.parts.attention import Attention
from dougong.parts.context import Context
from dougong.parts.dual_chunk import DualChunkAttention
from dougong.parts.norm import Norm
from dougong.parts.rope import DynamicNTK, Rope, Yarn
from dougong.parts.state import Cache

WIDTH = 12
SPECS = {
    "plain": DualChunkAttention(4, 2, 6, Rope(6), 4, 2),
    "yarn": DualChunkAttention(2, 2, 8, Rope(8, 100.0, scaling=Yarn(4.0, 8)), 6, 3, bias=True, out_bias=True),
    "partial": DualChunkAttention(3, 1, 8, Rope(4, interleaved=True), 5, 5, qk_norm=Norm(), scale=0.4),
}
specs = pytest.mark.parametrize("name", SPECS)


def build(spec, seed=0):
    torch.manual_seed(seed)
    layer = spec.build(WIDTH)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


def rows(batch, tokens, seed=1):
    return torch.randn(batch, tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


def whole(tokens):
    return Context(torch.arange(tokens)[None])


def close(actual, expected, tolerance=1e-5):
    assert float((actual - expected).detach().abs().max()) <= tolerance * max(1.0, float(expected.detach().abs().max()))


def distance(i, j, chunk, trained):
    """The matrix M of the paper: equations 2 to 7."""
    if i // chunk == j // chunk:
        return i % chunk - j % chunk
    if i // chunk - j // chunk == 1:
        return min(i % chunk + chunk, trained - 1) - j % chunk
    return trained - 1 - j % chunk


def formula(layer, x):
    """Every pair of tokens with its own rotation: the query by the distance, the key by nothing."""
    spec, tokens = layer.spec, x.shape[1]
    q, k, v = (each(x).unflatten(-1, (-1, spec.head_size)) for each in (layer.q, layer.k, layer.v))
    if spec.qk_norm:
        q, k = layer.q_norm(q), layer.k_norm(k)
    group, scale = spec.heads // spec.kv_heads, spec.scale or spec.head_size**-0.5
    k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
    out = []
    for i in range(tokens):
        places = [distance(i, j, spec.chunk, spec.chunk + spec.local) for j in range(i + 1)]
        queries = q[:, i : i + 1].expand(-1, i + 1, -1, -1)
        turned, _ = spec.position.rotate(queries, queries, Context(torch.tensor([places])))
        still, _ = spec.position.rotate(k[:, : i + 1], k[:, : i + 1], Context(torch.zeros(1, i + 1).long()))
        p = ((turned * still).sum(-1) * scale).softmax(-1)
        out.append(torch.einsum("bhs,bshd->bhd", p, v[:, : i + 1]))
    return layer.o(torch.stack(out, 1).flatten(2))


def steps(layer, x, cuts):
    cache, out, start = Cache([layer.spec.slots()], len(x), x.shape[1] + 2), [], 0
    for size in cuts:
        piece = x[:, start : start + size]
        out.append(layer(piece, cache.context(piece[..., 0].long()), cache.layers[0]))
        cache.advance(size)
        start += size
    return torch.cat(out, 1)


@pytest.mark.parametrize("strip", [3, 256])
@specs
def test_it_is_the_formula_and_so_are_its_gradients(monkeypatch, name, strip):
    monkeypatch.setattr(dual_chunk, "_STRIP", strip)
    layer, x = build(SPECS[name]), rows(2, 19).requires_grad_()
    mine, theirs = layer(x, whole(19)), formula(layer, x)
    close(mine, theirs)
    trained, direction = [x, *layer.parameters()], torch.randn(mine.shape)
    for a, b in zip(
        torch.autograd.grad(mine, trained, direction), torch.autograd.grad(theirs, trained, direction), strict=True
    ):
        close(a, b, 1e-4)


@specs
@torch.no_grad()
def test_within_a_chunk_it_is_plain_attention(name):
    spec = SPECS[name]
    layer, x = build(spec), rows(2, spec.chunk)
    shape = spec.heads, spec.kv_heads, spec.head_size
    same = Attention(*shape, spec.bias, spec.out_bias, spec.position, spec.qk_norm, scale=spec.scale)
    plain = same.build(WIDTH)
    plain.load_state_dict(layer.state_dict())
    close(layer(x, whole(spec.chunk)), plain(x, whole(spec.chunk)))
    # Up to the trained length every distance is still the true one.
    trained = spec.chunk + spec.local
    longer = rows(2, trained + 1)
    mine, theirs = layer(longer, whole(trained + 1)), plain(longer, whole(trained + 1))
    close(mine[:, :trained], theirs[:, :trained])
    assert float((mine[:, trained] - theirs[:, trained]).abs().max()) > 1e-3


@specs
@torch.no_grad()
def test_whole_rows_are_token_by_token_are_chunks(name):
    layer, x = build(SPECS[name]), rows(2, 21)
    full = layer(x, whole(21))
    close(steps(layer, x, [1] * 21), full)
    close(steps(layer, x, [3, 9, 1, 1, 7]), full)


@specs
@torch.no_grad()
def test_packed_documents_and_padding_are_separate_rows(name):
    layer, x = build(SPECS[name]), rows(1, 24)
    documents = torch.tensor([[-1] * 3 + [0] * 13 + [1] * 7 + [-1]])
    positions = torch.cat((torch.zeros(3), torch.arange(13), torch.arange(7), torch.zeros(1))).long()[None]
    packed = layer(x, Context(positions, documents=documents))
    assert torch.isfinite(packed).all()
    close(packed[:, 3:16], layer(x[:, 3:16], whole(13)))
    close(packed[:, 16:23], layer(x[:, 16:23], whole(7)))


@specs
@torch.no_grad()
def test_ragged_rows_go_on_as_if_alone(name):
    layer, x, counts = build(SPECS[name]), rows(2, 16), torch.tensor([13, 3])
    cache, tokens = Cache([layer.spec.slots()], 2, 16), torch.zeros(2, 16, dtype=torch.int64)
    layer(x[:, :13], cache.context(tokens[:, :13], counts), cache.layers[0])
    cache.advance(counts)
    for step in range(3):
        last = torch.stack((x[0, 13 + step], x[1, 3 + step]))[:, None]
        y = layer(last, cache.context(tokens[:, :1]), cache.layers[0])
        cache.advance(1)
        close(y[0, 0], layer(x[:1], whole(16))[0, 13 + step])
        close(y[1, 0], layer(x[1:], whole(16))[0, 3 + step])


@specs
def test_the_spec_knows_its_parameters(name):
    spec = SPECS[name]
    assert spec.parameters(WIDTH) == sum(parameter.numel() for parameter in build(spec).parameters())
    assert spec.flops(WIDTH, 100) > spec.flops(WIDTH, 10)


def test_wrong_specs_are_refused():
    with pytest.raises(DougongError, match="local is 9"):
        DualChunkAttention(2, 1, 4, Rope(4), 8, 9)
    with pytest.raises(DougongError, match="scaling"):
        DualChunkAttention(2, 1, 4, Rope(4, scaling=DynamicNTK(2.0, 8)), 8, 4)
