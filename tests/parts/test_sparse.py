"""Sparse attention, by pattern and by choice: equal to its formula, packed or not, whole or token by token."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dougong.base import DougongError
from dougong.parts.attend import Scoring, reference
from dougong.parts.context import Context
from dougong.parts.native_sparse import NativeSparseAttention
from dougong.parts.rope import Rope
from dougong.parts.select import attend_at, attend_where
from dougong.parts.sparse import Blocks, Columns, First, SparseAttention, Strided, Window
from dougong.parts.state import Cache

ROPE, WIDTH = Rope(6), 12
PATTERNS = {
    "strided": (Window(4), Strided(4)),
    "fixed": (Blocks(5), Columns(5, 2)),
    "longformer": (Window(3), First(2)),
    "blocks": (Blocks(3, 1), First(3)),
    "window": (Window(4),),
}
SPECS = {name: SparseAttention(4, 2, 6, patterns, ROPE, bias=True) for name, patterns in PATTERNS.items()} | {
    "native": NativeSparseAttention(4, 2, 6, 4, 3, 5, position=ROPE),
    "native, mlp": NativeSparseAttention(3, 1, 6, 3, 4, 2, hidden=7, position=ROPE),
    "native, few": NativeSparseAttention(2, 2, 6, 2, 1, 1),
}
specs = pytest.mark.parametrize("name", SPECS)
natives = pytest.mark.parametrize("name", [name for name in SPECS if "native" in name])


def build(name, seed=0):
    torch.manual_seed(seed)
    layer = SPECS[name].build(WIDTH)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


def rows(batch, tokens, seed=1):
    return torch.randn(batch, tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


def whole(tokens, causal=True):
    return Context(torch.arange(tokens)[None], causal=causal)


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


def same_gradients(mine, theirs, inputs, tolerance=1e-4):
    direction = torch.randn(mine.shape, generator=torch.Generator().manual_seed(5))
    ours, wanted = (torch.autograd.grad(each, inputs, direction) for each in (mine, theirs))
    for a, b in zip(ours, wanted, strict=True):
        close(a, b, tolerance)


def shown(pattern, i, j):
    """The patterns in the words of their papers, for one query and one key before it."""
    match pattern:
        case Window(size):
            return i - j < size
        case Strided(stride):
            return (i - j) % stride == 0
        case Columns(block, last):
            return j % block in range(block - last, block)
        case Blocks(size, near):
            return i // size - j // size <= near
        case First(tokens):
            return j < tokens


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns_are_masks(name):
    layer, x, tokens = build(name), rows(2, 13).requires_grad_(), 13
    mask = torch.zeros(tokens, tokens, dtype=torch.bool)
    for i in range(tokens):
        for j in range(i + 1):
            mask[i, j] = i == j or any(shown(each, i, j) for each in PATTERNS[name])
    ctx = whole(tokens)
    q, k, v = (each(x).unflatten(-1, (-1, 6)) for each in (layer.q, layer.k, layer.v))
    q, k = ROPE.rotate(q, k, ctx)
    bias = torch.zeros(mask.shape).masked_fill(~mask, -math.inf).expand(1, 4, -1, -1)
    y = reference(q, k, v.transpose(1, 2), ctx, Scoring(), bias)
    theirs, mine = layer.o(y.transpose(1, 2).flatten(2)), layer(x, ctx)
    close(mine, theirs)
    same_gradients(mine, theirs, [x, *layer.parameters()])


def test_both_ways_global_tokens_see_all():
    spec = SparseAttention(2, 1, 4, (Window(2), First(1)))
    seen = spec.sees(whole(6, causal=False))[0]
    assert seen[0].all() and seen[:, 0].all() and not seen[5, 3] and seen[3, 4] and not seen[3, 5]


@given(
    st.integers(1, 3), st.integers(1, 2), st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(0, 99)
)
@torch.no_grad()
def test_selected_keys_are_masked_attention(group, shared, tokens, keys, strip, seed):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(2, shared * group, tokens, 3, generator=generator)
    k, v = (torch.randn(2, shared, keys, size, generator=generator) for size in (3, 4))
    index = torch.rand(2, shared, tokens, keys, generator=generator).argsort(-1)[..., : max(1, keys // 2)]
    exists = torch.rand(index.shape, generator=generator) < 0.7
    exists[..., 0] = True
    seen = torch.zeros(2, shared, tokens, keys, dtype=torch.bool).scatter(-1, index, exists)
    bias = torch.zeros(seen.shape).masked_fill(~seen, -math.inf).repeat_interleave(group, 1)
    ctx = Context(torch.arange(tokens)[None], key_positions=torch.arange(keys)[None], causal=False)
    expected = reference(q, k, v, ctx, bias=bias)
    close(attend_at(q, k, v, index, exists), expected)
    close(attend_where(q, k, v, seen, strip=strip), expected)


def native(layer, x):
    """NSA, one query and one head after another."""
    spec, tokens, block = layer.spec, x.shape[1], layer.spec.block
    q, k, v = (each(x).unflatten(-1, (-1, spec.head_size)) for each in (layer.q, layer.k, layer.v))
    if spec.position:
        q, k = (each.transpose(1, 2) for each in spec.position.rotate(q, k, whole(tokens)))
    gates = layer.gate(x).sigmoid().unflatten(-1, (spec.heads, 3))
    group, scale = spec.heads // spec.kv_heads, spec.head_size**-0.5
    out = torch.zeros(q.shape)
    for b in range(len(x)):
        for t in range(tokens):
            for shared in range(spec.kv_heads):
                heads = range(shared * group, (shared + 1) * group)
                full = (t + 1) // block
                cut = [slice(n * block, (n + 1) * block) for n in range(full)]
                ks = [layer.k_compress(k[b, each, shared]) for each in cut]
                vs = [layer.v_compress(v[b, each, shared]) for each in cut]
                coarse, weight = {}, torch.zeros(full)
                for head in heads:
                    coarse[head] = torch.zeros(spec.head_size)
                    if full:
                        p = (torch.stack(ks) @ q[b, t, head] * scale).softmax(0)
                        coarse[head], weight = p @ torch.stack(vs), weight + p.detach()
                own = t // block
                order = [own, own - 1, 0, *weight.argsort(descending=True).tolist()]
                chosen = list(dict.fromkeys(n for n in order if n >= 0))[: spec.chosen]
                close_by = [s for s in range(t + 1) if s // block in chosen]
                near = list(range(max(0, t - spec.window + 1), t + 1))
                for head in heads:
                    y = gates[b, t, head, 0] * coarse[head]
                    for gate, places in ((1, close_by), (2, near)):
                        p = (k[b, places, shared] @ q[b, t, head] * scale).softmax(0)
                        y = y + gates[b, t, head, gate] * (p @ v[b, places, shared])
                    out = out.index_put((torch.tensor(b), torch.tensor(t), torch.tensor(head)), y)
    return layer.o(out.flatten(2))


@natives
def test_native_sparse_attention_is_its_formula(name):
    layer, x = build(name), rows(2, 17).requires_grad_()
    mine, theirs = layer(x, whole(17)), native(layer, x)
    close(mine, theirs)
    same_gradients(mine, theirs, [x, *layer.parameters()])


@specs
@torch.no_grad()
def test_whole_rows_are_token_by_token_are_chunks(name):
    layer, x = build(name), rows(2, 23)
    full = layer(x, whole(23))
    close(steps(layer, x, [1] * 23), full)
    close(steps(layer, x, [10, 1, 5, 2, 5]), full)


@specs
@torch.no_grad()
def test_packed_documents_and_padding_are_separate_rows(name):
    layer, x = build(name), rows(1, 24)
    documents = torch.tensor([[-1] * 3 + [0] * 13 + [1] * 6 + [-1] * 2])
    positions = torch.cat((torch.zeros(3), torch.arange(13), torch.arange(6), torch.zeros(2))).long()[None]
    packed = layer(x, Context(positions, documents=documents))
    assert torch.isfinite(packed).all()
    close(packed[:, 3:16], layer(x[:, 3:16], whole(13)))
    close(packed[:, 16:22], layer(x[:, 16:22], whole(6)))


@specs
@torch.no_grad()
def test_ragged_rows_go_on_as_if_alone(name):
    layer, x, counts = build(name), rows(2, 16), torch.tensor([11, 4])
    cache, tokens = Cache([layer.spec.slots()], 2, 16), torch.zeros(2, 16, dtype=torch.int64)
    layer(x[:, :11], cache.context(tokens[:, :11], counts), cache.layers[0])
    cache.advance(counts)
    for step in range(4):
        last = torch.stack((x[0, 11 + step], x[1, 4 + step]))[:, None]
        y = layer(last, cache.context(tokens[:, :1]), cache.layers[0])
        cache.advance(1)
        close(y[0, 0], layer(x[:1], whole(16))[0, 11 + step])
        close(y[1, 0], layer(x[1:], whole(16))[0, 4 + step])


@pytest.mark.parametrize("name", ["longformer", "native"])
@torch.no_grad()
def test_a_step_reads_only_what_it_sees(name):
    """Everything else in the state could be anything."""
    layer, x = build(name), rows(1, 40)
    cache, tokens = Cache([layer.spec.slots()], 1, 40), torch.zeros(1, 40, dtype=torch.int64)
    layer(x[:, :39], cache.context(tokens[:, :39]), cache.layers[0])
    cache.advance(39)
    ctx, state = cache.context(tokens[:, :1]), cache.layers[0]
    expected = layer(x[:, 39:], ctx, state)
    kept = torch.zeros(40, dtype=torch.bool)
    if name == "native":
        q, *_ = layer._project(x[:, 39:], ctx)
        _, weight = layer._coarse(q, *(state.tensors[n][:, :, 3::4] for n in ("block_k", "block_v")), ctx.positions)
        index = layer._choose(weight, 40, ctx.positions)
        kept[(index.flatten()[:, None] * 4 + torch.arange(4)).flatten()] = True
        kept[35:] = True
        others = torch.ones(40, dtype=torch.bool)
        others[3::4] = False
        for entry in ("block_k", "block_v"):
            state.tensors[entry][:, :, others] = math.nan
    else:
        kept[[0, 1, 37, 38, 39]] = True
    assert kept.sum() < 30
    for entry in ("k", "v"):
        state.tensors[entry][:, :, ~kept] = math.nan
    close(layer(x[:, 39:], ctx, state), expected)


@specs
def test_the_spec_knows_its_parameters(name):
    spec = SPECS[name]
    assert spec.parameters(WIDTH) == sum(parameter.numel() for parameter in build(name).parameters())
    assert spec.flops(WIDTH, 1000) >= spec.flops(WIDTH, 10) > 0


def test_a_window_alone_bounds_the_state():
    assert SPECS["window"].slots()["k"].elements(100) == 4 * 12
    assert SPECS["strided"].slots()["k"].elements(100) == 100 * 12


def test_wrong_specs_are_refused():
    with pytest.raises(DougongError, match="patterns is empty"):
        SparseAttention(2, 1, 4, ())
    with pytest.raises(DougongError, match="3 heads over 2"):
        NativeSparseAttention(3, 2, 4)
    with pytest.raises(DougongError, match="causal"):
        build("native")(rows(1, 4), whole(4, causal=False))
