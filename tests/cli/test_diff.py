"""`dougong diff`: two models, and the first block where they part."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dougong.evals.diff import compare, compare_specs, compare_weights, first_apart
from dougong.hub import LanguageModel, load, save
from dougong.model import Model, ModelSpec, decoder_spec, initialise
from dougong.parts.heads import Classifier


def made(spec: ModelSpec) -> LanguageModel:
    """A model whose sublayers all give something."""
    network = initialise(Model(spec))
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return LanguageModel(network)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    save(made(decoder_spec(60, 16, 3, 2, 32)), tmp_path / "base")
    return tmp_path / "base"


def changed(base: Path, name: str, folder: str = "changed") -> Path:
    lm = load(base)
    lm.model.weights()[name].data.mul_(1.1)
    save(lm, base.parent / folder)
    return base.parent / folder


def found(result) -> dict:
    return json.loads(result.out)


def test_equal_models(dougong: Callable, base: Path) -> None:
    result = dougong("diff", base, base)
    assert result.status == 0
    assert "the same, within 0.0001" in result.out
    assert "all weights are equal" in result.out
    told = found(dougong("diff", base, base, "--json"))
    layer = ("mixer", "ffn")
    layers = [part for i in range(3) for part in (*(f"layers.{i}.{name}" for name in layer), f"layers.{i}")]
    assert [row["part"] for row in told["rows"]] == ["embedding", *layers, "norm", "logits"]
    assert all(row["difference"] == 0 and row["cosine"] == 1 for row in told["rows"])


@pytest.mark.parametrize(
    ("weight", "part"),
    [
        ("layers.1.mixer.q.weight", "layers.1.mixer"),
        ("layers.1.mixer_norm.weight", "layers.1.mixer"),
        ("layers.2.ffn.down.weight", "layers.2.ffn"),
        ("norm.weight", "norm"),
        ("embedding.weight", "embedding"),
    ],
)
def test_the_part_with_another_weight_is_named(dougong: Callable, base: Path, weight: str, part: str) -> None:
    other = changed(base, weight)
    result = dougong("diff", base, other)
    assert result.status == 1
    marked = [line.split()[1] for line in result.out.splitlines() if line.startswith(">")]
    assert marked == [part]
    assert f"they part at {part} " in result.out
    told = found(dougong("diff", base, other, "--json"))
    assert told["first_apart"] == part
    assert [row["name"] for row in told["weights"] if row["difference"]] == [weight]
    assert dougong("diff", base, other, "--tolerance", 10).status == 0


def test_another_type_is_rounding(dougong: Callable, base: Path, tmp_path: Path) -> None:
    save(load(base, dtype="bfloat16"), tmp_path / "half")
    assert dougong("diff", base, tmp_path / "half").status == 0  # within what 16 bits hold
    assert dougong("diff", base, tmp_path / "half", "--tolerance", 1e-4).status == 1
    assert dougong("diff", tmp_path / "half", tmp_path / "half", "--dtype", "float32", "--tolerance", 0).status == 0


def test_a_number_that_is_none_parts(dougong: Callable, base: Path, tmp_path: Path) -> None:
    lm = load(base)
    lm.model.weights()["layers.0.ffn.up.weight"].data.fill_(float("nan"))
    save(lm, tmp_path / "broken")
    assert "they part at layers.0.ffn " in dougong("diff", base, tmp_path / "broken").out


def test_other_depth_and_vocabulary_are_compared_as_far_as_they_go(
    dougong: Callable, base: Path, tmp_path: Path
) -> None:
    lm = load(base)
    short = Model(decoder_spec(60, 16, 2, 2, 32))
    short.load_state_dict({k: v for k, v in lm.model.state_dict().items() if not k.startswith("layers.2.")})
    save(LanguageModel(short), tmp_path / "short")
    result = dougong("diff", base, tmp_path / "short")
    assert result.status == 1
    assert "3 and 2 layers: the first 2 are compared" in result.out
    assert "the same as far as they line up" in result.out
    assert "norm " not in result.out.split("they line up")[0]
    assert "layers (how many): 3 in A, 2 in B" in result.out
    assert "only in A" in result.out

    save(made(decoder_spec(70, 16, 3, 2, 32)), tmp_path / "more")
    assert "vocabularies of 60 and 70" in dougong("diff", base, tmp_path / "more").out
    save(made(decoder_spec(60, 32, 3, 2, 32)), tmp_path / "wide")
    assert dougong("diff", base, tmp_path / "wide").err.startswith("error: the models are 16 and 32 wide")


def test_specs_and_shapes_that_differ_are_listed() -> None:
    a, b = made(decoder_spec(60, 16, 2, 2, 32)), made(decoder_spec(60, 16, 2, 2, 32, theta=500.0, ffn=96))
    places = {path: pair for path, *pair in compare_specs(a.spec, b.spec)}
    assert places["layers[0].ffn.hidden"] == [64, 96]
    assert places["layers[1].mixer.position.theta"] == [10000.0, 500.0]
    shapes = {row.name: row.told for row in compare_weights(a.model, b.model) if row.difference is None}
    assert shapes["layers.0.ffn.up.weight"] == "(64, 16) in A, (96, 16) in B"
    rows = compare(a, b, torch.arange(20)[None])
    assert first_apart(rows, 1e-4) == rows[1]


def test_the_head_of_a_task_is_compared_too(dougong: Callable, tmp_path: Path) -> None:
    spec = replace(decoder_spec(60, 16, 1, 2, 32), head=None, task=Classifier(("no", "yes"), at="last", bias=False))
    save(made(spec), tmp_path / "base")
    result = dougong("diff", tmp_path / "base", changed(tmp_path / "base", "task.output.weight"))
    assert result.status == 1
    assert "they part at task" in result.out
    wider = made(replace(spec, task=Classifier(("no", "yes", "perhaps"), at="last", bias=False)))
    rows = compare(load(tmp_path / "base"), wider, torch.tensor([[1, 2, 3]]))
    assert [row.part for row in rows][-1] == "norm"


def test_the_text_or_the_tokens_to_compare_with(dougong: Callable, model: Path, base: Path) -> None:
    assert dougong("diff", model, model, "--text", "the cat").status == 0
    assert dougong("diff", base, base, "--tokens", 1, 2, 3).status == 0
    for args, told in (
        (["--text", "the cat"], "has no tokenizer"),
        (["--text", "a", "--tokens", "1"], "not both"),
        (["--tokens", "60"], "token 60 is outside the vocabulary"),
        (["--tokens", "-1"], "token -1 is outside the vocabulary"),
    ):
        result = dougong("diff", base, base, *args)
        assert result.status == 1
        assert told in result.err
        assert result.err.count("\n") == 1
