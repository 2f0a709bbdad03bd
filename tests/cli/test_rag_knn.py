"""`dougong rag knn` and `dougong generate --datastore`: places kept, added to, told of, looked up; mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dougong.hub import LanguageModel, save
from dougong.model import decoder_spec
from dougong.tokenizer import byte_tokenizer
from tests.engine.kinds import moved

TEXT = "one for the roof, two for the bracket, three for the beam"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not as it is initialised: its states would then know the last token alone."""
    tokenizer = byte_tokenizer()
    spec = decoder_spec(tokenizer.vocab_size, width=64, depth=2, heads=4, context=128, tied=False)
    folder = tmp_path_factory.mktemp("models") / "moved"
    save(LanguageModel(moved(spec), tokenizer), folder)
    return folder


@pytest.fixture
def places(dougong: Callable, model: Path, tmp_path: Path) -> Path:
    pytest.importorskip("faiss")
    (tmp_path / "text.txt").write_text(TEXT)
    kept = tmp_path / "kept"
    result = dougong("rag", "knn", model, "--text", tmp_path / "text.txt", "--out", kept)
    assert result.status == 0 and result.out == f"{len(TEXT)} places, in {kept}\n"
    return kept


def test_places_are_kept_added_to_and_lower_the_perplexity(dougong: Callable, model: Path, places: Path) -> None:
    text = places.parent / "text.txt"
    more = dougong("rag", "knn", model, "--datastore", places, "--text", text, "--out", places, "--json")
    assert json.loads(more.out)["places"] == 2 * len(TEXT)
    args = ("rag", "knn", model, "--datastore", places, "--held-out", text, "--lam", 0.9, "--neighbours", 1)
    told = json.loads(dougong(*args, "--json").out)
    assert told["tokens"] == len(TEXT)
    assert told["perplexity"] < 1.5 < told["perplexity_alone"]
    assert f"{told['perplexity']:.2f} with lam 0.9 and 1 neighbours" in dougong(*args).out


def test_what_was_kept_is_said_again(dougong: Callable, model: Path, places: Path) -> None:
    args = ("generate", model, TEXT[:20], "--temperature", 0, "--max-tokens", len(TEXT) - 20, "--no-stream")
    said = dougong(*args, "--datastore", places, "--lam", 1, "--neighbours", 1)
    assert said.out == TEXT + "\n"
    assert dougong(*args).out != said.out
    assert dougong(*args, "--datastore", places, "--lam", 0).out == dougong(*args).out


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ((), "there is nothing to look up"),
        (("--text", "text.txt"), "there is nothing to do with the places"),
        (("--datastore", "text.txt", "--out", "x"), "text.txt cannot be read as a datastore"),
        (("--datastore", "gone", "--out", "x"), "there is no file"),
        (("--datastore", "kept", "--held-out", "text.txt", "--lam", 2), "lam is 2.0; expected 0"),
        (("--datastore", "kept", "--held-out", "text.txt", "--length", 1), "length is 1; a row needs at least 2"),
        (("--datastore", "kept", "--held-out", "text.txt", "--length", -1), "--length is -1"),
    ],
)
def test_mistakes(dougong: Callable, model: Path, places: Path, args: tuple, error: str) -> None:
    named = [places.parent / each if each in ("text.txt", "gone", "kept", "x") else each for each in args]
    result = dougong("rag", "knn", model, *named)
    assert result.status != 0 and error in result.err and "Traceback" not in result.err
