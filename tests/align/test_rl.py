"""Reinforcement learning from end to end: rewards rise, runs resume bit for bit, and nothing that goes wrong is NaN."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dougong
from dougong.align import rl as job
from dougong.align import rollout
from dougong.align.heads import with_task
from dougong.align.kl import Kl
from dougong.align.prefer import prefer
from dougong.align.preferences import Pair
from dougong.align.recipe import Prefer, PreferenceData
from dougong.align.rewards import Sample, Task
from dougong.align.rewards.choose import Rewards, Scoring
from dougong.align.rl import objective, rl
from dougong.align.rl_recipe import METHODS, PolicyLoss, Rl, TaskData
from dougong.align.rl_recipe import Rollout as How
from dougong.base import DougongError
from dougong.cli import main
from dougong.data.batch import IGNORED
from dougong.hub import load
from dougong.parts.heads import reward
from dougong.train import Optimizer, Schedule, Stopped, Training
from dougong.train.monitor import read_metrics
from dougong.tune import Tune
from tests.align.models import saved, says, talker, user, weights

pytestmark = pytest.mark.usefixtures("unchecked")

TASKS = [Task((user(f"{index}?"),), answer=str(index % 10), solution=str(index % 10), source=f"t:{index}")
         for index in range(40)]  # fmt: skip


def letters(samples: list[Sample]) -> list[float]:
    """The share of an answer's characters that are early letters: something that a random model can climb."""
    return [sum(c in "abcdefgh" for c in each.text) / max(1, len(each.text)) for each in samples]


def recipe(folder: Path, method: str = "grpo", steps: int = 20, rate: float = 1e-2, **rest) -> Rl:
    model = folder / "start"
    if not model.exists():
        saved(model, context=64)
    training = Training(steps, optimizer=Optimizer(rate=rate, weight_decay=0.0), schedule=Schedule("constant", 0),
                        checkpoint=rest.pop("checkpoint", 0), accumulate=rest.pop("accumulate", 1))  # fmt: skip
    how = rest.pop("rollout", How(prompts=4, samples=8, max_tokens=6))
    data = TaskData(held_out=rest.pop("held_out", 0.2))
    return Rl(model, folder / "run", data, method, training=training, rollout=how, **rest)


def rewards_of(run: Path) -> list[float]:
    return [record["reward"] for record in read_metrics(run / "metrics.jsonl")]


@pytest.mark.parametrize("method", [name for name in METHODS if name != "reft"])  # reft: see the warm-up below
def test_every_method_raises_the_reward(tmp_path, method):
    how = How(prompts=3, samples=8, max_tokens=6, epochs=2 if method == "ppo" else 1)
    figures = rl(recipe(tmp_path, method, 12 * how.epochs, rate=0.02, rollout=how), TASKS, letters, quiet=True)
    seen = rewards_of(tmp_path / "run")
    assert sum(seen[-3:]) / 3 > sum(seen[:3]) / 3 + 0.25
    assert figures["held_out_reward"] > figures["held_out_reward_before"] + 0.2
    record = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    assert all(math.isfinite(value) for value in record.values())
    assert ("kl" in record or "kl_answer" in record) == (METHODS[method].kl > 0)
    shown = (tmp_path / "run" / "answers.jsonl").read_text().splitlines()
    assert len(shown) == len(seen) / how.epochs and json.loads(shown[0])["answers"]


def test_a_run_clips_the_ratio_that_its_recipe_asks_for(tmp_path):
    """Of two updates from one rollout the second differs by what the ratio is of; RLOO's own is of the answer."""
    made = {}
    for level in ("token", "sequence", "answer"):
        how = recipe(tmp_path / level, "rloo", 2, rate=0.02, rollout=How(prompts=3, samples=4, max_tokens=6, epochs=2),
                     loss=PolicyLoss(level=level))  # fmt: skip
        rl(how, TASKS, letters, quiet=True)
        made[level] = weights(load(how.run / "model").model)
    usual = recipe(tmp_path / "usual", "rloo", 2, rate=0.02, loss=PolicyLoss(),
                   rollout=How(prompts=3, samples=4, max_tokens=6, epochs=2))  # fmt: skip
    rl(usual, TASKS, letters, quiet=True)
    made["usual"] = weights(load(usual.run / "model").model)

    def equal(one: str, other: str) -> bool:
        return all(torch.equal(made[one][name], made[other][name]) for name in made[one])

    assert equal("usual", "answer")
    assert not equal("token", "sequence") and not equal("token", "answer") and not equal("sequence", "answer")


