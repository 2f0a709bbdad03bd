"""MLA: the absorbed form is the plain one; the state holds latents; sparse attention chooses what it should."""

from __future__ import annotations

import math

import pytest
import torch

from dougong.parts.context import Context
from dougong.parts.indexer import Indexer
from dougong.parts.latent import LatentAttention
from dougong.parts.norm import Norm
from dougong.parts.rope import Rope
from dougong.parts.state import Cache

ROPE = Rope(4, interleaved=True)
SPECS = {
    "low rank queries": LatentAttention(3, 10, 6, 4, 5, q_rank=7, position=ROPE),
    "full queries": LatentAttention(2, 8, 4, 4, 8, position=ROPE, scale=0.31, bias=True, out_bias=True),
    "no position": LatentAttention(2, 6, 3, 2, 4),
    "sparse": LatentAttention(2, 8, 4, 4, 6, q_rank=9, position=ROPE, indexer=Indexer(8, 6, 5, Rope(4))),
}
specs = pytest.mark.parametrize("name", SPECS)
WIDTH = 12


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


def steps(layer, x, cuts):
    cache, out, start = Cache([layer.spec.slots()], len(x), x.shape[1] + 2), [], 0
    for size in cuts:
        piece = x[:, start : start + size]
        out.append(layer(piece, cache.context(piece[..., 0].long()), cache.layers[0]))
        cache.advance(size)
        start += size
    return torch.cat(out, 1)


def close(actual, expected, tolerance=1e-5):
    assert float((actual - expected).detach().abs().max()) <= tolerance * max(1.0, float(expected.detach().abs().max()))


def formula(layer, x):
    """MLA as the paper's equations have it, one query at a time, with the chosen keys of the indexer."""
    spec, tokens = layer.spec, x.shape[1]
    place = torch.arange(tokens)

    def turned(y, rope):  # (B, T, H, p)
        if rope is None:
            return y
        angle = place[:, None] * rope.theta ** (-torch.arange(0, rope.size, 2) / rope.size)
        turn = torch.polar(torch.ones_like(angle), angle)[:, None]
        part, rest = y[..., : rope.size], y[..., rope.size :]
        if rope.interleaved:
            z = torch.view_as_complex(part.unflatten(-1, (-1, 2)).contiguous()) * turn
            return torch.cat((torch.view_as_real(z).flatten(-2), rest), -1)
        a, b = part.chunk(2, -1)
        z = torch.complex(a, b) * turn
        return torch.cat((z.real, z.imag, rest), -1)

    query = x if layer.q_down is None else layer.q_norm(layer.q_down(x))
    q = layer.q(query).unflatten(-1, (spec.heads, -1))
    q = torch.cat((q[..., : spec.nope_size], turned(q[..., spec.nope_size :], spec.position)), -1)
    down = layer.kv_down(x)
    up = layer.kv_up(layer.kv_norm(down[..., : spec.kv_rank])).unflatten(-1, (spec.heads, -1))
    shared = turned(down[..., None, spec.kv_rank :], spec.position).expand(-1, -1, spec.heads, -1)
    k, v = torch.cat((up[..., : spec.nope_size], shared), -1), up[..., spec.nope_size :]
    scale = spec.scale or (spec.nope_size + spec.rope_size) ** -0.5
    scores = torch.einsum("bthd,bshd->bhts", q, k) * scale
    seen = torch.ones(tokens, tokens, dtype=torch.bool).tril()[None].repeat(len(x), 1, 1)
    if spec.indexer is not None:
        one = layer.indexer
        iq = turned(one.q(query).unflatten(-1, (spec.indexer.heads, -1)), spec.indexer.position)
        ik = turned(one.k_norm(one.k(x))[:, :, None], spec.indexer.position)[:, :, 0]
        index = torch.einsum("bthd,bsd->bths", iq, ik).relu() / math.sqrt(spec.indexer.size * spec.indexer.heads)
        index = torch.einsum("bth,bths->bts", one.weights(x), index)
        for b in range(len(x)):
            for t in range(tokens):
                best = index[b, t, : t + 1].topk(min(t + 1, spec.indexer.top_k)).indices
                seen[b, t] = torch.zeros(tokens, dtype=torch.bool).scatter(0, best, True)
    weights = scores.masked_fill(~seen[:, None], -math.inf).softmax(-1)
    return layer.o(torch.einsum("bhts,bshe->bthe", weights, v).flatten(2))


@specs
def test_it_is_the_formula_and_so_are_its_gradients(name):
    layer, x = build(SPECS[name]), rows(2, 11).requires_grad_()
    mine, theirs = layer(x, whole(11)), formula(layer, x)
    close(mine, theirs)
    trained = [x, *(p for key, p in layer.named_parameters() if "indexer" not in key)]
    direction = torch.randn(mine.shape)
    for a, b in zip(
        torch.autograd.grad(mine, trained, direction), torch.autograd.grad(theirs, trained, direction), strict=True
    ):
        close(a, b, 1e-4)


