"""The lab: statistics, tasks, and every experiment end to end at a size that teaches nothing."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dougong.base import DougongError, read_json
from dougong.cli import main
from dougong.data.batch import IGNORED
from dougong.lab import (
    EXPERIMENTS,
    Experiment,
    experiment,
    experts,
    heads,
    mixers,
    mixers_models,
    norms,
    positions,
)
from dougong.lab.experiment import Budget, Results, fill_outputs, run_experiment
from dougong.lab.measures import kept_bytes, operations
from dougong.lab.sizes import filled
from dougong.lab.statistics import difference, mean, separates
from dougong.lab.tasks import Bytes, Drawn, Recall
from dougong.model import Model, initialise
from dougong.parts.rope import Yarn
from dougong.train.ranks import Ranks


def test_interval_of_a_mean():
    found = mean([1.0, 2.0, 3.0])
    assert found.value == 2 and found.half == pytest.approx(4.303 / 3**0.5)
    assert not separates(difference([1.0, 2.0, 3.0], [0.0, 2.5, 3.5]))
    assert separates(difference([1.0, 2.0, 3.0], [0.0, 1.1, 1.9]))
    assert not separates(mean([5.0]))  # one seed tells nothing apart


@given(pairs=st.lists(st.integers(1, 12), min_size=1, max_size=4), rows=st.integers(1, 5), seed=st.integers(0, 99))
def test_recall_asks_for_what_was_told(pairs: list[int], rows: int, seed: int):
    task = Recall(tuple(pairs), keys=12, values=7)
    tokens, targets = task.draw(np.random.default_rng(seed), rows)
    count = tokens.shape[1] // 3
    assert count in pairs and tokens.max() < task.vocab and len(tokens) == rows * max(pairs) // count
    for row, target in zip(tokens.tolist(), targets.tolist(), strict=True):
        told = dict(zip(row[0 : 2 * count : 2], row[1 : 2 * count : 2], strict=True))
        assert len(told) == count and all(key < 12 <= value for key, value in told.items())
        assert target[: 2 * count] == [IGNORED] * 2 * count
        assert sorted(row[2 * count :]) == sorted(told)
        assert target[2 * count :] == [told[key] for key in row[2 * count :]]


def test_recall_of_more_keys_than_there_are_is_refused():
    with pytest.raises(DougongError, match="the 64 keys"):
        Recall((4, 65))


def test_batches_resume_where_they_were():
    stream = Drawn(Bytes(16), 3, seed=1)(None, Ranks())
    first = [next(stream) for _ in range(3)]
    again = next(Drawn(Bytes(16), 3, seed=1)(first[1][1], Ranks()))
    assert torch.equal(again[0].tokens, first[2][0].tokens)
    assert torch.equal(first[0][0].tokens[:, 1:], first[0][0].targets[:, :-1])


def test_batches_of_several_lengths_have_their_positions():
    stream = Drawn(Recall((1, 4)), 3, seed=0)(None, Ranks())
    shapes = set()
    for _ in range(12):
        batch, _ = next(stream)
        shapes.add(tuple(batch.tokens.shape))
        assert batch.positions.shape == batch.tokens.shape == batch.targets.shape
        assert (batch.targets != IGNORED).sum() == 12  # as many questions whatever the number of pairs
    assert shapes == {(12, 3), (3, 12)}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(positions, "TRAINED", 32)
    monkeypatch.setattr(positions, "REACHED", 64)
    monkeypatch.setattr(positions, "STEP", 16)
    monkeypatch.setattr(norms, "DEPTHS", (1, 2))
    monkeypatch.setattr(mixers, "PAIRS", (1, 2))
    monkeypatch.setattr(mixers, "ASKED", 64)
    monkeypatch.setattr(mixers, "LENGTHS", (16, 32))
    for module in (norms, heads):
        monkeypatch.setattr(module, "LENGTH", 24)


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if isinstance(experiment(name), Experiment)])
def test_every_experiment_runs_and_goes_on(name, small, tmp_path, capsys):
    command = ["lab", name, "--steps", "2", "--seeds", "2", "--out", str(tmp_path / "run"), "--quiet"]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "report" in told and len(told.splitlines()) > 3
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<svg" in page and "nan" not in page.lower().replace("nano", "")
    measured = sorted((tmp_path / "run").glob("*/*/measured.json"))
    assert len(measured) == 2 * len(experiment(name).variants())
    kept = {path: path.stat().st_mtime_ns for path in measured}
    measured[0].unlink()  # as if it had been interrupted there
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[-1] == told.splitlines()[-1]
    assert all(path.stat().st_mtime_ns == kept[path] for path in measured[1:])
    with pytest.raises(DougongError, match="another experiment or budget"):
        run_experiment(experiment(name), tmp_path / "run", Budget(3, 4, 2), quiet=True)


def test_models_of_an_experiment_are_comparable():
    for specs in (heads.specs(), mixers_models.specs(128, 96)):
        counts = [spec.parameters() for spec in specs.values()]
        assert max(counts) / min(counts) < 1.005
    with pytest.raises(DougongError, match="too few"):
        filled({"MHA": lambda hidden: heads.specs()["MHA"]}, 1000)


def test_states_of_one_size_are_one_size():
    """The matrices of the recurrences hold as many numbers; the rest is what convolutions and shifts keep."""
    specs = mixers_models.specs(128, 96)
    for size in mixers_models.SIZES:
        for kind in mixers_models.RECURRENCES:
            spec = specs[mixers_models.named(kind, size)]
            slots = [slot for each in spec.state_slots() for slot in each.values()]
            matrices = sum(slot.elements(1) for slot in slots if len(slot.shape) == 3)
            assert matrices == mixers_models.DEPTH * mixers_models.STATES * size * size
            assert spec.state_bytes(10) == spec.state_bytes(10_000)


@pytest.mark.parametrize("module", [heads, experts])
def test_costs_are_what_is_counted(module):
    """The cache on its tensors, the operations by PyTorch's counter."""
    for spec in module.specs().values():
        model = initialise(Model(spec), 0).eval()
        with torch.no_grad():
            assert kept_bytes(model, 20) == spec.state_bytes(20)
            assert operations(model, 20) == pytest.approx(spec.flops(1, 20), rel=1e-3)