def rolled(how: Rl, seed: int = 3, score=letters):
    lm = talker(context=64, seed=seed)
    answered, cursor = rollout.answer_groups(
        lm, rollout.prompts_of(lm, TASKS, 6), how, Scoring(how.reward, 6, score), 0, 0
    )
    reference = talker(context=64, seed=seed + 1).model
    value = job._value_model(how, lm) if how.rules.advantages == "value" else None
    if value is not None:
        with torch.no_grad():
            value.task.output.storage.weight.normal_(generator=torch.Generator().manual_seed(0))
    made = rollout.experience(how, answered, lm, reference, value, 0, cursor, 0.05)
    return lm, value, answered, made


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("parts", [5, 8])
def test_an_update_is_the_same_however_it_is_cut(tmp_path, method, parts):
    """Accumulation 1 x 8 = 8 x 1 for every aggregation, with answers of different lengths."""
    how = recipe(tmp_path, method, rollout=How(prompts=2, samples=4, max_tokens=6, epochs=2))
    lm, value, _, made = rolled(how)
    names = rollout.figure_names(True)
    gradients = []
    for cut in (1, parts):
        lm.model.zero_grad()
        losses = [objective(how, value, names)(lm.model, micro) for micro in made.batch.micro(cut)]
        weight = sum(loss.weight for loss in losses)
        (sum(loss.sum for loss in losses) / weight).backward()
        gradients.append([parameter.grad.clone() for parameter in lm.model.parameters() if parameter.grad is not None])
        assert float(sum(loss.metrics["reward"] for loss in losses) / weight) == pytest.approx(made.stats["reward"])
    assert max(float(grad.abs().max()) for grad in gradients[0]) > 1e-4
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-6)


def test_the_engines_log_probabilities_are_the_trainers(tmp_path):
    how = recipe(tmp_path, "ppo", rollout=How(prompts=4, samples=4, max_tokens=12))
    lm, _, answered, made = rolled(how)
    trainers = rollout.of_batch(lm.model, made.batch, "logprobs", 1, False)
    assert torch.allclose(made.batch.further["old"], trainers, atol=2e-5)
    mask = made.batch.targets != IGNORED
    assert int(mask.sum()) == sum(len(each.tokens) for each in answered.completions)
    for row, each in enumerate(answered.completions):  # targets are the answer's tokens, in place
        assert made.batch.targets[row][mask[row]].tolist() == each.tokens
        assert made.batch.tokens[row, : len(each.prompt)].tolist() == each.prompt


def test_drawn_at_another_temperature_the_ratio_begins_at_one(tmp_path):
    how = recipe(tmp_path, "grpo", rollout=How(prompts=2, samples=4, max_tokens=6, epochs=2, temperature=0.7))
    lm, _, _, made = rolled(how)
    loss = objective(how, None, rollout.figure_names(True))(lm.model, made.batch)
    assert float(loss.metrics["clipped"]) == 0
    again = rollout.of_batch(lm.model, made.batch, "logprobs", 1, False, 0.7)
    assert torch.allclose(made.batch.further["old"], again, atol=1e-6)