@specs
@torch.no_grad()
def test_whole_rows_are_token_by_token_are_chunks(name):
    layer, x = build(SPECS[name]), rows(2, 14)
    full = layer(x, whole(14))
    close(steps(layer, x, [1] * 14), full)
    close(steps(layer, x, [6, 1, 1, 4, 2]), full)
    close(steps(layer, x, [14]), full)


@torch.no_grad()
def test_absorbed_is_plain():
    layer, x = build(SPECS["low rank queries"]), torch.Generator().manual_seed(3)
    parts = [torch.randn(2, *shape, generator=x) for shape in ((3, 4, 6), (3, 4, 4), (1, 9, 10), (1, 9, 4))]
    ctx = Context(torch.arange(5, 9)[None], key_positions=torch.arange(9)[None])
    close(layer.absorbed(*parts, ctx), layer.plain(*parts, ctx))


@torch.no_grad()
def test_one_query_meets_latents_and_a_long_row_meets_keys():
    layer = build(LatentAttention(4, 16, 16, 4, 16, position=ROPE))
    assert layer._absorbing_pays(1, 500, state=Cache([layer.spec.slots()], 1, 1).layers[0])
    assert not layer._absorbing_pays(500, 500, state=Cache([layer.spec.slots()], 1, 1).layers[0])


@torch.no_grad()
def test_absorbed_sees_adapters():
    layer = build(SPECS["low rank queries"])

    class Twice(torch.nn.Module):
        def forward(self, linear, x, y):
            return 2 * y

    layer.kv_up.adapters["twice"] = Twice()
    x = rows(1, 8)
    close(steps(layer, x, [1] * 8), layer(x, whole(8)))


@specs
@torch.no_grad()
def test_packed_documents_and_padding_are_separate_rows(name):
    layer, x = build(SPECS[name]), rows(1, 17)
    documents = torch.tensor([[-1] * 2 + [0] * 8 + [1] * 6 + [-1]])
    positions = torch.cat((torch.zeros(2), torch.arange(8), torch.arange(6), torch.zeros(1))).long()[None]
    packed = layer(x, Context(positions, documents=documents))
    assert torch.isfinite(packed).all()
    close(packed[:, 2:10], layer(x[:, 2:10], whole(8)))
    close(packed[:, 10:16], layer(x[:, 10:16], whole(6)))


@specs
@torch.no_grad()
def test_ragged_rows_go_on_as_if_alone(name):
    layer, x, counts = build(SPECS[name]), rows(2, 12), torch.tensor([10, 4])
    cache = Cache([layer.spec.slots()], 2, 14)
    tokens = torch.zeros(2, 12, dtype=torch.int64)
    layer(x[:, :10], cache.context(tokens[:, :10], counts), cache.layers[0])
    cache.advance(counts)
    last = torch.stack((x[0, 10], x[1, 4]))[:, None]
    y = layer(last, cache.context(tokens[:, :1]), cache.layers[0])
    close(y[0, 0], layer(x[:1, :11], whole(11))[0, 10])
    close(y[1, 0], layer(x[1:, :5], whole(5))[0, 4])


@torch.no_grad()
def test_an_indexer_that_may_keep_all_changes_nothing():
    spec = LatentAttention(2, 8, 4, 4, 6, position=ROPE, indexer=Indexer(2, 4, 20, Rope(4)))
    layer, x = build(spec), rows(2, 9)
    full = layer(x, whole(9))
    layer.indexer = None
    close(full, layer(x, whole(9)))


@torch.no_grad()
def test_sparse_decoding_reads_only_the_chosen_latents():
    """Latents that the indexer does not choose could be anything."""
    layer, x = build(SPECS["sparse"]), rows(1, 12)
    cache = Cache([layer.spec.slots()], 1, 12)
    tokens = torch.zeros(1, 12, dtype=torch.int64)
    layer(x[:, :11], cache.context(tokens[:, :11]), cache.layers[0])
    cache.advance(11)
    ctx = cache.context(tokens[:, :1])
    expected = layer(x[:, 11:], ctx, cache.layers[0])
    query = layer.q_norm(layer.q_down(x[:, 11:]))
    index, exists = layer.indexer.choose(x[:, 11:], query, ctx, cache.layers[0])
    assert exists.all() and index.shape[-1] == 5
    forgotten = torch.ones(12, dtype=torch.bool).scatter(0, index[0, 0], False)
    cache.layers[0].tensors["latent"][:, :, forgotten] = math.nan
    close(layer(x[:, 11:], ctx, cache.layers[0]), expected)


@specs
def test_the_spec_knows_parameters_and_state(name):
    spec = SPECS[name]
    assert spec.parameters(WIDTH) == sum(p.numel() for p in build(spec).parameters())
    extra = spec.indexer.size if spec.indexer else 0
    assert sum(slot.elements(7) for slot in spec.slots().values()) == 7 * (spec.kv_rank + spec.rope_size + extra)
    assert spec.flops(WIDTH, 100) > spec.flops(WIDTH, 10) > 0


def test_norms_of_another_kind():
    spec = LatentAttention(2, 8, 4, 4, 6, q_rank=5, norm=Norm("layer", 1e-5, bias=True))
    assert spec.parameters(WIDTH) == sum(p.numel() for p in build(spec).parameters())
