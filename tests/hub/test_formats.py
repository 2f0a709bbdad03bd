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
from tests.hub.test_files import assert_same, edit
from tests.hub.test_float8 import FP8, quantise
from tests.hub.test_load_errors import refused

WEIGHTS, BIN, INDEX = "model.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json"


# -- pickles -----------------------------------------------------------------------------------------------------------


class Runs:
    """Unpickled, it calls a function."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("function", [os.system, eval, getattr])
def test_a_pickle_runs_nothing(function: Any, zipped: bool, saved: Path, tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    words = {os.system: f"touch {witness}", eval: f"open({str(witness)!r}, 'w')"}.get(function)
    evil = Runs(function, words) if words else Runs(getattr, torch.Tensor, "sum")
    tensors = load_file(saved / WEIGHTS)
    (saved / WEIGHTS).unlink()
    torch.save({**tensors, "x": evil}, saved / BIN, _use_new_zipfile_serialization=zipped)
    refused(saved, BIN, "is refused", f"{'posix.system' if function is os.system else function.__name__}")
    assert not witness.exists()
    with (saved / BIN).open("wb") as stream:  # a bare pickle, in a protocol that torch does not write
        pickle.dump({"x": evil}, stream)
    refused(saved, BIN)
    assert not witness.exists()


def test_pickles_of_other_things(saved: Path) -> None:
    tensors = load_file(saved / WEIGHTS)
    (saved / WEIGHTS).unlink()
    torch.save({**tensors, "x": torch.nn.Linear(2, 2)}, saved / BIN)
    refused(saved, BIN, "is refused", "Linear")
    torch.save({**tensors, 3: torch.zeros(2)}, saved / BIN)
    refused(saved, BIN, "names a tensor 3")
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