@pytest.mark.parametrize(("method", "stop"), [("ppo", 5), ("grpo", 4), ("dapo", 5)])
def test_a_stopped_run_resumes_bit_for_bit(tmp_path, method, stop, monkeypatch):
    """Stopped in the middle of a rollout (5) and at its border (4), with an adaptive coefficient, then killed."""
    how = How(prompts=2, samples=4, max_tokens=4, epochs=2, minibatches=2)
    kl = Kl(coefficient=0.05, kind="adaptive", horizon=50)
    whole = recipe(tmp_path, method, 10, held_out=0.0, rollout=how, kl=kl, checkpoint=3, accumulate=2)
    cut = replace(whole, run=tmp_path / "cut")
    rl(whole, TASKS, letters, quiet=True)
    real, calls = job.objective, []

    class Killed(BaseException):
        pass

    def interrupting(*args):
        inner = real(*args)

        def compute(model, batch):
            calls.append(1)
            if len(calls) == 2 * stop:  # two micro-batches an update
                os.kill(os.getpid(), signal.SIGINT)
            if len(calls) == 2 * stop + 5:
                raise Killed
            return inner(model, batch)

        return compute

    monkeypatch.setattr(job, "objective", interrupting)
    with pytest.raises(Stopped, match=f"after update {stop} of 10"):
        rl(cut, TASKS, letters, quiet=True)
    with pytest.raises(Killed):
        rl(cut, TASKS, letters, resume=True, quiet=True)
    monkeypatch.setattr(job, "objective", real)
    rl(cut, TASKS, letters, resume=True, quiet=True)
    a, b = (weights(dougong.load(each.run).model) for each in (whole, cut))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert rewards_of(whole.run) == rewards_of(cut.run)
    assert (whole.run / "answers.jsonl").read_text() == (cut.run / "answers.jsonl").read_text()


def broken(samples: list[Sample]) -> list[float]:
    raise RuntimeError("a user's mistake")


SCORES = {
    "alike": lambda samples: [0.3] * len(samples),
    "broken": broken,
    "nan": lambda samples: [(math.nan, math.inf)[at % 2] for at in range(len(samples))],
}


@pytest.mark.parametrize(
    ("method", "kind"), [*((each, "alike") for each in METHODS), ("grpo", "broken"), ("ppo", "nan")]
)
def test_equal_rewards_and_broken_rewards_change_nothing_and_are_no_nan(tmp_path, method, kind):
    """All rewards alike: no advantage, so with no reference the weights stay where they are."""
    how = recipe(tmp_path, method, 2, kl=Kl(coefficient=0.0), loss=PolicyLoss(value_weight=0.0), held_out=0.0)
    rl(how, TASKS, SCORES[kind], quiet=True)
    records = read_metrics(how.run / "metrics.jsonl")
    assert all(math.isfinite(value) for record in records for value in record.values())
    assert all(record["failed_rewards"] == 0 for record in records) == (kind == "alike")
    assert all(record["equal_groups"] == 1 for record in records)
    if METHODS[method].advantages != "value":  # a value model's guesses differ from token to token
        assert all(record["gradient_norm"] == 0 for record in records)
        before, after = talker(context=64).model, dougong.load(how.run).model
        assert all(torch.equal(value, weights(after)[key]) for key, value in weights(before).items())


def test_a_reward_that_hangs_is_cut_off(tmp_path):
    how = recipe(tmp_path, steps=1, rollout=How(prompts=1, samples=2, max_tokens=4), held_out=0.0,
                 reward=Rewards("pattern", pattern=r"(.*.*)*=$", seconds=0.05, failed=-1.0))  # fmt: skip
    scoring = Scoring(how.reward, 4)
    found = scoring([Sample(TASKS[0], "a" * 40), Sample(TASKS[0], "=")])
    assert found.values[0] == -1 and "no reward within" in found.failures[0] and 1 not in found.failures
    own = replace(how, run=tmp_path / "own", reward=Rewards("exact", seconds=0.02, failed=-1.0))
    rl(own, TASKS, lambda samples: time.sleep(60) or [1.0] * len(samples), quiet=True)
    record = read_metrics(own.run / "metrics.jsonl")[0]
    assert record["failed_rewards"] == 2 and record["reward"] == -1 and math.isfinite(record["loss"])


def test_a_diverging_policy_is_told_and_its_coefficient_rises(tmp_path):
    how = recipe(tmp_path, "ppo", 8, rate=0.2, kl=Kl(coefficient=1e-4, kind="adaptive", target=0.01, horizon=32))
    rl(how, TASKS, letters, quiet=True)
    seen = [record["kl_coefficient"] for record in read_metrics(how.run / "metrics.jsonl")]
    assert seen[-1] > 1.5 * seen[0]
    limited = replace(how, run=tmp_path / "limited", kl=Kl(coefficient=0.0, limit=0.05))
    with pytest.raises(DougongError, match="the policy has left its reference"):
        rl(limited, TASKS, letters, quiet=True)


