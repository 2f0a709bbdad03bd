"""Other ways to keep the same weights: pickles that may run nothing, parts of a whole; config.json's spellings."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
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
from tests.hub.test_float8 import FP8, quantise
from tests.hub.test_load_errors import refused

SMALL = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL |= {"num_key_value_heads": 2, "num_local_experts": 4}
WEIGHTS, BIN, INDEX = "model.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json"


# -- pickles -----------------------------------------------------------------------------------------------------------


class Runs:
    """Unpickled, it calls a function."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("function", [os.system, eval, getattr])
def test_a_pickle_runs_nothing(function: Any, zipped: bool, protocol: int, saved: Path, tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    words = {os.system: f"touch {witness}", eval: f"open({str(witness)!r}, 'w')"}.get(function)
    evil = Runs(function, words) if words else Runs(getattr, torch.Tensor, "sum")
    tensors = load_file(saved / WEIGHTS)
    (saved / WEIGHTS).unlink()
    torch.save({**tensors, "x": evil}, saved / BIN, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    name = "posix.system" if function is os.system else f"{function.__name__}, which no weights need"
    refused(saved, BIN, "is refused", name)
    assert not witness.exists()
    with (saved / BIN).open("wb") as stream:
        pickle.dump({"x": evil}, stream, protocol)
    refused(saved, BIN, "is refused", name)
    assert not witness.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_pickles_of_other_things(saved: Path) -> None:
    tensors = load_file(saved / WEIGHTS)
    (saved / WEIGHTS).unlink()
    torch.save({**tensors, "x": torch.nn.Linear(2, 2)}, saved / BIN)
    refused(saved, BIN, "is refused", "Linear")
    torch.save({**tensors, 3: torch.zeros(2)}, saved / BIN)
    refused(saved, BIN, "names a tensor 3")
    torch.save(tensors, saved / BIN, pickle_protocol=4)
    refused(saved, BIN, "protocol 4 or later", "convert it to safetensors")
    first = next(iter(tensors))
    for odd, told in (
        (tensors[first].to_sparse(), "is torch.sparse_coo"),
        (tensors[first].to("meta"), "has no values"),
    ):
        torch.save({**tensors, first: odd}, saved / BIN)
        refused(saved, BIN, first, told)
    torch.save(tensors, saved / BIN)
    whole = (saved / BIN).read_bytes()
    for share in (2, 3, 20):
        (saved / BIN).write_bytes(whole[: len(whole) // share])
        refused(saved, BIN, "damaged or cut short")
    with tarfile.open(saved / BIN, "w") as tar:  # the format before torch 0.4
        for name in ("sys_info", "pickle", "storages", "tensors"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    refused(saved, BIN, "older than torch 0.4")


def test_parameters_and_shared_memory(saved: Path, llama: LanguageModel) -> None:
    """Old training scripts saved parameters, and views of one large tensor."""
    tensors = load_file(saved / WEIGHTS)
    (saved / WEIGHTS).unlink()
    flat = torch.cat([tensor.flatten() for tensor in tensors.values()])
    views = dict(zip(tensors, flat.split([tensor.numel() for tensor in tensors.values()]), strict=True))
    held = {name: torch.nn.Parameter(view.view(tensors[name].shape)) for name, view in views.items()}
    torch.save(held, saved / BIN)
    lm = dougong.load(saved)
    assert_same(lm, llama)
    assert all(weight.is_leaf and weight.requires_grad for weight in lm.model.parameters())


# -- types -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["bfloat16", None])
@pytest.mark.parametrize("wide", ["lm_head", "self_attn.q_proj", "embed_tokens", "down_proj"])
def test_matrices_of_several_types_become_one(wide: str, said: str | None, saved: Path) -> None:
    """The type that the config says, as in transformers; else the widest. Norms stay what they are."""
    tensors = load_file(saved / WEIGHTS)
    held = {name: each if wide in name or "norm" in name else each.bfloat16() for name, each in tensors.items()}
    save_file(held, saved / WEIGHTS)
    edit(saved, dtype=said, torch_dtype=None)
    with pytest.warns(UserWarning, match="several types"):
        lm = dougong.load(saved)
    kinds = {name: weight.dtype for name, weight in lm.model.weights().items()}
    matrices = {kind for name, kind in kinds.items() if "norm" not in name}
    assert matrices == {torch.bfloat16 if said else torch.float32}
    assert {kind for name, kind in kinds.items() if "norm" in name} == {torch.float32}
    tokens = torch.arange(9)[None]
    with torch.no_grad():
        exact = dougong.load(saved, dtype="float32").model(tokens).logits
        assert (lm.model(tokens).logits.float() - exact).norm() < 0.05 * exact.norm()


def test_experts_of_several_types_lose_nothing(tmp_path: Path) -> None:
    """Of a stack whose first entry is the narrowest."""
    spec = FAMILIES["mixtral"].from_config({"model_type": "mixtral", **SMALL})
    dougong.save(LanguageModel(filled(spec), family="mixtral"), tmp_path / "m")
    tensors = load_file(tmp_path / "m" / WEIGHTS)
    held = {name: each if ".experts.2." in name else each.half() for name, each in tensors.items()}
    assert held.keys() == tensors.keys()
    assert len({each.dtype for each in held.values()}) == 2
    save_file(held, tmp_path / "m" / WEIGHTS)
    edit(tmp_path / "m", dtype=None, torch_dtype=None)
    with pytest.warns(UserWarning, match="several types"):
        lm = dougong.load(tmp_path / "m")
    up = lm.model.weights()["layers.0.ffn.experts.up.weight"]
    name = next(name for name in tensors if ".experts.2." in name and name.endswith("w3.weight"))
    assert torch.equal(up[2], tensors[name])


# -- parts -------------------------------------------------------------------------------------------------------------


def parted(folder: Path, save: Callable[[dict[str, Tensor], Path], None], ending: str, index: str) -> dict[str, str]:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    stem = ending.removesuffix(".safetensors").removesuffix(".bin")
    places = {name: f"{stem}-{1 + ('mlp' in name):05d}-of-00002.{ending.rsplit('.', 1)[1]}" for name in tensors}
    for file in set(places.values()):
        save({name: tensors[name].clone() for name in tensors if places[name] == file}, folder / file)
    (folder / index).write_text(json.dumps({"weight_map": places}))
    return places


@pytest.mark.parametrize(
    ("save", "file", "index"),
    [(save_file, WEIGHTS, "model.safetensors.index.json"), (torch.save, BIN, INDEX)],
)
def test_parts(save: Any, file: str, index: str, saved: Path, llama: LanguageModel) -> None:
    places = parted(saved, save, file, index)
    assert_same(dougong.load(saved), llama)
    first = sorted(set(places.values()))[0]
    name = next(name for name in places if places[name] == first)
    (saved / index).write_text(json.dumps({"weight_map": {**places, "ghost.weight": first}}))
    refused(saved, index, "ghost.weight", first, "lacks it")
    for odd in ("../elsewhere.bin", "/etc/passwd", 3, None, [first]):
        (saved / index).write_text(json.dumps({"weight_map": {**places, name: odd}}))
        refused(saved, index, repr(odd), "in the same folder")
    (saved / index).write_text(json.dumps({"weight_map": places}))
    (saved / first).rename(saved / "elsewhere")
    refused(saved, "lacks 1 of the 2 files", first)
    (saved / "elsewhere").rename(saved / first)
    (saved / index).unlink()
    refused(saved, "has no weights", first, "without the index")


# -- spellings of config.json ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["torch_dtype", "dtype"])
def test_both_spellings_of_the_type(spelling: str, saved: Path, llama: LanguageModel) -> None:
    whole = json.loads((saved / "config.json").read_text())
    whole.pop("torch_dtype", None)
    (saved / "config.json").write_text(json.dumps({**whole, spelling: "float16"}))
    assert_same(dougong.load(saved), llama)  # what counts is the type in the file
    quantise(saved, (128, 128), ".weight_scale_inv")
    edit(saved, quantization_config={**FP8, "weight_block_size": [128, 128]})
    assert {weight.dtype for weight in dougong.load(saved).model.parameters()} == {torch.float16}


def test_positions_in_the_old_and_the_new_spelling(saved: Path) -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    edit(saved, rope_theta=777.0, rope_scaling={"rope_type": "llama3", **scaling}, rope_parameters=None)
    old = dougong.load(saved).spec
    edit(saved, rope_theta=777.0, rope_scaling={"type": "llama3", **scaling})
    assert dougong.load(saved).spec == old
    inner = {"rope_type": "llama3", "rope_theta": 777.0, **scaling}
    edit(saved, rope_theta=None, rope_scaling=None, rope_parameters=inner)
    assert dougong.load(saved).spec == old


def test_a_model_of_more_than_text(saved: Path) -> None:
    inner = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": inner, "vision_config": {}}))
    refused(saved, "'llava' is not supported", "'llama' in text_config")
