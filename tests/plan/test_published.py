"""Parameter counts of published models, from their published config.json alone, to the last one."""

from __future__ import annotations

import pytest

from dougong.hub.families import family_named
from dougong.model import ModelSpec
from dougong.plan import plan
from tests.plan.published import MODELS


def read(name: str) -> ModelSpec:
    config = MODELS[name].config
    return family_named(config["model_type"]).from_config(config)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_equal_the_published_count(name: str) -> None:
    spec, published = read(name), MODELS[name]
    assert spec.parameters() == published.parameters
    assert spec.active_parameters() == (published.active or published.parameters)


@pytest.mark.parametrize("name", [name for name, published in MODELS.items() if published.told])
def test_papers_and_cards_tell_the_same(name: str) -> None:
    """Rounded in many ways, embeddings now in and now out: within two parts in a hundred."""
    told = MODELS[name].told
    assert told is not None
    spec = read(name)
    assert spec.parameters() / 1e9 == pytest.approx(told[0], rel=0.02)
    if told[1] is not None:
        assert spec.active_parameters() / 1e9 == pytest.approx(told[1], rel=0.02)


def test_a_thousand_tokens_of_llama_7b_keep_half_a_gigabyte() -> None:
    """2 x 32 layers x 4096 x 2 bytes = 0.5 MB a token: a quarter of the 2 GB that is often told."""
    bill = plan(read("llama-7b"), serving_context=1000, serving_dtype="float16")
    assert bill.serving.state_bytes_per_token == 2 * 32 * 4096 * 2
    assert bill.serving.state_bytes == 524_288_000


def test_flops_agree_with_the_rule_of_six() -> None:
    """Training takes about 6 operations a parameter and token (Kaplan et al. 2020), embeddings and attention aside."""
    spec = read("llama-7b")
    bill = plan(spec)
    matrices = bill.parameters - spec.vocab * spec.width
    assert 6 * matrices < bill.training_flops_per_token < 1.1 * 6 * matrices
