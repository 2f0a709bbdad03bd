"""Falcon with ALiBi, as Falcon-RW: against transformers' usual attention, for its "eager" one adds ALiBi twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import dougong
from dougong.hub import LanguageModel
from dougong.hub.families import falcon
from dougong.parts.position import Alibi
from tests.hub import foreign
from tests.hub.conftest import filled

transformers = pytest.importorskip("transformers", reason="transformers is the reference that is compared with")


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 6, 8, 12, 16])
@pytest.mark.parametrize("architecture", ["rw", "parallel", "new"])
def test_logits_with_alibi(architecture: str, heads: int, tmp_path: Path) -> None:
    kind = {
        "rw": {"multi_query": False, "parallel_attn": False, "bias": True},
        "parallel": {"multi_query": True},
        "new": {"new_decoder_architecture": True, "num_kv_heads": heads},
    }[architecture]
    sizes = {"vocab_size": 50, "hidden_size": 6 * heads, "num_hidden_layers": 2, "num_attention_heads": heads}
    spec = falcon.from_config({"model_type": "falcon", **sizes, **kind, "alibi": True, "eos_token_id": 4})
    assert spec.layers[0].mixer.position == Alibi(factor=6**-0.5, rounded=True)
    dougong.save(LanguageModel(filled(spec), family="falcon"), tmp_path / "m")
    assert "rope_theta" not in json.loads((tmp_path / "m" / "config.json").read_text())
    again = dougong.load(tmp_path / "m")
    assert again.spec == spec
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", attn_implementation="sdpa").eval()
    # Beyond 256 tokens bfloat16 does not hold every position.
    tokens = torch.randint(50, (2, 400), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = again.model(tokens).logits
        assert foreign.error(whole, foreign.logits(theirs, tokens)) <= 1e-5
        cache, start = again.model.cache(2, 400), 390
        again.model.run(tokens[:, :start], cache.context(tokens[:, :start]), cache)
        cache.advance(start)
        for place in range(start, 400):
            token = tokens[:, place : place + 1]
            step = again.model.run(token, cache.context(token), cache).logits
            cache.advance(1)
            assert foreign.error(step[:, 0], whole[:, place]) <= 1e-5
