"""`dougong generate`: prints the prompt and what follows."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

DATA = os.environ.get("DOUGONG_DATA")
STORIES = Path(DATA or "") / "weights" / "stories260K"


@pytest.mark.skipif(not DATA or not STORIES.is_dir(), reason="DOUGONG_DATA does not name the data folder")
@pytest.mark.parametrize("flags", [[], ["--no-stream"]])
def test_the_published_text(dougong: Callable, flags: list[str]) -> None:
    published = json.loads((STORIES / "expected_outputs.json").read_text(encoding="utf-8"))[0]["expected"]
    steps = len(json.loads((STORIES / "reference_greedy_ids.json").read_text(encoding="utf-8"))["greedy_ids_from_BOS"])
    result = dougong("generate", STORIES / "stories260K.bin", "", "--temperature", 0, "--max-tokens", steps - 1, *flags)
    assert result == (0, published + "\n", "")


def test_streamed_or_not_it_is_the_same(dougong: Callable, model: Path) -> None:
    args = ["generate", model, "hello", "--max-tokens", 12, "--seed", 3]
    streamed, whole = dougong(*args), dougong(*args, "--no-stream")
    assert streamed == whole
    assert streamed.status == 0
    assert streamed.out.startswith("hello")


def test_json_tells_everything(dougong: Callable, model: Path) -> None:
    result = dougong("generate", model, "hello", "--max-tokens", 5, "--temperature", 0, "--json")
    record = json.loads(result.out)
    assert record["prompt"] == "hello"
    assert record["prompt_tokens"][-5:] == list(b"hello")
    assert len(record["tokens"]) == len(record["logprobs"]) == 5
    assert record["finish_reason"] == "length"
    plain = dougong("generate", model, "hello", "--max-tokens", 5, "--temperature", 0)
    assert plain.out == f"hello{record['text']}\n"


@pytest.mark.parametrize("given", [["-"], []])
def test_prompts_from_standard_input(dougong: Callable, model: Path, given: list[str]) -> None:
    flags = ["--max-tokens", 4, "--temperature", 0]
    piped = dougong("generate", model, *given, *flags, stdin="斗拱\n")
    assert piped == dougong("generate", model, "斗拱", *flags)


def test_stop_strings_and_filters(dougong: Callable, model: Path) -> None:
    flags = ["generate", model, "hello", "--max-tokens", 20, "--temperature", 0, "--json"]
    free = json.loads(dougong(*flags).out)["text"]
    cut = json.loads(dougong(*flags, "--stop", "no such text", "--stop", free[3]).out)
    assert cut["text"] == free[: free.index(free[3])]
    assert cut["finish_reason"] == "stop"
    sampled = dougong("generate", model, "hello", "--max-tokens", 3, "--top-k", 1, "--top-p", 0.5, "--min-p", 0.1)
    assert sampled.out == dougong("generate", model, "hello", "--max-tokens", 3, "--temperature", 0).out


def test_the_models_own_settings_come_before_ours(model: Path) -> None:
    from dougong.cli.options import SamplingOptions
    from dougong.hub import load

    lm = load(model)
    assert SamplingOptions().sampling(lm).temperature == 0.8
    lm.generation |= {"temperature": 0.3, "top_k": 20}
    assert SamplingOptions().sampling(lm).temperature == 0.3
    assert SamplingOptions().sampling(lm).top_k == 20
    assert SamplingOptions(temperature=0.0).sampling(lm).greedy


@pytest.mark.parametrize(
    ("args", "status", "told"),
    [
        (["--max-tokens", "abc"], 2, "--max-tokens: invalid literal"),
        (["--max-token", "3"], 2, "--max-tokens"),
        (["--top-p", "3"], 1, "top_p is 3.0; expected"),
        (["--max-tokens", "0"], 1, "max_tokens is 0; expected"),
        (["--device", "no-such"], 1, "the device 'no-such' cannot be used"),
        (["--dtype", "int3"], 2, "int3"),
        (["more"], 2, "Unrecognized options: more"),
    ],
)
def test_wrong_options_are_one_line(dougong: Callable, model: Path, args: list[str], status: int, told: str) -> None:
    result = dougong("generate", model, "hello", *args)
    assert (result.status, result.out) == (status, "")
    assert result.err.startswith("error: ")
    assert told in result.err
    assert result.err.count("\n") == 1


def test_wrong_inputs_are_one_line(dougong: Callable, model: Path, tmp_path: Path) -> None:
    for args, stdin, told in [
        (["generate", tmp_path, "x"], "", "config.json"),
        (["generate", tmp_path / "none", "x"], "", "none"),
        (["generate", model, "x" * 200], "", "tokens, but the model's context is 128"),
        (["generate", model], b"\xff\xfe", "not UTF-8"),
        (["generate"], "", "PATH"),
    ]:
        result = dougong(*args, stdin=stdin)
        assert result.status in (1, 2)
        assert result.err.startswith("error: ")
        assert told in result.err
        assert result.err.count("\n") == 1