def test_an_empty_answer_has_its_end_as_its_only_token(tmp_path):
    """A model that ends at once: one token to learn from, a reward of the empty text, and finite everything."""
    lm = talker(context=64)
    end = lm.tokenizer.token_id("<|im_end|>")
    with torch.no_grad():
        lm.model.head.storage.weight.mul_(0)
        lm.model.head.storage.weight[end] = 50 * lm.model.norm.weight.sign()
        for layer in lm.model.layers:  # the last hidden state then points where the head says
            for parameter in layer.parameters():
                parameter.mul_(0)
        lm.model.embedding.storage.weight.fill_(1.0)
    dougong.save(lm, tmp_path / "start")
    how = recipe(tmp_path, "grpo", 2)
    rl(how, TASKS, letters, quiet=True)
    records = read_metrics(how.run / "metrics.jsonl")
    assert all(record["answer_tokens"] == 1 and record["ended"] == 1 for record in records)
    assert all(math.isfinite(value) for record in records for value in record.values())


def test_dynamic_sampling_replaces_dull_groups(tmp_path):
    def score(samples):  # only every third prompt tells answers apart
        return [len(set(each.text)) * (int(each.task.source[2:]) % 3 == 0) for each in samples]

    how = recipe(tmp_path, "dapo", rollout=How(prompts=4, samples=6, max_tokens=6, tries=8))
    lm = talker(context=64)
    prompts, scoring = rollout.prompts_of(lm, TASKS, 6), Scoring(how.reward, 6, score)
    answered, cursor = rollout.answer_groups(lm, prompts, how, scoring, 0, 0)
    assert answered.rewards.shape == (4, 6)
    assert not rollout.adv.equal_groups(answered.rewards).any()
    assert cursor > 4 and answered.resampled > 0
    plain, after = rollout.answer_groups(lm, prompts, replace(how, method="grpo"), scoring, 0, 0)
    assert after == 4 and bool(rollout.adv.equal_groups(plain.rewards).any())


def test_warm_up_then_rl_learns_the_answers(tmp_path):
    """ReFT in small: imitation makes right answers possible, rewards make them usual."""
    how = recipe(tmp_path, "reft", 14, rate=3e-3, warmup=5, held_out=0.0,
                 rollout=How(prompts=4, samples=4, max_tokens=3), reward=Rewards("exact"))  # fmt: skip
    tasks = [replace(task, answer="7", solution="7") for task in TASKS]
    rl(how, tasks, quiet=True)
    seen = rewards_of(how.run)
    assert (how.run / "warmup" / "model").is_dir()
    assert sum(seen[-4:]) / 4 > max(0.8, sum(seen[:2]) / 2)


def test_a_warm_up_trains_the_adapter_that_was_asked_for(tmp_path):
    """What it learns is where the second stage starts; the weights move along the adapter alone."""
    tune = Tune("lora", "o", options={"rank": 2})
    learn = How(prompts=4, samples=2, max_tokens=3)
    how = recipe(tmp_path, "reft", 2, warmup=3, held_out=0.0, tune=tune, rollout=learn,
                 reward=Rewards("exact"))  # fmt: skip
    tasks = [replace(task, answer="7", solution="7") for task in TASKS]
    rl(how, tasks, quiet=True)
    before, after = (load(path).model.weights() for path in (how.model, how.run / "warmup" / "model"))
    moved = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert moved and all(".o." in name for name in moved)
    assert all(torch.linalg.matrix_rank(after[name] - before[name], atol=1e-6) <= 2 for name in moved)
    named = json.loads((how.run / "adapter" / "adapter_config.json").read_text())
    assert named["base_model_name_or_path"] == str(how.run / "warmup" / "model")
    how = replace(how, run=tmp_path / "prompted", tune=Tune("prompt", options={"tokens": 2}))
    with pytest.raises(DougongError, match="no change of a weight"):
        rl(how, tasks, quiet=True)


