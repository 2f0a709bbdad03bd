"""8-bit floats with scales beside them give the weights that they stand for, and every scale has its weight."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import dougong
from dougong.hub import LanguageModel
from dougong.hub.families import FAMILIES
from tests.hub.conftest import filled
from tests.hub.test_files import assert_same, edit
from tests.hub.test_load_errors import refused, rewrite

WEIGHTS = "model.safetensors"
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "modules_to_not_convert": ["lm_head"]}
Block = tuple[int, int]
UP = "model__layers__0__mlp__up_proj"
ALL = 10**6
WHOLE, ROWS = (ALL, ALL), (1, ALL)


def quantise(
    folder: Path, block: Block, suffix: str, kind: torch.dtype = torch.float8_e4m3fn, **more: Tensor
) -> dict[str, Tensor]:
    """Turn the matrices of the layers of a saved model into 8-bit floats, each block with its scale; the weights that
    this leaves, block by block."""
    tensors = load_file(folder / WEIGHTS)
    out, held = dict(tensors), dict(tensors)
    for name, weight in tensors.items():
        if "proj.weight" not in name:
            continue
        out[name], held[name] = weight.to(kind), weight.clone()
        scales = torch.empty(-(-weight.shape[0] // block[0]), -(-weight.shape[1] // block[1]))
        for i, j in product(range(scales.shape[0]), range(scales.shape[1])):
            place = slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1])
            scales[i, j] = weight[place].abs().max() / torch.finfo(kind).max
            out[name][place] = (weight[place] / scales[i, j]).to(kind)
            held[name][place] = out[name][place].float() * scales[i, j]
        out[name.removesuffix(".weight") + suffix] = scales.view(()) if block == WHOLE else scales
    save_file({**out, **{name.replace("__", "."): tensor for name, tensor in more.items()}}, folder / WEIGHTS)
    return held


def compressed(strategy: str, **more: Any) -> dict[str, Any]:
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False, "strategy": strategy, **more}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": {"num_bits": 8, "dynamic": True}}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quantization_status": "compressed",
        "sparsity_config": {"format": "dense"},
        "version": "0.9",
    }


LAYOUTS: dict[str, tuple[dict[str, Any], Block, str]] = {
    "blocks": ({**FP8, "weight_block_size": [8, 6]}, (8, 6), ".weight_scale_inv"),
    "matrix": (FP8, WHOLE, ".weight_scale"),
    "matrix, named as inverse": ({**FP8, "weight_block_size": None}, WHOLE, ".weight_scale_inv"),
    "rows": ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, ROWS, ".weight_scale"),
    "compressed matrix": (compressed("tensor"), WHOLE, ".weight_scale"),
    "compressed rows": (compressed("channel"), ROWS, ".weight_scale"),
    "compressed groups": (compressed("group", group_size=4), (1, 4), ".weight_scale"),
    "compressed blocks": (compressed("block", block_structure=[8, 6]), (8, 6), ".weight_scale"),
}


@pytest.fixture(params=["llama", "qwen3", "qwen3_moe"])
def plain(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A saved model whose matrices are no whole number of blocks."""
    config = {"vocab_size": 40, "hidden_size": 20, "intermediate_size": 36, "num_hidden_layers": 2, "head_dim": 8}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32}
    if request.param == "qwen3_moe":
        config |= {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
    model = filled(FAMILIES[request.param].from_config(config))
    dougong.save(LanguageModel(model, family=request.param), tmp_path / "m")
    return tmp_path / "m"


def logits(lm: LanguageModel) -> Tensor:
    with torch.no_grad():
        return lm.model(torch.arange(20)[None]).logits


@pytest.mark.parametrize("name", LAYOUTS)
def test_eight_bit_floats_are_multiplied_out(name: str, plain: Path) -> None:
    config, block, suffix = LAYOUTS[name]
    held = quantise(plain, block, suffix)
    edit(plain, quantization_config=config, torch_dtype="bfloat16")
    half = dougong.load(plain)
    assert {weight.dtype for weight in half.model.parameters()} == {torch.bfloat16}
    full = dougong.load(plain, dtype="float32")
    assert {weight.dtype for weight in full.model.parameters()} == {torch.float32}
    edit(plain, quantization_config=None, torch_dtype="float32")
    save_file(held, plain / WEIGHTS)
    assert_same(full, dougong.load(plain))
    assert torch.equal(logits(half), logits(dougong.load(plain, dtype="bfloat16")))


def test_other_kinds_of_eight_bits(plain: Path) -> None:
    held = quantise(plain, WHOLE, ".weight_scale", torch.float8_e5m2)
    edit(plain, quantization_config={**FP8, "fmt": "e5m2"})
    full = dougong.load(plain, dtype="float32")
    save_file(held, plain / WEIGHTS)
    edit(plain, quantization_config=None)
    assert_same(full, dougong.load(plain))


def test_scales_that_are_powers_of_two(saved: Path) -> None:
    """DeepSeek-V3.1's ue8m0: scales of an exponent alone."""
    name = "model.layers.0.mlp.up_proj.weight"
    tensors = load_file(saved / WEIGHTS)
    rough = (tensors[name] * 16).to(torch.float8_e4m3fn)
    tensors |= {name: rough, f"{name}_scale_inv": torch.tensor([[2.0**-4]]).to(torch.float8_e8m0fnu)}
    save_file(tensors, saved / WEIGHTS)
    edit(saved, quantization_config={**FP8, "weight_block_size": [128, 128], "scale_fmt": "ue8m0"})
    found = dougong.load(saved, dtype="float32").model.weights()["layers.0.ffn.up.weight"]
    assert torch.equal(found, rough.float() / 16)


def test_what_a_file_without_scales_holds_is_taken_as_it_is(saved: Path) -> None:
    tensors = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in load_file(saved / WEIGHTS).items()}
    save_file(tensors, saved / WEIGHTS)
    edit(saved, torch_dtype=None)
    lm = dougong.load(saved)
    assert {weight.dtype for weight in lm.model.parameters()} == {torch.bfloat16}
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(lm.model.weights()["layers.0.ffn.up.weight"], tensors[name].bfloat16())
    assert logits(lm).isfinite().all()


