"""The chapter on retrieval end to end, at a size that teaches nothing."""

from __future__ import annotations

import math
from itertools import islice

import pytest
import torch

from dougong.cli import main
from dougong.data.documents import split_documents
from dougong.data.stdlib import standard_library
from dougong.lab import facts, retrieval
from dougong.rag.neighbours import Neighbours
from dougong.rag.reader import NONE
from dougong.train.ranks import Ranks


@pytest.fixture
def small(monkeypatch):
    pytest.importorskip("bm25s")
    pytest.importorskip("faiss")
    some = list(islice(standard_library(), 0, None, 12))
    monkeypatch.setattr(retrieval, "standard_library", lambda: [each for each in some if len(each.text) < 40_000])
    monkeypatch.setattr(retrieval, "WORLD", 30)
    monkeypatch.setattr(retrieval, "ASKED_OF", 8)
    for name, value in (("POOL", 24), ("TESTED", 8), ("STORED", 8), ("VOCAB", 320), ("WIDTH", 16)):
        monkeypatch.setattr(retrieval, name, value)
    kept = (retrieval.corpus, retrieval.sizes, retrieval.far)
    for each in kept:
        each.cache_clear()
    yield
    for each in kept:
        each.cache_clear()


def test_it_runs_and_tells(small, tmp_path, capsys) -> None:
    command = ["lab", "retrieval", "--steps", "2", "--seeds", "2", "--out", str(tmp_path / "run"), "--quiet"]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert told.count("±") == 12 and "report" in told
    assert told.count("over the rows of the test") == 4
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<svg" in page and "nan" not in page.lower()


def test_rows_are_compared_with_themselves(small) -> None:
    """What is the same in every row has no interval; what differs by row has one around its value."""
    size = retrieval.sizes()
    one = torch.rand(size.shape, generator=torch.Generator().manual_seed(0))
    told = retrieval.apart("a", one + size, one)
    bits = 1 / math.log(2)
    assert all(value == pytest.approx(bits, rel=1e-3) for value in told.values())
    told = retrieval.apart("a", one, one.roll(1, 0))
    assert told["a, low"] < told["a"] < told["a, high"]


def test_held_out_text_is_closed_and_no_row_reads_what_it_must_predict(small, monkeypatch) -> None:
    made = []

    def noted(documents, groups, decode, chunk, closed):
        made.append((documents, closed))
        return Neighbours(documents, groups, decode, chunk, closed)

    monkeypatch.setattr(retrieval, "Neighbours", noted)
    tokenizer, learn, test = retrieval.corpus()
    learning, held_out = split_documents(retrieval.standard_library())
    ((stored, closed),) = made
    assert [tokenizer.decode(each) for each in stored] == [each.text for each in (*learning, *held_out)]
    assert closed == range(len(learning), len(stored)) and held_out
    assert learn.passages.shape[1:] == test.passages.shape[1:] == test.elsewhere.shape[1:] == (4, 2, 64)
    texts = [each.text.encode() for each in held_out]
    for row, passages, elsewhere in zip(test.tokens, test.passages, test.elsewhere, strict=True):
        said = spelled(tokenizer, row)
        (whole,) = [each for each in texts if said in each]
        for passage in passages.flatten(0, 1):  # of its own document only what stands before the row
            if (found := spelled(tokenizer, passage)) and found in whole:
                assert whole.index(found) + len(found) <= whole.rindex(said)
        others = [spelled(tokenizer, passage) for passage in elsewhere.flatten(0, 1)]
        assert not any(found in each for found in others if found for each in texts)
    assert (retrieval.given(test, "none") == NONE).all()
    assert not torch.equal(retrieval.given(test, "random"), test.passages)


def spelled(tokenizer, row: torch.Tensor) -> bytes:
    return b"".join(tokenizer.token_bytes(each) for each in row.tolist() if each != NONE)


def test_facts_are_found_and_no_other_world_tells_them() -> None:
    here, other = facts.world(0, 40), facts.world(1, 40)
    for made in (here, other):
        for row, passages in zip(made.tokens, made.passages, strict=True):
            for asked in facts.ASKED:
                told = row[asked - 7 : asked + 2]
                found = passages[asked // facts.CHUNK - 1, :, : facts.CHUNK]
                assert any(torch.equal(each, told) for each in found)  # what the question before it found
    known = {tuple(each[:7].tolist()): int(each[7]) for each in here.passages.flatten(0, 2)}
    again = {tuple(each[:7].tolist()): int(each[7]) for each in other.passages.flatten(0, 2)}
    same = [known[each] == again[each] for each in known.keys() & again.keys()]
    assert len(same) > 5 and sum(same) < len(same) / 2


def test_batches_resume_where_they_were() -> None:
    stream = retrieval.Reading(retrieval.FACTS, 3, seed=1)(None, Ranks())
    first = [next(stream) for _ in range(3)]
    again = next(retrieval.Reading(retrieval.FACTS, 3, seed=1)(first[1][1], Ranks()))
    assert torch.equal(again[0].tokens, first[2][0].tokens)
    assert torch.equal(again[0].further["passages"], first[2][0].further["passages"])


def test_what_is_compared_is_of_one_size(small) -> None:
    pairs = ((retrieval.READER, retrieval.DECODER), (retrieval.FACT_READER, retrieval.FACT_DECODER))
    for pair in pairs:
        reader, decoder = (retrieval.spec_of(name).parameters() for name in pair)
        assert 1 <= decoder / reader < 1.1  # the decoder has what the reader has, and a little more
    assert retrieval.operations(retrieval.READER) > retrieval.operations(retrieval.DECODER)


def test_chunks_that_are_counted_are_those_after_reading() -> None:
    chunks = torch.tensor([[True, False, False], [False, False, True]])
    kept = retrieval.after_reading(chunks)
    assert kept.shape == (2, retrieval.LENGTH)
    # Target t is token t + 1: chunk 1 is tokens 32 to 63, so targets 31 to 62.
    assert kept[0].nonzero().flatten().tolist() == list(range(31, 63))
    assert kept[1].nonzero().flatten().tolist() == list(range(95, 127))
