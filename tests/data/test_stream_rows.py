"""Pretraining rows: nothing leaks, nothing is lost, and resuming or sharding changes nothing."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dougong.base import DougongError, record_from, record_to
from dougong.data import IGNORED, LoaderState, batches, evaluation_batches
from dougong.data.loader import permutation

# Texts of different letters, so that a leak shows.
TEXTS = st.lists(st.integers(0, 25), min_size=1, max_size=8).map(
    lambda sizes: [chr(97 + i) * size for i, size in enumerate(sizes)]
)


def rows(batch):
    return [
        [part[i].tolist() for part in (batch.tokens, batch.targets, batch.positions, batch.documents)]
        for i in range(len(batch.tokens))
    ]


def same(a, b):
    fields = (a.tokens, a.targets, a.positions), (b.tokens, b.targets, b.positions)
    return all(torch.equal(x, y) for x, y in zip(*fields, strict=True)) and (
        (a.documents is None and b.documents is None) or torch.equal(a.documents, b.documents)
    )


@given(TEXTS, st.integers(1, 20), st.integers(1, 4), st.integers(0, 3))
def test_rows_hold_whole_or_cut_documents_and_never_leak(make_store, texts, length, size, seed):
    store = make_store(texts)
    for batch, _ in islice(batches(store, size, length, seed=seed), 6):
        assert batch.tokens.shape == (size, length) and batch.tokens.dtype == torch.int64
        assert batch.weight == size * length  # no token is wasted
        for tokens, targets, positions, documents in rows(batch):
            assert positions[0] == documents[0] == 0
            for t in range(1, length):
                if documents[t] == documents[t - 1]:
                    assert positions[t] == positions[t - 1] + 1
                    assert tokens[t] == targets[t - 1] != store.eos_id
                else:
                    # A new document opens with the start token, after the end of the one before was predicted.
                    assert documents[t] == documents[t - 1] + 1 and positions[t] == 0
                    assert tokens[t] == store.start_id and targets[t - 1] == store.eos_id
            for t in range(length):
                letters = {tokens[t], targets[t]} - {store.start_id, store.eos_id}
                assert len(letters) <= 1  # each text is of one letter


@given(TEXTS, st.integers(1, 20), st.integers(0, 3))
def test_an_epoch_has_every_token_as_a_target(make_store, texts, length, seed):
    store = make_store(texts)
    per_epoch = -(-store.tokens // length)
    loader = batches(store, 1, length, seed=seed)
    for _ in range(3):
        seen = Counter()
        for batch, _ in islice(loader, per_epoch):
            seen.update(batch.targets.flatten().tolist())
        wanted = Counter(store.ids.tolist())
        assert all(seen[token] >= count for token, count in wanted.items())
        assert seen.total() == per_epoch * length < wanted.total() + length


@settings(max_examples=30)
@given(TEXTS, st.integers(1, 12), st.integers(1, 4), st.integers(0, 9), st.booleans())
def test_resuming_at_every_cut_gives_what_follows(make_store, texts, length, size, seed, masked):
    store = make_store(texts)
    whole = list(islice(batches(store, size, length, seed=seed, masked=masked), 8))
    for cut in range(7):
        state = record_from(LoaderState, record_to(whole[cut][1]))  # through plain data, as a checkpoint does
        rest = islice(batches(store, size, length, seed=seed, masked=masked, state=state), 7 - cut)
        for (batch, at), (wanted, then) in zip(rest, whole[cut + 1 :], strict=True):
            assert same(batch, wanted) and at == then


@settings(max_examples=30)
@given(TEXTS, st.integers(1, 12), st.sampled_from([1, 2, 3, 4]), st.integers(1, 3))
def test_the_ranks_together_are_one_process(make_store, texts, length, world, share):
    store = make_store(texts)
    whole = batches(store, world * share, length)
    ranks = [batches(store, world * share, length, rank=rank, world=world) for rank in range(world)]
    for (batch, state), *parts in islice(zip(whole, *ranks, strict=False), 5):
        assert {then for _, then in parts} == {state}
        for field in ("tokens", "targets", "positions", "documents"):
            assert torch.equal(torch.cat([getattr(part, field) for part, _ in parts]), getattr(batch, field))


@given(TEXTS, st.integers(1, 20), st.integers(1, 3), st.data())
def test_evaluation_predicts_every_token_once_in_order(make_store, texts, length, size, data):
    store = make_store(texts)
    overlap = data.draw(st.integers(0, length - 1))
    targets = []
    for batch in evaluation_batches(store, size, length, overlap=overlap):
        assert len(batch.tokens) <= size
        for tokens, row, positions, documents in rows(batch):
            targets += [target for target in row if target != IGNORED]
            for t in range(1, length):
                assert documents[t] - documents[t - 1] in (0, 1)
                assert positions[t] == (positions[t - 1] + 1 if documents[t] == documents[t - 1] else 0)
                if row[t] != IGNORED and positions[t]:
                    assert row[t - 1] in (tokens[t], IGNORED)
    assert targets == store.ids.tolist()


def test_epochs_and_seeds_differ(make_store):
    store = make_store([chr(97 + i) * 5 for i in range(26)])
    loader = batches(store, 13, 12)
    first, second = next(loader)[0], next(loader)[0]
    assert not same(first, second)
    assert not same(first, next(batches(store, 13, 12, seed=1))[0])


def test_unmasked_rows_have_no_documents(make_store):
    batch, _ = next(batches(make_store(["ab", "cd"]), 1, 6, masked=False))
    assert batch.documents is None and batch.positions.tolist() == [[0, 1, 2, 3, 4, 5]]


def test_micro_batches_are_the_batch(make_store):
    batch, _ = next(batches(make_store(["abcdefg", "hij"]), 5, 4))
    for parts in (1, 2, 3, 5, 9):
        pieces = batch.micro(parts)
        assert len(pieces) == min(parts, 5)
        assert torch.equal(torch.cat([piece.targets for piece in pieces]), batch.targets)


@given(st.integers(0, 300), st.integers(0, 2**40), st.integers(0, 50))
def test_a_permutation_is_one(count, seed, epoch):
    assert sorted(permutation(count, seed, epoch).tolist()) == list(range(count))


def test_a_permutation_never_changes():
    # Fixed values: runs resumed with another version of anything must see the same order.
    assert permutation(8, 0, 0).tolist() == [6, 7, 1, 4, 3, 5, 2, 0]


def test_wrong_sizes_and_foreign_states_are_refused(make_store):
    store = make_store(["abc", "def"])
    with pytest.raises(DougongError, match="does not divide among 2 ranks"):
        batches(store, 3, 4, world=2)
    with pytest.raises(DougongError, match="rank is 2 of 2"):
        batches(store, 4, 4, rank=2, world=2)
    with pytest.raises(DougongError, match="batch_size is 0"):
        batches(store, 0, 4)
    with pytest.raises(DougongError, match="length is 0"):
        batches(store, 1, 0)
    _, state = next(batches(store, 2, 4))
    with pytest.raises(DougongError, match="the saved state reads"):
        batches(store, 2, 4, seed=1, state=state)
    with pytest.raises(DougongError, match="overlap is 4"):
        next(evaluation_batches(store, 1, 4, overlap=4))
