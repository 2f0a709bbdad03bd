"""What every store promises. A new store joins `STORES`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dougong.base import DougongError
from dougong.data import Document
from dougong.rag.chunk import Chunk
from dougong.rag.embedder import unit
from dougong.rag.stores import Entry, Store, open_store
from dougong.rag.stores.sqlite import SqliteStore

WIDTH = 8
STORES = ("memory", "folder", "folder-hnsw", "milvus")


def opened(name: str, place: Path) -> Store:
    if name == "milvus":
        pytest.importorskip("milvus_lite")
        return open_store(f"milvus:{place}/m.db", WIDTH)
    if name == "memory":
        return open_store("memory:", WIDTH)
    return open_store(str(place / "library"), WIDTH, "hnsw" if name.endswith("hnsw") else "exact")


def entry(file: str, version: int, pieces: int = 3) -> Entry:
    """A file with a document of a few one-word chunks; its content depends on the version."""
    texts = [f"{file}-{version}-{piece}-斗拱" for piece in range(pieces)]
    text = " ".join(texts)
    chunks = []
    for each in texts:
        start = text.index(each)
        meta = {"file": file, "version": version, "odd": bool(version % 2), "bytes": [start, start + 1]}
        chunks.append(Chunk(each, file, start, start + len(each), meta))
    seed = sum(map(ord, file)) * 31 + version
    vectors = unit(np.random.default_rng(seed).normal(size=(pieces, WIDTH)).astype(np.float32))
    return Entry(file, f"digest-{version}", [Document(text, file)], chunks, vectors)


def check(store: Store, held: dict[str, Entry]) -> None:
    """All that a store says agrees with what was put into it."""
    assert store.files() == {name: each.digest for name, each in sorted(held.items())}
    assert store.documents() == {name: name for name in held}
    expected = {chunk.id: chunk for each in held.values() for chunk in each.chunks}
    assert store.chunks() == expected
    vectors = {
        chunk.id: vector for each in held.values() for chunk, vector in zip(each.chunks, each.vectors, strict=True)
    }
    ids = list(expected)
    assert np.allclose(store.vectors(ids), np.array([vectors[each] for each in ids]).reshape(-1, WIDTH), atol=1e-6)
    for name, each in held.items():
        assert store.text(name) == each.documents[0].text
    query = unit(np.ones((1, WIDTH), dtype=np.float32))[0]
    for where in (None, {"odd": True}, {"version": [1, 2]}, {"doc": "f1*"}, {"doc": "f1", "version": 2}, {"none": 1}):
        from dougong.rag.where import holds

        there = [each for each, chunk in expected.items() if holds(where, chunk)]
        best = sorted(there, key=lambda each: -float(vectors[each] @ query))[:4]
        found = store.nearest(query, 4, where)
        assert [each for each, _ in found] == best
        assert np.allclose([score for _, score in found], [vectors[each] @ query for each in best], atol=1e-4)


changes = st.lists(
    st.tuples(
        st.lists(st.integers(0, 3), max_size=2), st.dictionaries(st.integers(0, 3), st.integers(1, 3), max_size=2)
    ),
    max_size=4,
)


@pytest.mark.parametrize("name", STORES)
def test_a_store_is_what_was_put_into_it(name: str, tmp_path_factory) -> None:
    @settings(max_examples=2 if name == "milvus" else 6)
    @given(steps=changes)
    def follow(steps) -> None:
        place = tmp_path_factory.mktemp("store")
        store, held = opened(name, place), {}
        try:
            for drop, add in steps:
                store.replace([f"f{each}" for each in drop], [entry(f"f{each}", v) for each, v in add.items()])
                for each in drop:
                    held.pop(f"f{each}", None)
                held.update({f"f{each}": entry(f"f{each}", v) for each, v in add.items()})
                check(store, held)
        finally:
            store.close()

    follow()


@pytest.mark.parametrize("name", [each for each in STORES if each != "memory"])
def test_it_is_still_there_when_opened_again(name: str, tmp_path: Path) -> None:
    held = {file: entry(file, 1) for file in ("f0", "f1")}
    store = opened(name, tmp_path)
    store.replace([], list(held.values()))
    store.note("embedder", "some")
    check(store, held)
    store.close()
    store = opened(name, tmp_path)
    assert store.notes()["embedder"] == "some"
    check(store, held)
    store.replace(["f0"], [])
    store.close()
    store = opened(name, tmp_path)  # the file of vectors is older than the database: it must not be believed
    check(store, {"f1": held["f1"]})
    store.close()


def test_a_failed_change_changes_nothing(tmp_path: Path) -> None:
    store = opened("folder", tmp_path)
    held = {"f0": entry("f0", 1)}
    store.replace([], list(held.values()))
    good, bad = entry("f1", 1), entry("f2", 1)
    broken = Entry("f2", "d", bad.documents, bad.chunks, bad.vectors[:1])
    with pytest.raises(ValueError):
        store.replace(["f0"], [good, broken])
    check(store, held)
    store.close()


def test_lost_and_spoiled_files(tmp_path: Path) -> None:
    store = opened("folder", tmp_path)
    held = {"f0": entry("f0", 1)}
    store.replace([], list(held.values()))
    check(store, held)
    store.close()
    (tmp_path / "library" / "vectors.faiss").write_bytes(b"spoiled")
    store = opened("folder", tmp_path)
    check(store, held)
    store.close()
    (tmp_path / "library" / "library.sqlite").write_bytes(b"spoiled" * 1000)
    with pytest.raises(DougongError, match="cannot be used"):
        opened("folder", tmp_path)


def test_an_index_of_another_form_is_made_anew(tmp_path: Path) -> None:
    store = opened("folder", tmp_path)
    held = {"f0": entry("f0", 1)}
    store.replace([], list(held.values()))
    check(store, held)
    store.close()
    note = tmp_path / "library" / "vectors.json"
    now = json.loads(note.read_text())
    note.write_text(json.dumps({key: value for key, value in now.items() if key != "form"}))
    before = (tmp_path / "library" / "vectors.faiss").stat().st_mtime_ns
    store = opened("folder", tmp_path)
    check(store, held)
    store.close()
    assert json.loads(note.read_text()) == now
    assert (tmp_path / "library" / "vectors.faiss").stat().st_mtime_ns > before


def test_uris_and_widths(tmp_path: Path) -> None:
    with pytest.raises(DougongError, match="unknown scheme 'qdrant'"):
        open_store("qdrant:there", WIDTH)
    (tmp_path / "file").write_text("x")
    with pytest.raises(DougongError, match="is a file"):
        open_store(str(tmp_path / "file"), WIDTH)
    opened("folder", tmp_path).close()
    with pytest.raises(DougongError, match="width 8"):
        open_store(str(tmp_path / "library"), 9)


def test_the_kind_of_index_is_noted_and_few_are_compared_with_all(tmp_path: Path, monkeypatch) -> None:
    """As asked for, also when opened again; by itself exact until there are MANY, then a graph, and back."""
    monkeypatch.setattr("dougong.rag.vectors.MANY", 30)
    place, draw = str(tmp_path / "library"), np.random.default_rng(0)

    def add(store: SqliteStore, first: int, count: int) -> None:
        rows = unit(draw.normal(size=(count, 8)).astype(np.float32))
        for number, row in enumerate(rows, start=first):
            document = Document(f"text {number}", f"d{number}")
            chunk = Chunk(document.text, document.source, 0, len(document.text))
            store.replace([], [Entry(document.source, "x", [document], [chunk], row[None])])

    def kept(store: SqliteStore) -> str:
        every = list(store.chunks())
        for each, vector in zip(every, store.vectors(every), strict=True):
            assert store.nearest(vector, 1)[0][0] == each
        assert store._index is not None
        return store._index.kind

    store = SqliteStore(place, 8)
    add(store, 0, 29)
    assert kept(store) == "exact"
    add(store, 29, 1)
    assert kept(store) == "hnsw"
    store.replace(["d0"], [])
    assert kept(store) == "exact"
    store.close()
    for asked, told in (("hnsw", "hnsw"), (None, "hnsw"), ("exact", "exact"), (None, "exact"), ("auto", "exact")):
        store = SqliteStore(place, 8, asked)  # pyright: ignore[reportArgumentType]
        assert kept(store) == told
        store.close()
    with pytest.raises(DougongError, match="makes its own index"):
        open_store("milvus:x.db", 8, "hnsw")