def test_preferences_to_a_reward_model_to_a_policy(tmp_path):
    """RLHF in small: what people prefer, learnt by a reward model, raises what they truly wanted."""
    draw = random.Random(0)
    texts = ["".join(draw.choices("abcdxyz0?", k=draw.randint(0, 6))) for _ in range(480)]
    true = letters([Sample(TASKS[0], text) for text in texts])
    sides = [sorted((at, at + 240), key=lambda index: -true[index]) for at in range(240)]
    pairs = [
        Pair((user(f"{good:b}?".replace("1", "x")),), (says(texts[good]),), (says(texts[bad]),), source=f"p:{good}")
        for good, bad in sides
        if true[good] > true[bad] + 0.3
    ]
    training = Training(70, optimizer=Optimizer(rate=5e-3, weight_decay=0.0), schedule=Schedule("constant", 0))
    saved(tmp_path / "start", context=128, chars="abcdxyz0?")
    ranked = prefer(Prefer(tmp_path / "start", tmp_path / "reward", PreferenceData(held_out=0.3), "reward", batch=16,
                           length=128, training=training), pairs, quiet=True)  # fmt: skip
    assert ranked["held_out_accuracy"] > 0.9
    how = recipe(tmp_path, "ppo", 24, rate=0.01, reward=Rewards("model", model=tmp_path / "reward"),
                 rollout=How(prompts=3, samples=8, max_tokens=6, epochs=2), held_out=0.0)  # fmt: skip
    rl(how, TASKS, quiet=True)
    lines = [json.loads(line) for line in (how.run / "answers.jsonl").read_text().splitlines()]
    truly = [sum(letters([Sample(TASKS[0], text) for _, text in line["answers"]])) / 8 for line in lines]
    assert sum(truly[-3:]) / 3 > sum(truly[:3]) / 3 + 0.2


def test_a_reward_model_and_a_judge_from_folders(tmp_path):
    scorer = with_task(talker(context=64), reward())
    with torch.no_grad():
        scorer.model.task.output.storage.weight.normal_(generator=torch.Generator().manual_seed(1))
    dougong.save(scorer, tmp_path / "reward")
    saved(tmp_path / "judge", context=512)
    for kind in ("model", "judge"):
        how = recipe(
            tmp_path,
            "rloo",
            3,
            held_out=0.0,
            reward=Rewards(kind, model=tmp_path / {"model": "reward"}.get(kind, kind)),
        )
        rl(replace(how, run=tmp_path / f"run-{kind}"), TASKS, quiet=True)
        assert all(math.isfinite(value) for value in rewards_of(tmp_path / f"run-{kind}"))


def test_the_command_runs_on_gsm8k(tmp_path, data, capsys):
    model = saved(tmp_path / "start", context=512)
    few = tmp_path / "few.jsonl"
    lines = (data / "eval/gsm8k/train.jsonl").read_text(encoding="utf-8").splitlines()
    few.write_text("\n".join(lines[:12]), encoding="utf-8")
    args = ["--model", model, "--run", tmp_path / "run", "--data.path", few, "--training.steps", 2,
            "--rollout.prompts", 2, "--rollout.samples", 2, "--rollout.max-tokens", 8]  # fmt: skip
    assert main(["rl", *map(str, args)]) == 0
    assert "held out reward" in capsys.readouterr().out or (tmp_path / "run" / "result.json").is_file()
    assert (tmp_path / "run" / "report.html").is_file()
    assert main(["rl", "--method", "grpo", "--rollout.samples", "1"]) == 1
    assert "set rollout.samples to at least 2" in capsys.readouterr().err


def test_what_is_wrong_is_named_before_any_work(tmp_path):
    with pytest.raises(DougongError, match="leave `value` out"):
        recipe(tmp_path, "grpo", value=Path("x"))
    with pytest.raises(DougongError, match="temperature is 0"):
        recipe(tmp_path, rollout=How(temperature=0.0))
    with pytest.raises(DougongError, match=r"name its folder with reward\.model"):
        Rewards("judge")
    with pytest.raises(DougongError, match="no regular expression"):
        Rewards("pattern", pattern="(")
    with pytest.raises(DougongError, match="none of the 40 prompts leaves 60 tokens"):
        rl(recipe(tmp_path, rollout=How(max_tokens=60), held_out=0.0), TASKS, letters, quiet=True)