def test_experts_use_as_many_operations_a_token():
    work = {}
    for name, spec in experts.specs().items():
        work[name] = operations(initialise(Model(spec), 0), experts.LENGTH)
    assert max(work.values()) / work["dense"] < 1.02  # the router's share


def test_recall_is_measured_at_each_number_of_pairs(monkeypatch):
    """A model that knows the answers recalls everything, one that never does nothing."""
    monkeypatch.setattr(mixers, "ASKED", 40)

    class Knows(Model):
        def __init__(self, right: bool):
            super().__init__(mixers_models.specs(128, 96)["attention"])
            self.right = right

        def forward(self, tokens):
            count = tokens.shape[1] // 3
            keys, values = tokens[:, : 2 * count : 2], tokens[:, 1 : 2 * count : 2]
            found = (tokens[:, 2 * count :, None] == keys[:, None]).int().argmax(-1)
            answers = torch.zeros_like(tokens)
            answers[:, 2 * count :] = values.gather(1, found) if self.right else 0
            return SimpleNamespace(logits=torch.nn.functional.one_hot(answers, 128).float())

    assert mixers.shares(Knows(True)) == [1.0] * len(mixers.PAIRS)
    assert mixers.shares(Knows(False)) == [0.0] * len(mixers.PAIRS)


def test_verdict_of_mixers_says_what_separates_and_what_does_not():
    specs = mixers_models.specs(128, 96)
    small = min(mixers_models.SIZES)
    lines, values = {}, {}
    for name in specs:
        drop = {f"Mamba-2 {small}x{small}": 0.5, f"RWKV-7 {small}x{small}": 0.1}.get(name, 0.0)
        jitter = (-0.05, 0.0, 0.05) if name.startswith("gated") else (0.0, 0.001, -0.001)
        lines[name] = {
            "recalled": [[1.0] * 4 + [1.0 - drop - each] for each in jitter],
            "seconds": [[1.0] * len(mixers.LENGTHS)] * 3,
        }
        values[name] = {"state": [4096.0] * 3, "parameters": [1.0] * 3}
    told = mixers.EXPERIMENT.verdict(Results(values, lines))
    assert f"Mamba-2 {small}x{small} recalls less than attention at 32 pairs (-50% ± 0% at 32)." in told
    assert any(each.startswith(f"gated DeltaNet {small}x{small} is told apart from attention at no") for each in told)
    assert any(f"RWKV-7 {small}x{small} recalls 40% ± 0% more than Mamba-2 {small}x{small}" in each for each in told)
    assert any("and gated DeltaNet" in each and "are not told apart" in each for each in told)


