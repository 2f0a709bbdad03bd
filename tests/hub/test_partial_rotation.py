"""A share of each head turns; where it comes out odd, one coordinate more, as transformers has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import dougong
from dougong.base import DougongError
from dougong.hub.families import FAMILIES
from dougong.parts.attention import Attention
from dougong.parts.rope import Rope
from tests.hub import foreign, test_parity, walk

pytest.importorskip("transformers", reason="transformers is the reference that is compared with")

SHARES = {"glm": 0.75, "glm4": 0.75, "glm4_moe": 0.75, "minimax_m2": 0.75, "qwen3_next": 0.75, "qwen3_5_text": 0.42}
KINDS: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {"rope_type": "longrope", "short_factor": [1.1, 1.3, 2.0, 2.5, 3.0], "long_factor": [2.0, 2.5, 3.0, 4.0, 5.0]},
]


def drawn(family: str, share: float, scaling: dict[str, Any]) -> dict[str, Any]:
    """Heads of 12 coordinates."""
    rope = {**scaling, "rope_theta": 100.0, "partial_rotary_factor": share}
    if scaling["rope_type"] in ("llama3", "longrope"):
        rope["original_max_position_embeddings"] = 16
    config = foreign.draw_config(family, 0) | {"head_dim": 12, "max_position_embeddings": 32, "rope_parameters": rope}
    for name in ("partial_rotary_factor", "rope_scaling", "rope_theta"):  # some draws have the old spelling
        config.pop(name, None)
    return config | ({"rotary_dim": int(12 * share)} if family == "minimax_m2" else {})


@pytest.mark.parametrize("scaling", KINDS[:4], ids=lambda scaling: scaling["rope_type"])
@pytest.mark.parametrize("family", SHARES)
def test_a_share_of_one_coordinate_turns_two(family: str, scaling: dict[str, Any]) -> None:
    config = drawn(family, 0.25, scaling) | {"head_dim": 4}
    config |= {"rotary_dim": 1} if family == "minimax_m2" else {}
    assert walk.outcome(family, config)[0] == "same"


@pytest.mark.parametrize("scaling", KINDS, ids=lambda scaling: scaling["rope_type"])
@pytest.mark.parametrize("family", SHARES)
def test_an_odd_share_turns_what_transformers_turns(family: str, scaling: dict[str, Any], tmp_path: Path) -> None:
    share = SHARES[family]
    if family == "qwen3_5_text":
        scaling = {name: each[:3] if isinstance(each, list) else each for name, each in scaling.items()}
    theirs = foreign.build(family, drawn(family, share, scaling), 3)
    theirs.save_pretrained(tmp_path / "in")
    lm = dougong.load(tmp_path / "in")
    rope = next(layer.mixer.position for layer in lm.spec.layers if isinstance(layer.mixer, Attention))
    assert isinstance(rope, Rope)
    assert (rope.size, rope.spread) == (int(12 * share) + 1, int(12 * share))
    tokens = torch.randint(5, 40, (2, foreign.LONG), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for length in (foreign.SHORT, foreign.LONG):
            ours = lm.model(tokens[:, :length]).logits
            assert foreign.error(ours, foreign.logits(theirs, tokens[:, :length])) <= test_parity.TOLERANCE
    config = FAMILIES[family].to_config(lm.spec)
    assert FAMILIES[family].from_config(config) == lm.spec


def test_what_cannot_turn_is_refused() -> None:
    config = drawn("glm", 0.75, KINDS[0])
    whole = config | {"head_dim": 9, "rope_parameters": {**config["rope_parameters"], "partial_rotary_factor": 1.0}}
    with pytest.raises(DougongError, match="head_dim is 9; expected an even number"):
        FAMILIES["glm"].from_config(whole)  # a head has no tenth coordinate
    none = config | {"rope_parameters": {**config["rope_parameters"], "partial_rotary_factor": 0.05}}
    with pytest.raises(DougongError, match=r"partial_rotary_factor is 0\.05; expected .* head's 12"):
        FAMILIES["glm"].from_config(none)
    neox = foreign.draw_config("gpt_neox", 3) | {"rotary_pct": 0.01}
    with pytest.raises(DougongError, match=r"rotary_pct is 0\.01; expected a share"):  # by the family's name
        FAMILIES["gpt_neox"].from_config(neox)
    yarn = {**config["rope_parameters"], "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16}
    with pytest.raises(DougongError, match="rope_type is 'yarn'; expected another kind"):
        FAMILIES["glm"].from_config(config | {"rope_parameters": yarn})
