"""The training loop: it learns, divides by the whole weight, stops and resumes bit for bit, and notices disaster."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dougong.base import DougongError
from dougong.train import Optimizer, Stopped, Training, next_token
from dougong.train.checkpoint import checkpoints, latest
from dougong.train.monitor import read_metrics

from . import jobs


def equal(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def near(a, b, tolerance=1e-5):
    for name in a:
        assert torch.allclose(a[name], b[name], atol=tolerance), name


def test_it_learns(tmp_path):
    jobs.trained(tmp_path, jobs.training(80, checkpoint=0))
    losses = [record["loss"] for record in read_metrics(tmp_path / "metrics.jsonl")]
    assert len(losses) == 80
    assert losses[0] == pytest.approx(3.0, abs=0.3)
    assert sum(losses[-5:]) / 5 < 1.6


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("parts", [2, 3, 8])
def test_accumulation_changes_nothing(tmp_path, kind, parts):
    whole = jobs.trained(tmp_path / "a", jobs.training(6, kind, checkpoint=0))
    cut = jobs.trained(tmp_path / "b", jobs.training(6, kind, checkpoint=0, accumulate=parts))
    near(jobs.weights(whole), jobs.weights(cut))
    logs = [read_metrics(tmp_path / each / "metrics.jsonl") for each in "ab"]
    for one, other in zip(*logs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-4)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_stopped_run_resumes_bit_for_bit(tmp_path, kind):
    whole = jobs.trained(tmp_path / "whole", jobs.training(kind=kind))

    def interrupt(at):
        def objective(model, batch):
            objective.calls += 1
            if objective.calls == at:
                os.kill(os.getpid(), signal.SIGINT)
            return next_token(model, batch)

        objective.calls = 0
        return objective

    with pytest.raises(Stopped, match="after update 3 of 12"):
        jobs.trained(tmp_path / "cut", jobs.training(kind=kind), objective=interrupt(3))
    with pytest.raises(Stopped, match="after update 8 of 12"):
        jobs.trained(tmp_path / "cut", jobs.training(kind=kind), resume=True, objective=interrupt(5))
    resumed = jobs.trained(tmp_path / "cut", jobs.training(kind=kind), resume=True)
    equal(jobs.weights(whole), jobs.weights(resumed))
    logs = [read_metrics(tmp_path / each / "metrics.jsonl") for each in ("whole", "cut")]
    assert [(r["step"], r["loss"], r["tokens"]) for r in logs[0]] == [
        (r["step"], r["loss"], r["tokens"]) for r in logs[1]
    ]


def test_a_killed_run_resumes_from_its_last_checkpoint(tmp_path):
    whole = jobs.trained(tmp_path / "whole", jobs.training())

    class Killed(BaseException):
        pass

    def die(model, batch):
        die.calls += 1
        if die.calls == 7:
            raise Killed
        return next_token(model, batch)

    die.calls = 0
    with pytest.raises(Killed):
        jobs.trained(tmp_path / "cut", jobs.training(), objective=die)
    found = latest(tmp_path / "cut" / "checkpoints")
    assert found is not None and found.name == "step-00000004"
    # What a kill in the middle of writing leaves behind is not a checkpoint.
    (tmp_path / "cut" / "checkpoints" / ".step-00000008.x.part").mkdir()
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 6, "lo')
    resumed = jobs.trained(tmp_path / "cut", jobs.training(), resume=True)
    equal(jobs.weights(whole), jobs.weights(resumed))
    assert [record["step"] for record in read_metrics(tmp_path / "cut" / "metrics.jsonl")] == list(range(12))
    assert len(checkpoints(tmp_path / "cut" / "checkpoints")) == 1


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    jobs.trained(tmp_path, jobs.training())
    other = jobs.model(tied=False)
    from dougong.train.checkpoint import restore_checkpoint

    found = latest(tmp_path / "checkpoints")
    with pytest.raises(DougongError, match="belongs to another model"):
        restore_checkpoint(found, other)
    (found / "state.pt").write_bytes((found / "state.pt").read_bytes()[:100])
    with pytest.raises(DougongError, match="damaged"):
        restore_checkpoint(found, jobs.model())


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    jobs.trained(tmp_path, jobs.training(5))
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == ["step-00000004"]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(DougongError, match="no space left"):
        jobs.trained(tmp_path, jobs.training(), resume=True)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]


def test_a_diverging_loss_ends_the_run(tmp_path):
    settings = Training(200, optimizer=Optimizer("adamw", rate=50.0, clip=0.0), checkpoint=0)
    with pytest.raises(DougongError, match=r"diverged|loss is (nan|inf)") as error:
        jobs.trained(tmp_path, settings)
    assert "optimizer.rate" in str(error.value)


def test_one_bad_batch_does_not_poison_the_weights(tmp_path):
    def objective(model, batch):
        objective.calls += 1
        loss = next_token(model, batch)
        return type(loss)(loss.sum * float("nan"), loss.weight) if objective.calls in (2, 3) else loss

    objective.calls = 0
    made = jobs.trained(tmp_path, jobs.training(6, checkpoint=0), objective=objective)
    assert all(torch.isfinite(value).all() for value in jobs.weights(made).values())

    def always(model, batch):
        loss = next_token(model, batch)
        return type(loss)(loss.sum * float("nan"), loss.weight)

    with pytest.raises(DougongError, match="5th time in a row"):
        jobs.trained(tmp_path / "b", jobs.training(20, checkpoint=0), objective=always)


def test_bfloat16_learns_too(tmp_path):
    jobs.trained(tmp_path, jobs.training(40, checkpoint=0, precision="bfloat16"))
    losses = [record["loss"] for record in read_metrics(tmp_path / "metrics.jsonl")]
    assert losses[-1] < losses[0] - 0.5


def test_tensorboard_is_written(tmp_path):
    pytest.importorskip("tensorboard")
    jobs.trained(tmp_path, jobs.training(3, checkpoint=0, tensorboard=True))
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_two_ranks_are_one_process(tmp_path):
    one = jobs.trained(tmp_path / "one", jobs.training(6, checkpoint=0))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "two").mkdir()
    processes = []
    for rank in range(2):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, "-m", "tests.train.jobs", str(tmp_path / "two")]
        processes.append(subprocess.Popen(command, env=os.environ | place, cwd=Path(__file__).parents[2]))
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    ranks = [torch.load(tmp_path / "two" / f"rank-{rank}.pt") for rank in range(2)]
    equal(ranks[0], ranks[1])
    near(ranks[0], jobs.weights(one))
    steps = [record["step"] for record in read_metrics(tmp_path / "two" / "metrics.jsonl")]
    assert steps == list(range(6))


@pytest.mark.slow
def test_compiled_is_eager(tmp_path):
    code = """
