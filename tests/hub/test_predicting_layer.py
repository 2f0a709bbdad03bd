"""Layers for predicting further tokens (MTP): read, saved and computing as DeepSeek-V3's form and Qwen3-Next's say.

transformers leaves these layers out. So the files are made of one of its models with a layer too many: that layer is
renamed, and its own modules say what it computes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

import dougong
from dougong.base import DougongError, read_json, write_json
from tests.hub import foreign

pytest.importorskip("transformers", reason="the checkpoints are made by transformers")

DEEPSEEK = {"join": "eh_proj", "token": "enorm", "hidden": "hnorm", "out": "shared_head.norm"}
QWEN = {"join": "fc", "token": "pre_fc_norm_embedding", "hidden": "pre_fc_norm_hidden", "out": "norm"}
FAMILIES = ["deepseek_v3", "deepseek_v32", "glm4_moe", "qwen3_next", "qwen3_5_text"]


def make(family: str, folder: Path, seed: int = 1) -> tuple[Any, dict[str, Tensor]]:
    """A checkpoint with such a layer; transformers' model that has it as its only one, and the layer's own weights."""
    config = foreign.draw_config(family, seed)
    depth = config["num_hidden_layers"] = config["num_hidden_layers"] + 1
    config["first_k_dense_replace"] = min(config.get("first_k_dense_replace", 0), depth - 2)
    config.pop("mlp_layer_types", None)
    hybrid = family.startswith("qwen")
    if hybrid:
        config["layer_types"] = ["linear_attention"] * (depth - 2) + ["full_attention"] * 2
        if family == "qwen3_next":
            config |= {"mlp_only_layers": [], "decoder_sparse_step": 1}
    elif "layer_types" in config:
        config["layer_types"] = [config["layer_types"][0]] * depth
    reference = foreign.build(family, config, seed)
    reference.save_pretrained(folder)
    held = load_file(folder / "model.safetensors")
    old, names = f"model.layers.{depth - 1}.", QWEN if hybrid else DEEPSEEK
    new, top = ("mtp.layers.0.", "mtp.") if hybrid else (old, old)
    torch.manual_seed(seed)
    width = reference.config.hidden_size
    own = {
        "join": torch.randn(width, 2 * width) * 0.2,
        **{part: torch.randn(width) for part in ("token", "hidden", "out")},
    }
    held = {name.replace(old, new): each for name, each in held.items()}
    held |= {f"{top}{names[part]}.weight": each for part, each in own.items()}
    if not hybrid:
        head = "model.embed_tokens.weight" if "lm_head.weight" not in held else "lm_head.weight"
        held[f"{old}embed_tokens.weight"] = held["model.embed_tokens.weight"]
        held[f"{old}shared_head.head.weight"] = held[head]
    save_file({name: each.contiguous().clone() for name, each in held.items()}, folder / "model.safetensors")
    said = read_json(folder / "config.json") | {"num_hidden_layers": depth - 1}
    for key in ("layer_types", "mlp_layer_types"):
        if key in said:
            said[key] = said[key][:-1]
    write_json(folder / "config.json", said)
    reference.model.layers = reference.model.layers[-1:]
    reference.config.num_hidden_layers = 1
    if hybrid:
        reference.config.layer_types = reference.model.config.layer_types = ["full_attention"]
    return reference, own


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", [1, 4])
def test_the_layer_computes_what_its_family_says(family: str, seed: int, tmp_path: Path) -> None:
    reference, own = make(family, tmp_path / "in", seed)
    lm = dougong.load(tmp_path / "in")
    assert lm.spec.mtp is not None and lm.model.mtp is not None
    tokens = torch.randint(lm.spec.vocab, (2, 7), generator=torch.Generator().manual_seed(seed))
    ctx = dougong.parts.context.Context.of(tokens)
    with torch.no_grad():
        hidden, embedded = lm.model(tokens).hidden, lm.model.embedding(tokens, ctx)
        got = lm.model.mtp(hidden, embedded, ctx)[0]
        norm = reference.model.norm

        def normed(part: str, x: Tensor) -> Tensor:
            norm.weight.copy_(own[part])
            return norm(x)

        joined = torch.cat((normed("token", embedded[:, 1:]), normed("hidden", hidden[:, :-1])), -1) @ own["join"].T
        norm.weight.copy_(own["out"])
        want = reference.model(inputs_embeds=joined, use_cache=False).last_hidden_state
    scale = want.abs().max()
    assert_close(got[:, :-1] / scale, want / scale, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_saved_back_bit_for_bit(family: str, tmp_path: Path) -> None:
    make(family, tmp_path / "in")
    lm = dougong.load(tmp_path / "in")
    dougong.save(lm, tmp_path / "out")
    before, after = (load_file(tmp_path / each / "model.safetensors") for each in ("in", "out"))
    twice = ("embed_tokens.weight", "shared_head.head.weight")
    gone = {name for name in before if name.endswith(twice) and "layers" in name}
    assert set(after) == set(before) - gone
    assert all(torch.equal(after[name], before[name]) for name in after)
    assert dougong.load(tmp_path / "out").spec == lm.spec
    fresh = dougong.LanguageModel(lm.model, None, family)  # without the config it came with
    dougong.save(fresh, tmp_path / "fresh")
    assert dougong.load(tmp_path / "fresh").spec == lm.spec


@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe", "qwen3_next"])
def test_a_layer_out_of_order_is_an_error(family: str, tmp_path: Path) -> None:
    make(family, tmp_path)
    depth = dougong.load(tmp_path).spec.depth
    file = tmp_path / "model.safetensors"
    old, new = f"layers.{depth}.", f"layers.{depth + 1}."
    if family == "qwen3_next":
        old, new = "mtp.layers.0", "mtp.layers.2"
    save_file({name.replace(old, new): each for name, each in load_file(file).items()}, file)
    with pytest.raises(DougongError, match=new):
        dougong.load(tmp_path)


def test_a_further_head_of_its_own_is_refused(tmp_path: Path) -> None:
    make("deepseek_v3", tmp_path)
    file = tmp_path / "model.safetensors"
    held = load_file(file)
    name = next(each for each in held if each.endswith("shared_head.head.weight"))
    save_file(held | {name: held[name] + 1}, file)
    with pytest.raises(DougongError, match=r"shared_head\.head"):
        dougong.load(tmp_path)
