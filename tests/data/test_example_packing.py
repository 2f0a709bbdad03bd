"""Instruction rows: every example whole, alone in its mask, learnt where it should be, in few rows."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dougong.base import DougongError
from dougong.data import IGNORED, Example, example_batches, pack_examples
from dougong.data.packing import best_fit

EXAMPLES = st.lists(
    st.lists(st.tuples(st.integers(0, 99), st.booleans()), min_size=2, max_size=12).filter(
        lambda pairs: any(learnt for _, learnt in pairs[1:])
    ),
    min_size=1,
    max_size=12,
).map(lambda lists: [Example([i for i, _ in pairs], [m for _, m in pairs]) for pairs in lists])


def unpacked(batch):
    """(tokens, targets) of every document with loss, as they stand in the rows."""
    found = []
    for row in range(len(batch.tokens)):
        for number in batch.documents[row].unique().tolist():
            inside = batch.documents[row] == number
            assert batch.positions[row][inside].tolist() == list(range(int(inside.sum())))
            targets = batch.targets[row][inside].tolist()
            if any(target != IGNORED for target in targets):
                found.append((tuple(batch.tokens[row][inside].tolist()), tuple(targets)))
    return found


def expected(example):
    targets = [i if learnt else IGNORED for i, learnt in zip(example.ids, example.loss_mask, strict=True)]
    return tuple(example.ids[:-1]), tuple(targets[1:])


@given(EXAMPLES, st.integers(0, 8), st.sampled_from(["packed", "padded"]), st.integers(0, 3))
def test_packing_never_leaks_and_loses_nothing(examples, spare, layout, seed):
    length = max(len(example.ids) - 1 for example in examples) + spare
    packed = pack_examples(examples, length, pad_id=0, layout=layout)
    assert (packed.truncated, packed.dropped) == (0, 0)
    assert sorted(i for row in packed.rows for i in row) == list(range(len(examples)))
    for _ in range(2):
        found = []
        for batch, _ in islice(example_batches(packed, 1, seed=seed), packed.count):
            assert batch.tokens.shape == (1, length)
            found += unpacked(batch)
        assert Counter(found) == Counter(map(expected, examples))


@given(EXAMPLES)
def test_padded_rows_hold_one_example_each_at_the_longest_length(examples):
    packed = pack_examples(examples, layout="padded")
    assert packed.count == len(examples) and packed.length == max(len(example.ids) - 1 for example in examples)


@given(st.lists(st.integers(1, 20), max_size=40), st.integers(20, 40))
def test_best_fit_fills_bins_within_their_capacity(sizes, length):
    bins = best_fit(sizes, length)
    assert sorted(i for members in bins for i in members) == list(range(len(sizes)))
    loads = [sum(sizes[i] for i in members) for members in bins]
    assert all(0 < load <= length for load in loads)
    # Any two bins hold more than one could: else the later one's first item would have fitted the earlier one.
    assert all(a + b > length for at, a in enumerate(loads) for b in loads[at + 1 :])


def test_best_fit_is_tight_on_a_known_case():
    assert len(best_fit([6, 5, 4, 3, 2], 10)) == 2
    assert [sum([7, 5, 3, 3, 2][i] for i in bin) for bin in best_fit([7, 5, 3, 3, 2], 10)] == [10, 10]


@settings(max_examples=30)
@given(EXAMPLES, st.integers(1, 4), st.integers(0, 3))
def test_resuming_at_every_cut_gives_what_follows(examples, size, seed):
    packed = pack_examples(examples)
    whole = list(islice(example_batches(packed, size, seed=seed), 6))
    for cut in range(5):
        rest = islice(example_batches(packed, size, seed=seed, state=whole[cut][1]), 5 - cut)
        for (batch, state), (wanted, then) in zip(rest, whole[cut + 1 :], strict=True):
            assert state == then
            assert torch.equal(batch.tokens, wanted.tokens) and torch.equal(batch.targets, wanted.targets)


@settings(max_examples=30)
@given(EXAMPLES, st.sampled_from([2, 3]))
def test_the_ranks_together_are_one_process(examples, world):
    packed = pack_examples(examples)
    ranks = [example_batches(packed, 2 * world, rank=rank, world=world) for rank in range(world)]
    for (batch, _), *parts in islice(zip(example_batches(packed, 2 * world), *ranks, strict=False), 4):
        assert torch.equal(torch.cat([part.tokens for part, _ in parts]), batch.tokens)


def test_too_long_examples_are_refused_or_truncated_and_counted():
    examples = [
        Example([1, 2, 3], [False, True, True]),
        Example(list(range(9)), [False] + [True] * 8),
        Example(list(range(9)), [False] * 8 + [True]),
    ]
    with pytest.raises(DougongError, match="example 1 has 9 tokens, more than the 5"):
        pack_examples(examples, 4)
    packed = pack_examples(examples, 4, too_long="truncate")
    assert (packed.truncated, packed.dropped, len(packed.examples)) == (2, 1, 2)
    assert list(packed.examples[1].ids) == [0, 1, 2, 3, 4]


def test_what_cannot_be_learnt_is_refused():
    with pytest.raises(DougongError, match="none of the 1 examples has a token to learn"):
        pack_examples([Example([1, 2], [True, False])])
    with pytest.raises(DougongError, match="none of the 0 examples"):
        pack_examples([])
    with pytest.raises(DougongError, match="example 0 has 2 ids but 3"):
        pack_examples([Example([1, 2], [True, False, True])])
