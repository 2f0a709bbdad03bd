"""Indexes of words and vectors: against the plain formula, and after any order of additions and removals."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dougong.rag.embedder import unit
from dougong.rag.terms import terms
from dougong.rag.words import WordIndex


def test_terms_of_both_languages() -> None:
    assert terms("The bridges were re-built, readFile(snake_case)") == [
        *("bridg", "re", "built", "read", "file", "snake", "case")
    ]
    assert terms("斗拱承重 a 桥") == ["斗拱", "拱承", "承重", "桥"]
    assert terms("ＡＢＣ１") == ["abc1"]


def plain(texts: list[str], query: str, k1: float = 1.5, b: float = 0.75) -> list[float]:
    """The formula of BM25 as it stands in the docstring."""
    listed = [terms(text) for text in texts]
    mean = sum(map(len, listed)) / len(listed)
    scores = []
    for words in listed:
        counts, score = Counter(words), 0.0
        for term in terms(query):
            held = sum(term in each for each in listed)
            weight = math.log(1 + (len(texts) - held + 0.5) / (held + 0.5))
            length = k1 * (1 - b + b * len(words) / mean) if mean else 1.0
            score += weight * counts[term] / (counts[term] + length)
        scores.append(score)
    return scores


words = st.lists(
    st.sampled_from(["bridge", "stone", "river", "桥", "屋顶", "斗拱", "wood", "arch", "arches"]), max_size=12
).map(" ".join)


@settings(max_examples=40)
@given(texts=st.lists(words, min_size=1, max_size=8), query=words, data=st.data())
def test_bm25_is_its_formula(texts: list[str], query: str, data) -> None:
    ids = [7 * place + 3 for place in range(len(texts))]
    scores = plain(texts, query)
    allowed = data.draw(st.none() | st.sets(st.sampled_from(ids)))
    expected = {
        each: score
        for each, score in zip(ids, scores, strict=True)
        if score > 0 and (allowed is None or each in allowed)
    }
    found = WordIndex(ids, texts).search(query, len(texts), allowed)
    assert {each for each, _ in found} == set(expected)
    assert all(math.isclose(score, expected[each], rel_tol=1e-4) for each, score in found)
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)


@pytest.mark.slow
def test_the_compiled_scorer_says_the_same(monkeypatch) -> None:
    import dougong.rag.words

    texts = ["stone bridge", "wood bridge over a river", "roof", "stone stone wall"]
    here = WordIndex(range(4), texts).search("stone bridge", 3)
    monkeypatch.setattr(dougong.rag.words, "COMPILED", 1)
    there = WordIndex(range(4), texts).search("stone bridge", 3)
    assert [each for each, _ in here] == [each for each, _ in there]
    assert np.allclose([score for _, score in here], [score for _, score in there], atol=1e-5)


def drawn(count: int, seed: int = 0, width: int = 16) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32))


@pytest.mark.parametrize("kind", ["exact", "hnsw", "ivf"])
@settings(max_examples=20)
@given(
    steps=st.lists(st.tuples(st.sampled_from(["add", "remove"]), st.integers(0, 29), st.integers(1, 10)), max_size=8),
    k=st.integers(1, 12),
)
def test_after_any_changes_an_index_finds_what_is_there(kind, steps, k) -> None:
    from dougong.rag.vectors import VectorIndex

    vectors = drawn(40)
    held = set(range(10))
    index = VectorIndex(sorted(held), vectors[:10], kind)
    once = set(held)
    for step, first, count in steps:
        ids = range(first, min(30, first + count))
        if step == "add":
            ids = [each for each in ids if each not in once or each in held]
            index.add(ids, vectors[list(ids)])
            held.update(ids)
            once.update(ids)
        else:
            index.remove(ids)
            held.difference_update(ids)
    assert len(index) == len(held)
    for allowed in (None, {each for each in range(40) if each % 3 == 0}):
        there = sorted(held if allowed is None else held & allowed)
        scores = {each: float(vectors[each] @ vectors[35]) for each in there}
        best = sorted(there, key=lambda each: -scores[each])[:k]
        found = index.search(vectors[35], k, allowed)
        assert [each for each, _ in found] == best
        assert all(math.isclose(score, scores[each], abs_tol=1e-4) for each, score in found)


@pytest.mark.parametrize(("kind", "least"), [("exact", 1.0), ("hnsw", 0.95), ("ivf", 0.9)])
def test_approximate_indexes_find_most(kind, least, tmp_path: Path) -> None:
    from dougong.rag.vectors import VectorIndex

    centres = drawn(40, 1, 32)
    spread = np.random.default_rng(2).normal(size=(5000, 32)).astype(np.float32)
    vectors = unit(centres[np.arange(5000) % 40] + 0.15 * spread)
    ids = [2**61 + 5 * place for place in range(5000)]
    index = VectorIndex(ids, vectors, kind)
    index.save(tmp_path / "v.faiss")
    again = VectorIndex.load(tmp_path / "v.faiss", kind, ids)
    assert again is not None
    assert VectorIndex.load(tmp_path / "v.faiss", kind, ids[1:]) is None
    right = 0
    for query in vectors[::250]:
        best = {ids[place] for place in np.argsort(-(vectors @ query))[:10]}
        found = {each for each, _ in index.search(query, 10)}
        assert found == {each for each, _ in again.search(query, 10)}
        right += len(best & found)
    assert right / 200 >= least


def test_a_file_that_is_no_index(tmp_path: Path) -> None:
    from dougong.rag.vectors import VectorIndex

    (tmp_path / "v.faiss").write_bytes(b"no index")
    assert VectorIndex.load(tmp_path / "v.faiss", "exact", [1]) is None
    assert VectorIndex.load(tmp_path / "absent", "exact", [1]) is None
