"""Foreign checkpoints in and out: the logits of transformers, and its own tensors back bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dougong
from dougong.hub.families import FAMILIES, harmless
from tests.hub import foreign
from tests.hub.draws import DRAWN

pytest.importorskip("transformers", reason="transformers is the reference that is compared with")

TOLERANCE = 1e-4
DECODERS = [family for family in FAMILIES if family in DRAWN]  # of other shapes: test_parity_shapes.py
LLAMA_KIN = ("llama", "mistral", "qwen2", "qwen3", "gpt2")


@pytest.mark.parametrize(
    ("family", "seed"),
    [(family, seed) for family in DECODERS for seed in range(foreign.DRAWS if family in LLAMA_KIN else foreign.FEW)],
)
def test_logits_and_files_equal_those_of_transformers(family: str, seed: int, tmp_path: Path) -> None:
    config = foreign.draw_config(family, seed)
    theirs = foreign.build(family, config, seed)
    theirs.save_pretrained(tmp_path / "in")
    spelling = (None, "type", "rope_type")[(seed + seed // len(foreign.KINDS)) % 3]  # each for each kind of scaling
    if spelling and "rope_parameters" in config:
        foreign.respell(tmp_path / "in", spelling)
    lm = dougong.load(tmp_path / "in")
    assert lm.family == family
    assert lm.eos_ids == (4,)
    assert lm.spec.parameters() == sum(parameter.numel() for parameter in theirs.parameters())

    generator = torch.Generator().manual_seed(seed)
    short = torch.randint(config["vocab_size"], (1, foreign.SHORT), generator=generator)
    long = torch.randint(config["vocab_size"], (2, foreign.LONG), generator=generator)
    padding = torch.zeros(2, foreign.LONG, dtype=torch.bool)
    padding[1, :17] = True  # row 1 has 23 tokens behind padding on the left
    # Padding means nothing here: the truth of a padded row is the row alone. transformers agrees but for the scalings
    # that depend on a text's length, where it lets the longest row of the batch decide for all.
    # (Shortest text first: its dynamic scaling never shrinks back to a text beyond the original length.)
    expected = {"short": foreign.logits(theirs, short)}
    alone = foreign.logits(theirs, long[1:, 17:])
    expected["long"] = foreign.logits(theirs, long)
    kin = family in LLAMA_KIN and not any(kind in str(config) for kind in ("dynamic", "longrope"))
    padded = foreign.logits(theirs, long, padding) if kin else None
    with torch.no_grad():
        assert foreign.error(lm.model(short).logits, expected["short"]) <= TOLERANCE
        assert foreign.error(lm.model(long).logits, expected["long"]) <= TOLERANCE
        ours = lm.model(long, padding=padding).logits
        assert foreign.error(ours[1:, 17:], alone) <= TOLERANCE
        assert padded is None or foreign.error(ours[~padding], padded[~padding]) <= TOLERANCE

    dougong.save(lm, tmp_path / "out")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("in", "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = foreign.reopen(tmp_path / "out")
    assert torch.equal(foreign.logits(again, short), expected["short"])
    assert torch.equal(foreign.logits(again, long), expected["long"])
    first, second = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("in", "out"))
    assert first == {key: value for key, value in second.items() if key in first}

    # The same through a config.json of our own making, as a model trained here gets one.
    lm.config = harmless(lm.config)
    dougong.save(lm, tmp_path / "own")
    assert dougong.load(tmp_path / "own").spec == lm.spec
    assert foreign.error(foreign.logits(foreign.reopen(tmp_path / "own"), long), expected["long"]) <= 1e-6


@pytest.mark.parametrize("family", DECODERS)
def test_bfloat16_stays_unless_another_type_is_asked_for(family: str, tmp_path: Path) -> None:
    theirs = foreign.build(family, foreign.draw_config(family, 0)).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "in")
    lm = dougong.load(tmp_path / "in")
    assert {weight.dtype for weight in lm.model.weights().values()} == {torch.bfloat16}
    dougong.save(lm, tmp_path / "out")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("in", "out"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    wide = dougong.load(tmp_path / "in", dtype="float32")
    tokens = torch.arange(9)[None]
    exact = foreign.logits(foreign.reopen(tmp_path / "in", dtype="float32"), tokens)
    with torch.no_grad():
        assert foreign.error(wide.model(tokens).logits, exact) <= TOLERANCE
        assert foreign.error(lm.model(tokens).logits.float(), exact) <= 0.1


@pytest.mark.parametrize("family", LLAMA_KIN)
def test_defaults_of_transformers_fill_keys_that_a_config_leaves_out(family: str, tmp_path: Path) -> None:
    """A config.json with the required sizes alone means the same here and there."""
    import transformers

    config = foreign.draw_config(family, 0)
    needed = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    needed = ("vocab_size", "n_embd", "n_head", "n_layer") if family == "gpt2" else needed
    bare = {key: config[key] for key in needed}
    if family != "gpt2":  # the default of 32 key heads (Mistral: 8) asks for as many heads
        bare |= {"num_attention_heads": 32, "hidden_size": 64}
    whole = transformers.AutoConfig.for_model(family, **bare).to_dict()
    read = FAMILIES[family].from_config
    assert read({"model_type": family, **bare}) == read(json.loads(json.dumps(whole, default=str)))
