"""Routers choose whom they should, balance as they should, and agree whole, packed, padded and in steps."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dougong.base import DougongError
from dougong.parts.balance import auxiliary, balance_loss, rebalance, z_loss
from dougong.parts.context import Context
from dougong.parts.experts import MoE
from dougong.parts.router import Base, ExpertChoice, Hash, TopK
from dougong.parts.routing import Routing, assign
from dougong.parts.state import Cache

WIDTH, EXPERTS = 8, 6


def router(spec, top_k: int = 2, seed: int = 0, experts: int = EXPERTS):
    torch.manual_seed(seed)
    built = spec.build(WIDTH, experts, top_k)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_()
    return built


def context(x: Tensor, **given) -> Context:
    ctx = Context.of(torch.zeros(x.shape[:2], dtype=torch.int64), **given)
    ctx.memo["tokens"] = torch.arange(x.shape[0] * x.shape[1]).view(x.shape[:2])
    return ctx


def table(routing: Routing, experts: int = EXPERTS) -> Tensor:
    """Weight of each expert for each token, (N, E)."""
    out = torch.zeros(len(routing.offsets) - 1, experts + 1)
    out[routing.tokens, routing.experts] = routing.weights.detach()
    return out[:, :experts]


@settings(max_examples=20)
@given(st.integers(0, 99), st.integers(1, EXPERTS), st.booleans(), st.sampled_from(["softmax", "sigmoid"]))
def test_top_k_weighs_the_best_experts_by_their_scores(seed, top_k, normalise, score):
    built = router(TopK(score, normalise, scale=1.5), top_k, seed)
    x = torch.randn(2, 4, WIDTH)
    logits = (x @ built.logits.weight.T).flatten(0, 1)
    scores = logits.softmax(-1) if score == "softmax" else logits.sigmoid()
    kept = scores * (scores >= scores.topk(top_k, -1).values[:, -1:])
    wanted = 1.5 * (kept / kept.sum(-1, keepdim=True) if normalise else kept)
    torch.testing.assert_close(table(built(x, context(x))), wanted)


def test_normalised_softmax_is_softmax_over_the_chosen_logits():
    built = router(TopK(bias=True))
    x = torch.randn(1, 5, WIDTH)
    best = built.logits(x)[0].topk(2, -1)
    wanted = torch.zeros(5, EXPERTS).scatter(1, best.indices, best.values.softmax(-1))
    torch.testing.assert_close(table(built(x, context(x))), wanted)


def test_a_correction_changes_the_choice_but_not_the_weights():
    built = router(TopK("sigmoid", normalise=False, correction=True))
    x = torch.randn(1, 9, WIDTH)
    with torch.no_grad():
        built.correction.zero_()
        built.correction[4] = 10
    found = table(built(x, context(x)))
    assert (found[:, 4] > 0).all()
    scores = built.logits(x)[0].sigmoid()
    torch.testing.assert_close(found, torch.where(found > 0, scores, 0.0))


@pytest.mark.parametrize(("best", "wanted"), [(1, {0, 1, 2}), (2, {3, 4, 5})])
def test_groups_leave_only_the_experts_of_the_best_ones(best, wanted):
    """Group 0 has the single best expert, group 1 the best two together."""
    built = router(TopK("sigmoid", groups=2, top_groups=1, group_best=best))
    scores = torch.tensor([0.9, 0.1, 0.1, 0.8, 0.7, 0.1]).expand(1, 3, -1)
    assert set(built.choose(scores).flatten().tolist()) < wanted


def test_an_expert_drops_the_pairs_past_its_capacity_in_order():
    built = router(TopK(normalise=False, capacity=2), top_k=1)
    x = torch.randn(2, 12, WIDTH)
    free = table(router(TopK(normalise=False), top_k=1)(x, context(x))).view(2, 12, -1)
    kept = (free > 0).long().cumsum(1) <= 2
    found = table(built(x, context(x))).view(2, 12, -1)
    assert (free > 0).sum(1).max() > 2
    torch.testing.assert_close(found, free * kept)


def test_places_are_counted_a_text_whatever_stands_beside_it():
    built = router(TopK(capacity=2))
    a, b = torch.randn(1, 7, WIDTH), torch.randn(1, 5, WIDTH)
    apart = torch.cat([table(built(each, context(each))) for each in (a, b)])
    packed = torch.cat([a, b], 1)
    documents = torch.tensor([[0] * 7 + [1] * 5])
    torch.testing.assert_close(table(built(packed, context(packed, documents=documents))), apart)
    left = torch.cat([torch.randn(1, 3, WIDTH), a], 1)
    padding = torch.tensor([[True] * 3 + [False] * 7])
    torch.testing.assert_close(table(built(left, context(left, padding=padding)))[3:], apart[:7])


def test_places_are_remembered_from_step_to_step():
    spec = MoE(EXPERTS, 2, 4, TopK(capacity=2))
    built = router(spec.router)
    x = torch.randn(2, 9, WIDTH)
    whole = table(built(x, context(x))).view(2, 9, -1)
    cache = Cache([spec.slots()], 2, 9)
    parts = []
    for step in (4, 1, 1, 3):
        start = sum(part.shape[1] for part in parts)
        piece = x[:, start : start + step]
        padded = torch.cat([piece, torch.randn(2, 2, WIDTH)], 1)[:, : min(step + 2, 9 - start)]
        counts = torch.full((2,), step)
        ctx = cache.context(torch.zeros(padded.shape[:2], dtype=torch.int64), counts)
        found = table(built(padded, ctx, cache.layers[0])).view(*padded.shape[:2], -1)
        cache.advance(counts)
        parts.append(found[:, :step])
    torch.testing.assert_close(torch.cat(parts, 1), whole)


def test_expert_choice_is_balanced_and_skips_padding():
    built = router(ExpertChoice())
    x = torch.randn(2, 12, WIDTH)
    padding = torch.zeros(2, 12, dtype=torch.bool)
    padding[0, :6] = True
    found = table(built(x, context(x, padding=padding)))
    assert ((found > 0).sum(0) == 18 * 2 // EXPERTS).all() and not found[:6].any()
    scores = built.logits(x).softmax(-1).flatten(0, 1).detach()
    scores[:6] = 0
    for expert in range(EXPERTS):
        chosen = found[:, expert] > 0
        assert scores[chosen, expert].min() >= scores[~chosen, expert].max()
        torch.testing.assert_close(found[chosen, expert], scores[chosen, expert])


@pytest.mark.parametrize("spec", [ExpertChoice(), Base(), Hash(), TopK(), TopK(factor=0.5)])
def test_in_evaluation_no_token_depends_on_another(spec):
    built = router(spec, top_k=1).eval()
    x = torch.randn(1, 10, WIDTH)
    whole = table(built(x, context(x)))
    for place in range(10):
        ctx = context(x[:, place : place + 1])
        ctx.memo["tokens"] = torch.tensor([[place]])
        torch.testing.assert_close(table(built(x[:, place : place + 1], ctx)), whole[place : place + 1])


def test_hash_routing_spreads_ids_and_repeats_itself():
    built = router(Hash(seed=1))
    x = torch.zeros(4, 600, WIDTH)
    found = table(built(x, context(x)))
    share = (found > 0).sum(0) / found.shape[0]
    assert ((share - 2 / EXPERTS).abs() < 0.05).all() and ((found == 0.5).sum(1) == 2).all()
    torch.testing.assert_close(table(built(x, context(x))), found)
    assert (table(router(Hash(seed=2))(x, context(x))) != found).any()
    with pytest.raises(DougongError, match="token ids"):
        built(x, Context.of(torch.zeros(4, 600, dtype=torch.int64)))


@settings(max_examples=40)
@given(st.integers(1, 7), st.integers(1, 4), st.integers(0, 999))
def test_assignment_is_balanced_and_nearly_the_best(tokens, experts, seed):
    affinity = torch.randn(tokens, experts, generator=torch.Generator().manual_seed(seed))
    places = -(-tokens // experts)
    chosen = assign(affinity)
    assert torch.bincount(chosen, minlength=experts).max() <= places
    seats = torch.arange(experts).repeat_interleave(places).tolist()
    best = max(
        sum(float(affinity[token, seat]) for token, seat in enumerate(order))
        for order in set(permutations(seats, tokens))
    )
    spread = float(affinity.max() - affinity.min())
    assert float(affinity.gather(1, chosen[:, None]).sum()) >= best - tokens * spread * 1e-3 - 1e-4


def test_assignment_of_equal_tokens_is_balanced():
    assert torch.bincount(assign(torch.ones(64, 1) * torch.randn(8)), minlength=8).tolist() == [8] * 8


def test_base_is_balanced_in_training():
    built = router(Base(), top_k=1)
    x = torch.randn(3, 10, WIDTH)
    routing = built(x, context(x))
    assert torch.bincount(routing.experts, minlength=EXPERTS).tolist() == [5] * EXPERTS
    wanted = built.logits(x).flatten(0, 1).gather(1, routing.experts[:, None]).sigmoid()[:, 0]
    torch.testing.assert_close(routing.weights, wanted)


def test_balance_loss_is_k_when_even_and_higher_when_not():
    even = torch.full((12, EXPERTS), 1 / EXPERTS)
    chosen = torch.arange(24).view(12, 2) % EXPERTS
    total, weight = balance_loss(even, chosen)
    assert float(total / weight) == pytest.approx(2)
    skewed = torch.zeros(12, EXPERTS)
    skewed[:, 0] = 1
    total, weight = balance_loss(skewed, torch.zeros(12, 1, dtype=torch.int64))
    assert float(total / weight) == pytest.approx(EXPERTS)


def test_padding_does_not_count_in_the_losses_or_the_loads():
    built = router(TopK(balance=0.3, z=0.1, bias=True))
    a = torch.randn(1, 5, WIDTH)
    left = torch.cat([torch.randn(1, 3, WIDTH), a], 1)
    alone, padded = context(a), context(left, padding=torch.tensor([[True] * 3 + [False] * 5]))
    alone.memo["loads"], padded.memo["loads"] = [], []
    built(a, alone), built(left, padded)
    torch.testing.assert_close(auxiliary(alone), auxiliary(padded))
    assert alone.memo["loads"][0][1].tolist() == padded.memo["loads"][0][1].tolist()
    assert alone.memo["loads"][0][1].sum() == 10


def test_auxiliary_losses_reach_whoever_made_the_context_and_only_in_training():
    built = router(TopK(balance=0.3, z=0.1))
    x = torch.randn(2, 5, WIDTH)
    ctx = context(x)
    built(x, ctx)
    logits = built.logits(x).flatten(0, 1)
    experts = logits.topk(2, -1).indices
    z, n = z_loss(logits)
    torch.testing.assert_close(z, logits.logsumexp(-1).square().sum())
    balance = EXPERTS * sum((experts == e).float().sum() / 10 * logits.softmax(-1)[:, e].mean() for e in range(EXPERTS))
    torch.testing.assert_close(auxiliary(ctx), 0.3 * balance + 0.1 * z / n)
    torch.autograd.grad(auxiliary(ctx), built.logits.weight)
    for silent in (built.eval(), router(TopK())):
        ctx = context(x)
        silent(x, ctx)
        assert auxiliary(ctx) is None


def test_the_loss_free_bias_evens_out_the_loads():
    built = router(TopK("sigmoid", correction=True), seed=3)
    built.initial(torch.Generator())
    x = torch.randn(8, 64, WIDTH) + 1
    spread = []
    for _ in range(300):
        ctx = context(x)
        ctx.memo["loads"] = []
        built(x, ctx)
        loads = ctx.memo["loads"][0][1]
        spread.append(float(loads.max() / loads.float().mean()))
        rebalance(built.correction, loads, 0.01)
    assert spread[0] > 1.5 and spread[-1] < 1.15
