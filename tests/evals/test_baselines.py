"""The baselines are proper: probabilities sum to one, and a source of known entropy measures its entropy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dougong.base import DougongError
from dougong.evals import ByteModel, baselines
from dougong.evals.baselines import unigram_bits, xz_bits

TEXT = b"the cat sat on the mat and the dog sat on the log, and all of them were happy; " * 3


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=9, max_size=300), st.binary(max_size=8), st.integers(0, 7))
def test_the_probabilities_of_every_context_sum_to_one(text, context, order):
    model = ByteModel.fit(text, order)
    for seen in (context, text[-8:], b""):
        p = model.distribution(seen)
        assert p.min() > 0 and p.sum() == pytest.approx(1, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=9, max_size=200), st.binary(min_size=1, max_size=50), st.integers(0, 7))
def test_a_text_is_measured_byte_by_byte(text, held_out, order):
    model = ByteModel.fit(text, order)
    one_by_one = [model.distribution(held_out[max(0, i - order) : i])[byte] for i, byte in enumerate(held_out)]
    assert model.probabilities(held_out) == pytest.approx(np.array(one_by_one))


def test_counting_by_hand():
    # Order 0 of "aab": counts 2 and 1, n_1 = n_2 = 1, Y = 1/3, D_1 = 1 - 2/3 = 1/3; n_3 = 0 gives D_2 = 2.
    p = ByteModel.fit(b"aab", 0).distribution(b"")
    spare = (2 + 1 / 3) / 3 / 256
    assert p[ord("a")] == pytest.approx(spare) and p[ord("b")] == pytest.approx((1 - 1 / 3) / 3 + spare)


def markov(count: int, seed: int) -> tuple[bytes, float]:
    """A chain over four letters, and its entropy rate in bits."""
    rng = np.random.default_rng(seed)
    step = np.array([[0.7, 0.1, 0.1, 0.1], [0.05, 0.05, 0.85, 0.05], [0.25] * 4, [0.4, 0.4, 0.1, 0.1]])
    values, vectors = np.linalg.eig(step.T)
    steady = np.real(vectors[:, np.argmax(np.real(values))])
    steady /= steady.sum()
    rate = float(-(steady @ (step * np.log2(step)).sum(axis=1)))
    edges = step.cumsum(axis=1)
    letters, state = bytearray(), 0
    for draw in rng.random(count):
        state = min(3, int((edges[state] < draw).sum()))
        letters.append(97 + state)
    return bytes(letters), rate


def test_a_source_of_known_entropy():
    text, rate = markov(120_000, 0)
    train, held_out = text[:100_000], text[100_000:]
    assert ByteModel.fit(train, 1).bits_per_byte(held_out) == pytest.approx(rate, abs=0.03)
    assert ByteModel.fit(train, 3).bits_per_byte(held_out) == pytest.approx(rate, abs=0.03)
    # Nothing that is fair can go much below the entropy; what ignores the context stays above it.
    assert unigram_bits(train, held_out) > rate + 0.2
    assert xz_bits(held_out) > rate - 0.03


def test_uniform_bytes_cost_eight_bits():
    noise = np.random.default_rng(0).integers(0, 256, 40_000, dtype=np.uint8).tobytes()
    rows = baselines(noise[:30_000], noise[30_000:], order=2)
    assert all(7.9 < row.bits_per_byte < 8.6 for row in rows)


def test_the_table_says_how_each_was_measured():
    rows = {row.name: row for row in baselines(TEXT * 20, TEXT, order=4, sample=100)}
    assert list(rows) == ["unigram", "order-4 bytes", "xz -9", "xz -9 primed"]
    assert all("the first 100 of" in row.how for row in rows.values())
    assert rows["order-4 bytes"].bits_per_byte < 1 < rows["unigram"].bits_per_byte
    assert rows["xz -9 primed"].bits_per_byte < rows["xz -9"].bits_per_byte


def test_no_text_and_impossible_orders_are_refused():
    with pytest.raises(DougongError, match="0 bytes to train on"):
        baselines(b"", b"x")
    with pytest.raises(DougongError, match="order is 8"):
        ByteModel.fit(TEXT, 8)
    with pytest.raises(DougongError, match="more than 3"):
        ByteModel.fit(b"abc", 3)
    with pytest.raises(DougongError, match="empty text"):
        ByteModel.fit(TEXT, 2).bits_per_byte(b"")
