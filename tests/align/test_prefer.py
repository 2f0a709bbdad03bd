"""Preference tuning: it learns what is preferred, cut or packed as one likes, stops and resumes bit for bit."""

from __future__ import annotations

import gzip
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dougong
from dougong.align import prefer as job
from dougong.align.objectives import objective
from dougong.align.prefer import prefer
from dougong.align.preferences import Pair, Steps, Verdict
from dougong.align.prepare import Preparer, prepare
from dougong.align.recipe import Method, Prefer, PreferenceData, PreferenceLoss
from dougong.align.reference import segment_logprobs
from dougong.base import DougongError
from dougong.cli import main
from dougong.train import Optimizer, Schedule, Stopped, Training
from dougong.train.monitor import read_metrics
from dougong.train.ranks import Ranks
from tests.align.models import pairs, saved, says, talker, user, weights

pytestmark = pytest.mark.usefixtures("unchecked")

METHODS: tuple[Method, ...] = ("dpo", "cdpo", "ipo", "simpo", "cpo", "orpo", "kto", "reward", "process")


def training(steps: int = 30, **rest) -> Training:
    return Training(steps, optimizer=Optimizer(rate=5e-3, weight_decay=0.0), schedule=Schedule("constant", 0),
                    checkpoint=rest.pop("checkpoint", 0), **rest)  # fmt: skip


def recipe(folder: Path, method: Method = "dpo", **rest) -> Prefer:
    model = folder / "start"
    if not model.exists():
        saved(model)
    loss = PreferenceLoss(beta=0.5, label_smoothing=0.1 if method in ("cdpo", "cpo") else 0.0, center=0.01)
    settings = {"training": training(), "batch": 4, "length": 96, "data": PreferenceData(held_out=0.2), **rest}
    return Prefer(model, folder / "run", method=method, loss=loss, **settings)


def steps_data() -> list[Steps]:
    return [
        Steps((user(f"{index}?"),), ("a yes\n", "no\n") if index % 2 else ("no\n", "yes\n"),
              (True, False) if index % 2 else (False, True), f"d:{index}")
        for index in range(24)
    ]  # fmt: skip


def examples(method: Method):
    return steps_data() if method == "process" else pairs()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_what_is_preferred(tmp_path, method):
    figures = prefer(recipe(tmp_path, method), examples(method), quiet=True)
    assert figures["held_out_accuracy"] > 0.9 > figures["held_out_accuracy_before"]
    assert figures["held_out_loss"] < figures["held_out_loss_before"]
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    wanted = {"kto": {"kl", "accuracy"}, "process": {"accuracy"}}.get(method, {"margin", "accuracy", "reward_chosen"})
    assert wanted <= records[-1].keys()
    if method in ("reward", "process"):
        scorer = dougong.load(tmp_path / "run")
        assert scorer.spec.task is not None and scorer.spec.head is None
    if method == "reward":  # a folder like any other: the score of a text is read at its end
        texts = [[user("99?"), says("yes")], [user("99?"), says("no")]]
        ids = [scorer.tokenizer.render_ids(each).ids for each in texts]
        yes, no = (float(scorer.model(torch.tensor([each])).value.detach()) for each in ids)
        assert yes > no


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("layout", "parts"), [("packed", 2), ("packed", 8), ("padded", 1), ("padded", 8)])
def test_an_update_is_the_same_however_it_is_cut(tmp_path, method, layout, parts):
    """Accumulation 1 x 8 = 8 x 1, packed = padded: the gradient of one batch of all units."""
    data = examples(method)[:8]
    gradients = []
    for own_layout, cut in (("packed", 1), (layout, parts)):
        how = recipe(tmp_path, method, layout=own_layout)
        lm = job.start_model(how)
        with torch.no_grad():
            for parameter in lm.model.parameters():  # new heads start at 0
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.05)
        prepared = prepare(how, lm.tokenizer, data)
        preparer = Preparer(how, lm.model, None, prepared, False)
        if method in ("dpo", "cdpo", "ipo", "kto"):
            preparer.use(segment_logprobs(talker(seed=5).model, preparer.segments(), 96))
        batch = preparer(prepared.rows.build([(0, row) for row in range(prepared.rows.count)]), Ranks())
        losses = [objective(method, how.loss)(lm.model, micro) for micro in batch.micro(cut)]
        (sum(loss.sum for loss in losses) / sum(loss.weight for loss in losses)).backward()
        gradients.append([parameter.grad for parameter in lm.model.parameters() if parameter.grad is not None])
    assert max(float(grad.abs().max()) for grad in gradients[0]) > 1e-3
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=2e-6)


def test_the_reference_once_is_the_reference_as_a_copy(tmp_path):
    for name, method in (("a", "dpo"), ("b", "kto")):
        (tmp_path / name).mkdir()
        found = []
        for how in ("once", "copy"):
            each = recipe(tmp_path / name, method, reference=how, training=training(4))
            each = replace(each, run=tmp_path / name / how)
            prefer(each, pairs(), quiet=True)
            found.append(weights(dougong.load(each.run).model))
        assert all(torch.allclose(found[0][key], found[1][key], atol=1e-5) for key in found[0])


