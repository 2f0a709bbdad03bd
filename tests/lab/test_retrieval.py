"""The chapter on retrieval end to end, at a size that teaches nothing."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from dougong.cli import main
from dougong.data.documents import split_documents
from dougong.data.stdlib import standard_library
from dougong.lab import retrieval
from dougong.rag.neighbours import Neighbours
from dougong.rag.reader import NONE
from dougong.train.ranks import Ranks


@pytest.fixture
def small(monkeypatch):
    pytest.importorskip("bm25s")
    pytest.importorskip("faiss")
    some = list(islice(standard_library(), 0, None, 12))
    monkeypatch.setattr(retrieval, "standard_library", lambda: [each for each in some if len(each.text) < 40_000])
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
    assert told.count("±") == 7 and "report" in told
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<svg" in page and "nan" not in page.lower()


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


def test_practice_ends(small) -> None:
    tokens = retrieval.corpus()[1].tokens
    assert retrieval.following(tokens)[0, 1].tolist() == tokens[0, 32:96].tolist()
    assert retrieval.following(tokens)[0, 3].tolist() == [*tokens[0, 96:128].tolist(), *[NONE] * 32]
    batches = [batch for batch, _ in islice(retrieval.Reading(6, 0, practice=1)(None, Ranks()), 2)]
    given = [
        sum(
            torch.equal(each, own)
            for passages, row in zip(batch.further["passages"], retrieval.following(batch.tokens), strict=True)
            for each, own in zip(passages[:, 0], row, strict=True)
        )
        for batch in batches
    ]
    assert given[0] > 0 == given[1]


def test_what_is_compared_is_of_one_size(small) -> None:
    reader, decoder = (retrieval.spec_of(name).parameters() for name in (retrieval.READER, retrieval.DECODER))
    assert 1 <= decoder / reader < 1.05  # the decoder has what the reader has, and a little more
    assert retrieval.operations(retrieval.READER) > retrieval.operations(retrieval.DECODER)


def test_chunks_that_are_counted_are_those_after_reading() -> None:
    chunks = torch.tensor([[True, False, False], [False, False, True]])
    kept = retrieval.after_reading(chunks)
    assert kept.shape == (2, retrieval.LENGTH)
    # Target t is token t + 1: chunk 1 is tokens 32 to 63, so targets 31 to 62.
    assert kept[0].nonzero().flatten().tolist() == list(range(31, 63))
    assert kept[1].nonzero().flatten().tolist() == list(range(95, 127))
