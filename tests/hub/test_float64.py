"""Parity where nothing is rounded: in float64 the logits are those of transformers to nine digits, for every family.
What float32 then shows between the two is rounding, on either side."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

import dougong

pytest.importorskip("transformers", reason="transformers is the reference that is compared with")

from tests.hub import foreign
from tests.hub.double import doubled
from tests.hub.walk import WALKED, build, draw, outcome

# Longer than a chunk of the recurrences, and no multiple of it.
RECURRENT, BEYOND = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "kimi_linear", "minimax", "mamba2", "jamba"), 150
# Keys and queries are brought to length 1, and values of each head to a mean square of 1. With heads of so few
# coordinates some token's are all close to 0, and then the last digit of float32 counts a thousandfold.
ILL: list[tuple[str, int, dict[str, Any], int]] = [
    ("qwen3_next", 7101, {"linear_value_head_dim": 6}, 40),
    ("qwen3_next", 7101, {"linear_key_head_dim": 5}, 40),
    ("qwen3_5_text", 20096, {"head_dim": 32, "linear_key_head_dim": 3, "linear_value_head_dim": 3}, 150),
]


@pytest.mark.parametrize("seed", [60, 61, 62])
@pytest.mark.parametrize("family", WALKED)
def test_logits_in_float64(family: str, seed: int) -> None:
    length = BEYOND if family in RECURRENT else foreign.LONG
    # transformers makes no model of some drawings.
    drawn = (outcome(family, draw(family, each), length) for each in count(seed, 100))
    assert next(each for each in drawn if each[0] != "no model")[0] == "same"


@pytest.mark.parametrize(("family", "seed", "changed", "length"), ILL)
def test_what_float32_leaves_open_is_rounding(
    family: str, seed: int, changed: dict[str, Any], length: int, tmp_path: Path
) -> None:
    """Models whose float32 logits part by more than 1e-4: in float64 they are equal, and moved by as much when every
    weight moves by no more than rounding it to float32 may move it."""
    config = {**draw(family, seed), **changed}
    assert outcome(family, config, length)[0] == "same"
    build(family, config).save_pretrained(tmp_path)
    lm, moved = dougong.load(tmp_path, dtype=torch.float64), 0.0
    tokens = torch.randint(5, 40, (2, length), generator=torch.Generator().manual_seed(3))
    with torch.no_grad(), doubled():
        exact = lm.model(tokens).logits
        weights = {name: weight.clone() for name, weight in lm.model.named_parameters()}
        for each in range(6):
            generator = torch.Generator().manual_seed(each)
            for name, weight in lm.model.named_parameters():
                weight.copy_(weights[name] * (1 + 2**-24 * (2 * torch.rand(weight.shape, generator=generator) - 1)))
            moved = max(moved, foreign.error(lm.model(tokens).logits, exact))
    assert moved > 1e-4
