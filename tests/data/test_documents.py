"""Splits are pure functions of names and texts, lose nothing, and keep copies on one side."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dougong.base import DougongError
from dougong.data import Document, drop_duplicates, split_documents, split_of


def essay(seed: int, lines: int = 30) -> str:
    return "\n".join(f"line {line} of essay number {seed} says {seed * line} things" for line in range(lines))


@given(st.text(max_size=40), st.floats(0, 1))
def test_the_split_of_a_name_depends_on_the_name_alone(name, held_out):
    assert split_of(name, held_out) == split_of(name, held_out)
    assert split_of(name, 0.0) == "train"
    assert split_of(name, 1.0) == "held_out"


def test_the_split_is_the_same_on_every_machine():
    # Fixed values: a change of the hash would move text between the splits of existing runs.
    assert split_of("python-module:glob") == "held_out"
    assert split_of("python-module:json.decoder") == "train"


def test_the_split_holds_out_the_share_asked_for():
    held = sum(split_of(f"name-{i}", 0.1) == "held_out" for i in range(10_000))
    assert 900 < held < 1100


def test_exact_duplicates_and_blank_documents_are_dropped():
    documents = [Document("a", "1"), Document(" a\n", "2"), Document("b", "3"), Document(" \n", "4")]
    assert [document.source for document in drop_duplicates(documents)] == ["1", "3"]


@given(st.integers(21, 60), st.floats(0.01, 0.5), st.integers(0, 1000))
def test_many_documents_are_split_whole_and_none_is_lost(count, held_out, salt):
    documents = [Document(essay(i), f"{salt}/{i}") for i in range(count)]
    train, held = split_documents(documents, held_out)
    assert train and held
    assert sorted(d.source for d in train + held) == sorted(d.source for d in documents)


@given(st.integers(0, 50))
def test_near_copies_stay_on_one_side(salt):
    documents = [Document(essay(i), f"{salt}/original/{i}") for i in range(30)]
    documents += [Document(essay(i) + "\nwith one more line at the end", f"{salt}/copy/{i}") for i in range(30)]
    train, held = split_documents(documents, 0.3)
    numbers = [{d.source.rsplit("/", 1)[1] for d in side} for side in (train, held)]
    assert not numbers[0] & numbers[1]


@given(st.lists(st.text("ab \n", min_size=30, max_size=300), min_size=1, max_size=5), st.floats(0.1, 0.5))
def test_few_documents_are_cut_without_loss(texts, held_out):
    documents = [Document(text, str(i), "CC0-1.0") for i, text in enumerate(texts) if text.strip()]
    kept = drop_duplicates(documents)
    try:
        train, held = split_documents(documents, held_out)
    except DougongError:
        return  # blank ends may leave nothing to hold out
    for document in kept:
        parts = [d.text for side in (train, held) for d in side if d.source == document.source]
        assert "".join(parts).strip() == document.text.strip()
    assert {d.licence for d in train + held} == {"CC0-1.0"}


def test_a_novel_is_cut_near_the_share_at_the_end_of_a_line():
    text = "".join(f"line number {i}\n" for i in range(1000))
    (train,), (held,) = split_documents([Document(text, "novel")], 0.1)
    assert train.text.endswith("\n") and train.text + held.text == text
    assert 0.08 < len(held.text) / len(text) < 0.12
    assert held.meta["part"] == "last" and held.source == "novel"


@pytest.mark.parametrize("held_out", [0.0, 1.0, -0.1, 5.0])
def test_a_share_out_of_range_is_refused(held_out):
    with pytest.raises(DougongError, match="held_out is"):
        split_documents([Document("text", "a")], held_out)


def test_copies_of_one_text_cannot_be_split():
    with pytest.raises(DougongError, match="blank"):
        split_documents([Document("  ", "a")])
    copies = [Document(essay(1) + "\n" * 3 + str(i), str(i)) for i in range(25)]
    train, held = split_documents([*copies[:12], *(Document(essay(i), f"other {i}") for i in range(9, 20))], 0.5)
    assert len({d.source for d in train} & {d.source for d in held}) == 0
