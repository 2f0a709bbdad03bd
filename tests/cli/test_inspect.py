"""`dougong tokenizer`, `plan` and `show`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dougong.cli.folders import amount, count, duration, size


@pytest.fixture
def tokenizer(dougong: Callable, tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("the cat sat on the mat, the cat sat\n" * 40 + "斗拱", encoding="utf-8")
    result = dougong("tokenizer", "train", tmp_path / "text.txt", "--vocab", 280, "--out", tmp_path / "tok")
    assert result.status == 0
    assert "bytes a token" in result.out
    return tmp_path / "tok"


def test_tokenizer_there_and_back(dougong: Callable, tokenizer: Path) -> None:
    text = "the cat 斗拱 <|im_end|>"
    ids = dougong("tokenizer", "encode", tokenizer, text).out
    assert all(part.isdecimal() for part in ids.split())
    assert dougong("tokenizer", "decode", tokenizer, *ids.split()).out == text + "\n"
    assert dougong("tokenizer", "decode", tokenizer, "-", stdin=ids).out == text + "\n"
    assert dougong("tokenizer", "encode", tokenizer, stdin=text + "\n").out == ids
    special = dougong("tokenizer", "encode", tokenizer, "<|im_end|>", "--specials").out
    assert len(special.split()) == 1
    assert dougong("tokenizer", "decode", tokenizer, special.strip(), "--specials").out == "<|im_end|>\n"


def test_tokenizer_shown(dougong: Callable, tokenizer: Path) -> None:
    facts = json.loads(dougong("tokenizer", "show", tokenizer, "--text", "the cat", "--json").out)
    assert facts["size"] <= 280
    assert "".join(piece for _, piece in facts["pieces"]) == "the cat"
    assert "eos_token" in dougong("tokenizer", "show", tokenizer, "--text", "the cat").out


def test_tokenizer_of_a_run(dougong: Callable, tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    tokenizer.rename(tmp_path / "run" / "tokenizer")
    assert dougong("tokenizer", "show", tmp_path / "run").status == 0


@pytest.mark.parametrize(
    ("args", "status", "told"),
    [
        (["train"], 2, "give files or folders of text, or --stdlib"),
        (["train", "/nonexistent"], 1, "/nonexistent does not exist"),
        (["encode", "/nonexistent", "x"], 1, "/nonexistent does not exist"),
        (["trane"], 2, "did you mean 'train'?"),
    ],
)
def test_tokenizer_errors(dougong: Callable, args: list[str], status: int, told: str) -> None:
    result = dougong("tokenizer", *args)
    assert result.status == status
    assert told in result.err
    assert result.err.count("\n") == 1


def test_decode_wants_ids(dougong: Callable, tokenizer: Path) -> None:
    assert "'x' is not a token id" in dougong("tokenizer", "decode", tokenizer, "5", "x").err
    assert "outside the vocabulary" in dougong("tokenizer", "decode", tokenizer, "99999").err


def test_plan_of_sizes(dougong: Callable) -> None:
    from dougong.model import decoder_spec

    sizes = ["--width", 64, "--depth", 3, "--heads", 4, "--vocab", 500, "--context", 128]
    bill = json.loads(dougong("plan", *sizes, "--json").out)
    assert bill["parameters"] == decoder_spec(500, 64, 3, 4, 128).parameters()
    table = dougong("plan", *sizes, "--device", "h100").out
    assert f"{bill['parameters']:,}" in table
    assert "kg CO2e" in table


def test_plan_of_a_folder_and_a_config(dougong: Callable, model: Path) -> None:
    from dougong.hub import load

    expected = load(model).spec.parameters()
    for path in (model, model / "config.json"):
        assert json.loads(dougong("plan", path, "--json").out)["parameters"] == expected


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["/nonexistent"], "/nonexistent does not exist"),
        (["--device", "h10"], "did you mean 'h100'?"),
        (["--width", "-4"], "--width is -4; expected at least 1"),
        (["--heads", "7"], "over 7 heads"),
        (["--batch", "0"], "batch 0"),
        (["--region", "mars", "--device", "h100"], "mars"),
    ],
)
def test_plan_errors(dougong: Callable, args: list[str], told: str) -> None:
    result = dougong("plan", *args)
    assert result.status == 1
    assert told in result.err
    assert result.err.count("\n") == 1


def test_plan_takes_a_path_or_sizes(dougong: Callable, model: Path) -> None:
    assert "leave out --width" in dougong("plan", model, "--width", 64).err


def test_show_a_model(dougong: Callable, model: Path) -> None:
    found = json.loads(dougong("show", model, "--json").out)["model"]
    assert found["weights"]["layers.0.mixer.q.weight"] == [32, 32]
    assert found["tokenizer"]["chat_template"] is True
    text = dougong("show", model).out
    assert "layers.0.mixer.q.weight" in text
    assert "model.safetensors" in text


def test_show_a_run(dougong: Callable, model: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("seed: 3\ntraining:\n  steps: 10\n", encoding="utf-8")
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "held_out": 2.5}\n{"step": 2, "loss": 3.25}\n', encoding="utf-8"
    )
    found = json.loads(dougong("show", tmp_path, "--json").out)
    assert found["recipe"]["training"] == {"steps": 10}
    assert found["last"] == {"step": 2, "held_out": 2.5, "loss": 3.25}
    assert "no model yet" in dougong("show", tmp_path).out
    assert "not finished" in dougong("show", tmp_path).out
    (tmp_path / "model").symlink_to(model)
    assert "layers.0.mixer.q.weight" in dougong("show", tmp_path).out


def test_show_nothing(dougong: Callable, tmp_path: Path) -> None:
    assert dougong("show", tmp_path).status == 1
    assert dougong("show", tmp_path / "none").err == f"error: {tmp_path / 'none'} does not exist\n"


def test_numbers_as_people_say_them() -> None:
    assert [count(12), count(1234), count(124_439_808), count(6.7e9)] == ["12", "1,234", "124.4 M", "6.7 G"]
    assert [size(5), size(1.21e9), size(16384)] == ["5 B", "1.21 GB", "16.38 kB"]
    assert [duration(0.5), duration(75), duration(3 * 86400 + 4 * 3600)] == ["0.5 s", "1 min 15 s", "3 d 4 h"]
    assert [amount(67003.2), amount(8.123)] == ["67,003", "8.12"]
