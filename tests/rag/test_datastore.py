"""The datastore: nearest places by the formula, rows that lose no token, files that are whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from dougong.base import DougongError
from dougong.engine import Engine
from dougong.rag.datastore import FEW, Datastore, Kind, rows_of
from tests.engine.standin import small


def filled(places: int, kind: Kind = "exact", seed: int = 0) -> Datastore:
    """Places in clumps, as hidden states are, about a quarter of which come twice."""
    draw = np.random.default_rng(seed)
    middles = draw.normal(size=(max(1, places // 40), 8))
    keys = middles[draw.integers(0, len(middles), places)] + 0.2 * draw.normal(size=(places, 8))
    keys[: places // 8] = keys[places - places // 8 :]
    datastore = Datastore(8, 50, kind)
    datastore.add(keys.astype(np.float32), draw.integers(0, 50, places))
    return datastore


@given(st.integers(1, 60), st.integers(1, 70), st.integers(1, 30), st.integers(0, 99))
def test_the_nearest_of_all(places: int, k: int, queries: int, seed: int) -> None:
    datastore = filled(places, seed=seed)
    asked = np.random.default_rng(seed + 1).normal(size=(queries, 8)).astype(np.float32)
    far, values = datastore.search(asked, k)
    wanted = np.square(datastore.keys[None] - asked[:, None]).sum(-1)
    assert far.shape == values.shape == (queries, min(k, places))
    np.testing.assert_allclose(far, np.sort(wanted, 1)[:, :k], rtol=1e-4, atol=1e-5)
    for row in range(queries):
        alone = datastore.search(asked[row : row + 1], k)
        np.testing.assert_array_equal(alone[0][0], far[row])  # to the bit: a batch changes nothing
        pairs = {(float(d), int(v)) for d, v in zip(wanted[row], datastore.values, strict=True)}
        for distance, value in zip(far[row], values[row], strict=True):
            assert any(v == value and d == pytest.approx(float(distance), rel=1e-4, abs=1e-5) for d, v in pairs)


def test_cells_find_nearly_all_with_exact_distances() -> None:
    exact, cells = filled(FEW + 1000), filled(FEW + 1000, "ivf")
    asked = exact.keys[::100] + 0.05
    far, _ = exact.search(asked, 10)
    near, values = cells.search(asked, 10)
    found = np.isclose(near[:, :, None], far[:, None], rtol=1e-5).any(-1)
    assert found.mean() > 0.9
    assert (np.diff(near, axis=1) >= 0).all() and (near[:, 0] <= far[:, 0] + 1e-4).mean() > 0.9
    stored = {(key.tobytes(), int(value)) for key, value in zip(exact.keys, exact.values, strict=True)}
    for query, distances, own in zip(asked[:5], near, values, strict=False):
        every = np.square(exact.keys - query).sum(-1)
        for distance, value in zip(distances, own, strict=True):
            assert any((exact.keys[at].tobytes(), int(value)) in stored for at in np.nonzero(every == distance)[0])


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_what_is_saved_is_found_again_and_grows(kind: Kind, tmp_path: Path) -> None:
    datastore, path = filled(FEW + 10, kind), tmp_path / "deep" / "store.safetensors"
    datastore.save(path)
    again = Datastore.load(path)
    assert (again.width, again.vocab, again.kind, len(again)) == (8, 50, kind, FEW + 10)
    asked = datastore.keys[:20] + 0.1
    for one, other in zip(datastore.search(asked, 7), again.search(asked, 7), strict=True):
        np.testing.assert_array_equal(one, other)
    again.add(asked[:1], np.array([49]))
    far, values = again.search(asked[:1], 1)
    assert far[0, 0] == 0 and values[0, 0] == 49
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_save_that_breaks_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store"
    filled(20).save(path)
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        filled(30).save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@given(st.lists(st.integers(0, 9), max_size=40), st.integers(2, 12))
def test_rows_predict_every_token_but_the_first_once(text: list[int], length: int) -> None:
    rows = rows_of(text, length)
    assert all(2 <= len(row) <= length for row in rows)
    assert [token for row in rows for token in row[1:]] == text[1:]
    if rows:
        assert [token for row in rows for token in row[:-1]] == text[:-1]


def test_places_of_texts_are_the_engine_states_and_what_follows() -> None:
    lm = small(context=16)
    engine, told = Engine(lm), []
    texts = [list(b"some text that is longer than the context"), list(b"x"), list(b"short")]
    datastore = Datastore(lm.spec.width, lm.spec.vocab)
    datastore.add_texts(engine, texts, progress=lambda done, total: told.append((done, total)))
    rows = [*rows_of(texts[0], 16), texts[2]]
    assert told == [(len(rows), len(rows))]
    assert datastore.values.tolist() == [*texts[0][1:], *texts[2][1:]]
    states = np.concatenate([each[:-1].numpy() for each in engine.hidden_states(rows)])
    np.testing.assert_allclose(datastore.keys, states, atol=1e-4)


def test_what_cannot_be_is_named() -> None:
    datastore, good = Datastore(4, 10), np.zeros((2, 4), np.float32)
    for width, vocab in ((0, 5), (5, 0)):
        with pytest.raises(DougongError, match="expected at least 1"):
            Datastore(width, vocab)
    with pytest.raises(DougongError, match=r"keys are \(2, 3\).*expected \(places, 4\)"):
        datastore.add(good[:, :3], np.array([1, 2]))
    with pytest.raises(DougongError, match=r"queries are \(2, 3\); expected \(places, 4\)"):
        datastore.search(good[:, :3], 1)
    with pytest.raises(DougongError, match="not finite"):
        datastore.add(good + np.inf, np.array([1, 2]))
    with pytest.raises(DougongError, match="from 1 to 10; the vocabulary has 10"):
        datastore.add(good, np.array([1, 10]))
    assert len(datastore) == 0
    with pytest.raises(DougongError, match="the model 32 and"):
        datastore.add_texts(Engine(small()), [[1, 2]])
    with pytest.raises(DougongError, match="length is 1"):
        rows_of([1, 2, 3], 1)


def test_a_kind_that_is_not_known(unchecked: None) -> None:
    with pytest.raises(DougongError, match="kind is 'tree'; expected 'exact' or 'ivf'"):
        Datastore(4, 10, "tree")  # pyright: ignore[reportArgumentType]
    with pytest.raises(DougongError, match=r"values \(3,\)"):
        Datastore(4, 10).add(np.zeros((2, 4), np.float32), np.array([1, 2, 3]))


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with pytest.raises(DougongError, match="there is no file"):
        Datastore.load(path)
    filled(20).save(path)
    whole = path.read_bytes()
    for broken in (b"", b"text", whole[:-7], whole[:40]):
        path.write_bytes(broken)
        with pytest.raises(DougongError, match="store cannot be read"):
            Datastore.load(path)
    path.write_bytes(whole.replace(b"dougong datastore 1", b"dougong datastore 9"))
    with pytest.raises(DougongError, match="is no datastore"):
        Datastore.load(path)
    path.write_bytes(whole.replace(b'"vocab":"50"', b'"vocab":"10"'))
    with pytest.raises(DougongError, match="is damaged: values are ids"):
        Datastore.load(path)
    safetensors.numpy.save_file({"keys": np.zeros(3), "values": np.zeros(3, int)}, path, about(vocab="10"))
    with pytest.raises(DougongError, match="is damaged: width is 0"):
        Datastore.load(path)


@pytest.mark.parametrize("cells", [np.zeros(9, np.uint8), None])
def test_cells_that_are_none_of_these_keys_are_made_anew(cells: np.ndarray | None, tmp_path: Path) -> None:
    datastore, other, path = filled(FEW + 10, "ivf"), filled(FEW + 40, "ivf", seed=1), tmp_path / "store"
    other.save(path)
    if cells is None:
        cells = safetensors.numpy.load_file(path)["cells"]
    tensors = {"keys": datastore.keys, "values": datastore.values, "cells": cells}
    safetensors.numpy.save_file(tensors, path, about(vocab="50", kind="ivf"))
    asked = datastore.keys[:20] + 0.1
    for one, its in zip(Datastore.load(path).search(asked, 7), datastore.search(asked, 7), strict=True):
        np.testing.assert_array_equal(one, its)


def about(**further: str) -> dict[str, str]:
    return {"format": "dougong datastore 1", **further}