def test_outputs_start_at_random_where_asked():
    spec = norms.EXPERIMENT.variant("post-LN 2").spec
    model = initialise(Model(spec), 0)
    before = {name: linear.weight.clone() for name, linear in model.linears()}
    fill_outputs(model, 1.0, seed=3)
    for name, linear in model.linears():
        if name.endswith((".o", ".down")):
            assert not before[name].any()
            assert float(linear.weight.detach().std() * linear.in_features**0.5) == pytest.approx(1.0, rel=0.05)
        else:
            assert torch.equal(linear.weight, before[name])


def test_another_task_or_rate_is_another_experiment(small, tmp_path, monkeypatch):
    run_experiment(experiment("heads"), tmp_path, Budget(1, 2, 1), quiet=True)
    for module, name, value in ((heads, "LENGTH", 20),):
        monkeypatch.setattr(module, name, value)
        with pytest.raises(DougongError, match="another experiment"):
            run_experiment(experiment("heads"), tmp_path, Budget(1, 2, 1), quiet=True)


def test_yarn_stretches_the_same_weights_over_the_reach():
    spec = positions.EXPERIMENT.variant("RoPE").spec
    stretched = positions.with_yarn(spec)
    for layer in stretched.layers:
        assert layer.mixer.position.scaling == Yarn(positions.REACHED / positions.TRAINED, positions.TRAINED)
    model, other = initialise(Model(spec), 0).eval(), Model(stretched).eval()
    other.load_state_dict(model.state_dict())
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        fill_outputs(model, 1.0, 0)
        fill_outputs(other, 1.0, 0)
        assert not torch.allclose(model(tokens).logits, other(tokens).logits)


def test_positions_say_which_neighbours_are_told_apart():
    near, far = [2.0, 2.1, 2.2], [3.0, 3.1, 3.2]
    values = {
        "RoPE": {"inside": near, "beyond": far, "YaRN inside": [2.1, 2.1, 2.1], "YaRN beyond": near},
        "learned": {"inside": far},
    }
    told = positions.EXPERIMENT.verdict(Results(values))
    assert "RoPE 2.100 ± 0.248 ~ RoPE + YaRN 2.100 ± 0.000 < learned 3.100 ± 0.248." in told[0]
    assert "RoPE + YaRN 2.100 ± 0.248 < RoPE 3.100 ± 0.248" in told[1] and "learned positions have no row" in told[1]


def test_learned_positions_have_no_row_beyond_their_table():
    model = initialise(Model(positions.EXPERIMENT.variant("learned").spec), 0)
    with pytest.raises(DougongError, match=str(positions.TRAINED)):
        model(torch.zeros(1, positions.TRAINED + 1, dtype=torch.int64))


def test_an_interrupted_experiment_goes_on_as_if_nothing_had_been(small, tmp_path, monkeypatch, capsys):
    spec = heads.specs()["MHA"]
    monkeypatch.setattr(heads, "specs", lambda: {"MHA": spec})
    command = ["lab", "heads", "--steps", "3", "--seeds", "1", "--quiet", "--out"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    draw, drawn = Bytes.draw, []

    def interrupted(self: Bytes, rng: np.random.Generator, rows: int):
        drawn.append(rows)
        if len(drawn) == 2:
            signal.raise_signal(signal.SIGINT)
        return draw(self, rng, rows)

    monkeypatch.setattr(Bytes, "draw", interrupted)
    capsys.readouterr()
    assert main([*command, str(tmp_path / "parts")]) == 130
    assert "lab heads: stopped after update" in (said := capsys.readouterr().err)
    assert "the same command goes on" in said and "fault" not in said
    assert not list((tmp_path / "parts").glob("*/*/measured.json"))
    assert main([*command, str(tmp_path / "parts")]) == 0
    both = [read_json(tmp_path / each / "MHA" / "0" / "measured.json") for each in ("whole", "parts")]
    assert both[0] == both[1]


def test_an_unknown_experiment_is_named(capsys):
    assert main(["lab", "position"]) == 1
    assert "positions" in capsys.readouterr().err


def test_trials_are_what_was_measured(small, tmp_path):
    folder = tmp_path / "run"
    results = run_experiment(experiment("heads"), folder, Budget(2, 4, 1), quiet=True)
    assert results.values["MHA"]["bits"][0] == read_json(folder / "MHA" / "0" / "measured.json")["bits"]