@pytest.mark.parametrize("method", ["dpo", "kto", "reward"])
def test_a_stopped_run_resumes_bit_for_bit(tmp_path, method, monkeypatch):
    whole = recipe(tmp_path, method, training=training(9, checkpoint=2))
    cut = replace(whole, run=tmp_path / "cut")
    prefer(whole, pairs(), quiet=True)
    real, calls = job.objective, []

    def interrupting(*args):
        inner = real(*args)

        def compute(model, batch):
            calls.append(1)
            if model.training and len(calls) == 8:
                os.kill(os.getpid(), signal.SIGINT)
            return inner(model, batch)

        return compute

    monkeypatch.setattr(job, "objective", interrupting)
    with pytest.raises(Stopped):
        prefer(cut, pairs(), quiet=True)
    monkeypatch.setattr(job, "objective", real)
    prefer(cut, pairs(), resume=True, quiet=True)
    a, b = (weights(dougong.load(each.run).model) for each in (whole, cut))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("method", ["dpo", "ipo", "simpo", "orpo", "reward"])
def test_equal_sides_teach_nothing_wrong(tmp_path, method):
    """Pairs without a preference: finite, counted, and for a loss of differences no change of the weights."""
    same = [Pair((user(f"{i}?"),), (says("yes"),), (says("yes"),), source=f"d:{i}") for i in range(6)]
    how = recipe(tmp_path, method, training=training(2), data=PreferenceData(held_out=0.0))
    how = replace(how, loss=PreferenceLoss(beta=0.5))
    figures = prefer(how, same, quiet=True)
    assert figures["equal_sides"] == 6
    before, after = talker().model, dougong.load(how.run).model
    moved = {key: float((before.weights()[key] - value).detach().abs().max()) for key, value in after.weights().items()
             if key in before.weights()}  # fmt: skip
    assert all(value == value for value in moved.values())
    if method in ("dpo", "ipo", "simpo", "reward"):
        # AdamW turns a gradient that is only rounding into a step; what matters is that no gradient is more.
        assert all(record["gradient_norm"] < 1e-5 for record in read_metrics(how.run / "metrics.jsonl"))


def test_an_empty_answer_is_its_end_of_turn(tmp_path):
    lm = talker()
    unit = prepare(recipe(tmp_path), lm.tokenizer, [Pair((user("1?"),), (says(""),), (says("no"),))]).rows.units[0]
    ends = [target for target in unit[0].targets if target >= 0]
    assert ends == [lm.tokenizer.token_id("<|im_end|>")]
    figures = prefer(
        recipe(tmp_path, training=training(2)),
        [Pair((user(f"{i}?"),), (says(""),), (says("no"),), source=str(i)) for i in range(9)], quiet=True,
    )  # fmt: skip
    assert figures["held_out_loss"] == figures["held_out_loss"]


def test_targets_are_the_last_answer_alone(tmp_path):
    lm = talker()
    pair = Pair((user("1?"), says("a"), user("2?")), (says("yes"),), (says("no"),))
    chosen = prepare(recipe(tmp_path), lm.tokenizer, [pair]).rows.units[0][0]
    learnt = [target for target in chosen.targets if target >= 0]
    assert lm.tokenizer.decode(learnt, skip_special=False) == "yes<|im_end|>"
    assert lm.tokenizer.decode(chosen.tokens, skip_special=False).endswith("assistant\nyes")


def test_too_long_examples_are_cut_dropped_or_refused(tmp_path):
    lm = talker()
    data = [*pairs(2), Pair((user("1?"),), (says("yes " * 40),), (says("no"),))]
    for how, truncated, dropped in (("truncate", 1, 0), ("drop", 0, 1)):
        made = prepare(recipe(tmp_path, data=PreferenceData(too_long=how)), lm.tokenizer, data)
        assert (made.truncated, made.dropped) == (truncated, dropped)
    with pytest.raises(DougongError, match=r"example 2 has .* tokens, more than the 96 of a row"):
        prepare(recipe(tmp_path, data=PreferenceData(too_long="refuse")), lm.tokenizer, data)


def test_the_wrong_kind_of_data_is_named(tmp_path):
    with pytest.raises(DougongError, match="d:0 is a steps; dpo needs pairs"):
        prefer(recipe(tmp_path), steps_data(), quiet=True)
    with pytest.raises(DougongError, match="reward needs pairs"):
        prefer(replace(recipe(tmp_path, "reward"), run=tmp_path / "r"), [Verdict((user("?"),), (says("no"),), True)])
    with pytest.raises(DougongError, match=r"data\.path is empty"):
        prefer(replace(recipe(tmp_path), run=tmp_path / "s"))
    with pytest.raises(DougongError, match=r"loss\.beta is 0"):
        Prefer(loss=PreferenceLoss(beta=0.0))


def test_the_command_runs_on_hh_rlhf(tmp_path, data, capsys):
    model = saved(tmp_path / "start", context=512)
    place = data / "preference/hh_rlhf/test.jsonl.gz"
    few = tmp_path / "hh.jsonl"
    with gzip.open(place, "rt", encoding="utf-8") as stream:
        few.write_text("".join(line for line, _ in zip(stream, range(24), strict=False)), encoding="utf-8")
    args = ["--model", model, "--run", tmp_path / "run", "--data.path", few, "--length", 1024, "--training.steps", 3,
            "--data.held_out", 0.3]  # fmt: skip
    assert main(["prefer", *map(str, args)]) == 1
    assert "was made for 512 tokens" in capsys.readouterr().err
    args[args.index(1024)] = 512
    args[args.index(tmp_path / "run")] = tmp_path / "run2"
    assert main(["prefer", *map(str, args), "--batch", "2"]) == 0
    printed = capsys.readouterr().out
    assert "held out accuracy" in printed and "truncated" in printed
    assert (tmp_path / "run2" / "report.html").is_file()