def test_the_scales_of_activations_are_left_aside(saved: Path) -> None:
    quantise(saved, WHOLE, ".weight_scale", **{f"{UP}__input_scale": torch.ones(())})
    edit(saved, quantization_config={**FP8, "activation_scheme": "static"})
    dougong.load(saved)
    rewrite(saved, model__norm__input_scale=torch.ones(()))
    refused(saved, "holds 1 tensors", "model.norm.input_scale")


def test_saved_again_it_is_a_plain_model(plain: Path, tmp_path: Path) -> None:
    quantise(plain, ROWS, ".weight_scale")
    edit(plain, quantization_config=compressed("channel"))
    lm = dougong.load(plain)
    dougong.save(lm, tmp_path / "again")
    assert "quantization_config" not in json.loads((tmp_path / "again/config.json").read_text())
    assert_same(lm, dougong.load(tmp_path / "again"))


def test_scales_belong_to_weights(saved: Path) -> None:
    scale, inverse = f"{UP}__weight_scale", f"{UP}__weight_scale_inv"
    quantise(saved, WHOLE, ".weight_scale", **{inverse: torch.ones(())})
    edit(saved, quantization_config=FP8)
    refused(saved, "up_proj.weight has two scales")
    rewrite(saved, **{scale: None, inverse: None})
    refused(saved, "up_proj.weight is torch.float8_e4m3fn", "no scale beside it")
    rewrite(saved, **{scale: torch.ones(7, 1)})
    refused(saved, "up_proj.weight_scale is (7, 1)", "(64, 1)")
    for shape in ((), (1,), (1, 1), (64,), (64, 1)):
        rewrite(saved, **{scale: torch.ones(shape)})
        dougong.load(saved)


def test_scales_without_their_weights(saved: Path) -> None:
    lost = "model__layers__9__mlp__up_proj__weight_scale"
    quantise(saved, WHOLE, ".weight_scale", **{lost: torch.ones(())})
    edit(saved, quantization_config=FP8)
    refused(saved, "holds 1 tensors", "model.layers.9.mlp.up_proj.weight_scale")
    edit(saved, quantization_config=None)
    refused(saved, "holds 15 tensors", "proj.weight_scale")
    edit(saved, quantization_config=FP8)
    rewrite(saved, **{lost: None, "model__norm__weight_scale": torch.ones(3)})
    refused(saved, "model.norm.weight_scale is (3,)", "one number")
    rewrite(saved, model__norm__weight_scale=torch.ones(()))
    refused(saved, "model.norm.weight is torch.float32, but has the scale")


def test_blocks_of_another_size(saved: Path) -> None:
    quantise(saved, (8, 8), ".weight_scale_inv")
    edit(saved, quantization_config={**FP8, "weight_block_size": [16, 8]})
    refused(saved, "down_proj.weight_scale_inv is (2, 8)", "blocks of (16, 8)", "expected (1, 8)")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "gptq", "bits": 4}, ["'gptq'", "later version"]),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, ["'bitsandbytes'"]),
        ("fp8", ["'fp8'", "a mapping"]),
        ({**FP8, "fmt": "e3m4"}, ["fmt is 'e3m4'"]),
        ({**FP8, "weight_block_size": [128]}, ["weight_block_size is [128]"]),
        ({**FP8, "expert_dtype": "fp4"}, ["quantization_config.expert_dtype is 'fp4'"]),
        ({**compressed("tensor"), "format": "pack-quantized"}, ["format is 'pack-quantized'"]),
        ({**compressed("tensor"), "kv_cache_scheme": {"num_bits": 8}}, ["kv_cache_scheme"]),
        ({**compressed("tensor"), "sparsity_config": {"format": "sparse-24"}}, ["sparsity_config"]),
        (compressed("tensor", num_bits=4), ["group_0.weights.num_bits is 4"]),
        (compressed("tensor", type="int"), ["weights.type is 'int'"]),
        (compressed("token"), ["strategy is 'token'"]),
        ({**compressed("tensor"), "config_groups": {}}, ["config_groups is {}"]),
    ],
)
def test_other_quantizations_are_refused_by_name(config: Any, words: list[str], saved: Path) -> None:
    edit(saved, quantization_config=config)
    refused(saved, "config.json of llama", "quantization_config", *words)
