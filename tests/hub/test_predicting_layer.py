"""Files of DeepSeek-V3's form hold one more layer, for predicting a further token: it is passed over, no other is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import dougong
from dougong.base import DougongError
from dougong.hub.families.names import PREDICTING
from tests.hub import foreign

pytest.importorskip("transformers", reason="the checkpoints are made by transformers")


@pytest.mark.parametrize("family", ["deepseek_v3", "deepseek_v32", "glm4_moe"])
def test_the_further_layer_is_passed_over(family: str, tmp_path: Path) -> None:
    config = foreign.draw_config(family, 1)
    foreign.build(family, config, 1).save_pretrained(tmp_path / "in")
    file = tmp_path / "in" / "model.safetensors"
    held = load_file(file)
    plain = dougong.load(tmp_path / "in")
    depth = len(plain.spec.layers)
    last = {name: each for name, each in held.items() if f"layers.{depth - 1}." in name}
    further = {name.replace(f"layers.{depth - 1}.", f"layers.{depth}."): each for name, each in last.items()}
    further |= {f"model.layers.{depth}.{name}.weight": torch.ones(3) for name in PREDICTING}
    save_file({name: each.contiguous().clone() for name, each in (held | further).items()}, file)
    lm = dougong.load(tmp_path / "in")
    assert all(torch.equal(a, b) for a, b in zip(lm.model.parameters(), plain.model.parameters(), strict=True))
    beyond = {name.replace(f"layers.{depth}.", f"layers.{depth + 1}."): each.clone() for name, each in further.items()}
    save_file(held | beyond, file)
    with pytest.raises(DougongError, match=f"layers.{depth + 1}"):
        dougong.load(tmp_path / "in")
