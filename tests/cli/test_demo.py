"""The main job from end to end on a small text: its stages, its files, and that no kill changes where it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dougong.base import DougongError
from dougong.cli.demo_print import verdict
from dougong.cli.demo_stages import TARGETS, own_pairs
from dougong.data import generate

SMALL = (
    *("--text.tokenizer.vocab", "400", "--text.model.width", "32", "--text.model.depth", "2"),
    *("--text.model.heads", "2", "--text.model.ffn", "64", "--text.model.context", "256", "--text.length", "64"),
    *("--text.training.steps", "30", "--text.training.checkpoint", "5"),
    *("--chat.training.steps", "20", "--chat.training.checkpoint", "5", "--chat.length", "256"),
    *("--prefer.training.steps", "6", "--prefer.training.checkpoint", "2", "--prefer.length", "256"),
    *("--rl.training.steps", "4", "--rl.training.checkpoint", "1", "--rl.rollout.prompts", "4"),
    *("--rl.rollout.samples", "4", "--rl.rollout.max-tokens", "4"),
    *("--problems", "60", "--errands", "8", "--asked", "4", "--tasks", "12", "--unseen", "3", "--aimed", "5"),
)
# Which precision is faster is measured, and comes out one way or the other on a machine with other work.
FLOATS = [each for stage in ("text", "chat", "prefer", "rl") for each in (f"--{stage}.training.precision", "float32")]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    import asyncio.base_events
    import json.decoder
    import textwrap

    for module in (asyncio.base_events, json.decoder, textwrap):
        assert module.__file__ is not None
        (folder / f"{module.__name__}.py").write_text(Path(module.__file__).read_text(encoding="utf-8"))
    return folder


def arguments(run: Path, corpus: Path) -> list[str]:
    return ["demo", "--run", str(run), "--text.data.path", str(corpus), *SMALL]


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def test_the_demo_from_text_to_report(dougong, tmp_path, corpus):
    done = dougong(*arguments(tmp_path / "run", corpus))
    assert done.status == 0, done.err
    for name in ("unigram", "xz -9", "this model", "arithmetic", "GRPO", "calculator", "dougong chat", "dougong agent"):
        assert name in done.out
    run = tmp_path / "run"
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Attention" in page and "注意力" in page and "http://" not in page.replace("http://www.w3.org", "")
    result = json.loads((run / "result.json").read_text())
    assert list(result["accuracy"]) == ["before", "sft", "prefer", "rl"]
    for rows in result["accuracy"].values():
        assert rows[-1]["skill"] == "all" and rows[-1]["total"] == 18
    assert list(result["raised"]) == ["sft", "prefer", "rl"]
    assert result["raised"]["rl"]["skills"] == ["arithmetic", "lists"]
    assert result["raised"]["rl"]["target"]["total"] == 10 and result["raised"]["rl"]["all"]["total"] == 18
    assert result["raised"]["prefer"]["drawn"]["total"] == 10 and result["raised"]["rl"]["drawn"]["total"] == 10
    for row in result["raised"].values():  # the page says plainly of each whether it was raised
        assert verdict(row["target"])[0] in page and verdict(row["target"])[1] in page
    assert {"sums", "texts"} <= {row["name"] for row in result["tools"]}
    assert all(row["with"]["total"] == row["alone"]["total"] <= 3 for row in result["tools"])
    for part in ("tokenizer.json", "config.json", "model.safetensors"):
        assert (run / "model" / part).is_file()
    # Run again: the result is shown once more; with --resume nothing is done twice and nothing changes.
    before, written = weights(run), (run / "result.json").stat().st_mtime_ns
    again = dougong(*arguments(run, corpus))
    assert again.status == 0 and "this model" in again.out and "to start anew" in again.out
    assert (run / "result.json").stat().st_mtime_ns == written
    again = dougong(*arguments(run, corpus), "--resume")
    assert again.status == 0 and weights(run) == before
    # What is not whole, or another recipe's, is not taken for it.
    refused = dougong(*arguments(run, corpus), "--seed", "1")
    assert refused.status == 1 and "--resume" in refused.err
    (run / "report.html").unlink()
    unfinished = dougong(*arguments(run, corpus))
    assert unfinished.status == 1 and "--resume" in unfinished.err
    other = dougong(*arguments(run, corpus), "--resume", "--seed", "1")
    assert other.status == 1 and "seed was 0, now 1" in other.err
    answer = dougong("generate", run, "def ", "--max-tokens", "5", "--temperature", "0")
    assert answer.status == 0 and answer.out.startswith("def ")
    talk = dougong("chat", run, "--max-tokens", "5", stdin="Sort: 3 1 2\n/exit\n")
    assert talk.status == 0


def test_preferences_are_made_where_the_model_is_sometimes_right(tmp_path):
    problems = [each for skill in TARGETS["prefer"] for each in generate(skill, 1, 2)]
    kept = tmp_path / "own.json"

    def pairs(*told: list[str]):
        kept.write_text(json.dumps(list(told)))
        return own_pairs(tmp_path / "no model is asked", kept, 2, 1)

    right = [each.answer for each in problems]
    mixed = ["wrong", right[0], "wrong", "other"]
    never, always = ["wrong"] * 4, [right[2]] * 4
    found = pairs(mixed, never, always, [right[3], "off", "off", right[3]])
    assert [(each.chosen[0]["content"], each.rejected[0]["content"]) for each in found] == [
        (right[0], "wrong"), (right[0], "other"), (right[3], "off"),
    ]  # fmt: skip
    assert found[0].prompt == problems[0].messages
    found = pairs(never, never, never, ["x", "y", "x", "y"])  # a model that can do nothing yet: all count
    assert len(found) == 5
    with pytest.raises(DougongError, match="got none of 4 problems wrong"):
        pairs(*([answer] * 4 for answer in right))


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.01, 0.05, "raised"), (-0.05, -0.01, "lowered"), (-0.01, 0.05, "no difference"), (0.0, 0.1, "no difference")],
)
def test_a_stage_raised_something_only_where_the_whole_interval_says_so(low, high, said):
    assert verdict({"low": low, "high": high})[0].startswith(said)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (("--text.model.widht", "3"), "widht"),
        (("--text.training.steps", "0"), "steps is 0"),
        (("--text.training.steps", "many"), "many"),
        (("--text.data.path", "nowhere.txt"), "nowhere.txt"),
        (("--text.model.width", "50", "--text.model.heads", "3"), "width 50 over 3 heads"),
        (("--problems", "0"), "problems is 0"),
        (("--chat.length", "1024"), "chat.length is 1024"),
    ],
)
def test_wrong_settings_are_refused_before_work(dougong, tmp_path, wrong, named):
    done = dougong("demo", "--run", tmp_path / "run", *wrong)
    assert done.status in (1, 2)
    assert named in done.err and done.err.count("\n") <= 3, done.err


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_in_the_same_weights(tmp_path, corpus):
    def start(run: Path) -> subprocess.Popen:
        command = [sys.executable, "-m", "dougong.cli", *arguments(run, corpus), "--resume", *FLOATS]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    began = time.monotonic()
    assert start(tmp_path / "whole").wait() == 0
    whole = time.monotonic() - began
    run, kills = tmp_path / "killed", 0
    for share in (0.3, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7):
        process = start(run)
        try:
            process.wait(timeout=whole * share)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL if kills % 2 == 0 else signal.SIGTERM)
            kills += 1
            process.wait()
    assert kills >= 2
    assert start(run).wait() == 0
    assert weights(run) == weights(tmp_path / "whole")
    records = [json.loads(line)["step"] for line in (run / "text" / "metrics.jsonl").read_text().splitlines()]
    assert records == list(range(30))