import sys; sys.path.insert(0, ".")
from pathlib import Path
from tests.train import jobs
import torch
made = jobs.trained(Path(sys.argv[1]), jobs.training(4, checkpoint=0, compile=True))
torch.save(jobs.weights(made), sys.argv[1] + "/w.pt")
"""
    (tmp_path / "c").mkdir()
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "c")], check=True, cwd=Path(__file__).parents[2])
    eager = jobs.trained(tmp_path / "e", jobs.training(4, checkpoint=0))
    near(torch.load(tmp_path / "c" / "w.pt"), jobs.weights(eager), 1e-4)


def test_auto_precision_is_chosen_once_a_run(tmp_path, monkeypatch):
    from dougong.train import precision

    assert precision.faster_precision() in ("float32", "bfloat16")
    answers = iter(["bfloat16", "float32"])
    monkeypatch.setattr(precision, "faster_precision", lambda: next(answers))
    first = jobs.trained(tmp_path / "a", jobs.training(4, checkpoint=2, precision="auto"))
    told = jobs.trained(tmp_path / "b", jobs.training(4, checkpoint=2, precision="bfloat16"))
    equal(jobs.weights(first), jobs.weights(told))
    again = jobs.trained(tmp_path / "a", jobs.training(4, checkpoint=2, precision="auto"), resume=True)
    equal(jobs.weights(again), jobs.weights(first))  # not asked anew: the second answer would have been float32


def test_a_start_that_failed_at_once_does_not_block_its_folder(tmp_path):
    from dougong.train.recipe import Pretrain, TextData, open_run

    run = tmp_path / "run"
    open_run(Pretrain(run=run, data=TextData(path=(Path("wrong.txt"),))), resume=False)
    right = Pretrain(run=run, data=TextData(path=(Path("right.txt"),)))
    open_run(right, resume=False)
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(DougongError, match="already holds a run"):
        open_run(right, resume=False)
    open_run(right, resume=True)
    with pytest.raises(DougongError, match="seed was 0, now 1"):
        open_run(Pretrain(run=run, data=TextData(path=(Path("right.txt"),)), seed=1), resume=True)
