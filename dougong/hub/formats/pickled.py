"""pytorch_model.bin, the pickled format of old checkpoints, through torch's restricted unpickler.

A pickle is a program. Here it may name tensors and plain containers, nothing else: one that names any other function is
refused before that function runs.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.hub.formats.source import Weights, describe_damage, misplaced


class PickledWeights(Weights):
    """The tensors of `folder`: of its single file, or of the files that `places` (name -> file) lists."""

    single: ClassVar[str] = "pytorch_model.bin"
    index: ClassVar[str] = "pytorch_model.bin.index.json"

    def __init__(self, folder: Path, places: dict[str, str]):
        files = sorted(set(places.values())) or [self.single]
        self.where = str(folder / files[0]) if len(files) == 1 else str(folder)
        self._tensors: dict[str, Tensor] = {}
        for file in files:
            tensors = _open(folder / file)
            self._tensors |= {name: tensor for name, tensor in tensors.items() if places.get(name, file) == file}
        if absent := [name for name in places if name not in self._tensors]:
            raise misplaced(folder, self.index, places, absent)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        self.float8 = any(str(tensor.dtype).startswith("torch.float8") for tensor in self._tensors.values())

    def read(self, name: str) -> Tensor:
        return self._tensors[name]

    def close(self) -> None:
        self._tensors.clear()


def _open(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as stream:
        zipped = stream.read(2) == b"PK"
    try:
        # Only the zip format (torch >= 1.6) can be mapped into memory instead of read whole.
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        raise _explained(path, str(error)) from error
    if not isinstance(data, dict) or not all(isinstance(tensor, Tensor) for tensor in data.values()):
        raise DougongError(f"{path} is not a plain dictionary of tensors; convert it to safetensors first")
    if odd := [name for name in data if not isinstance(name, str)]:
        raise DougongError(f"{path} names a tensor {odd[0]!r}; names are text")
    return {name: tensor.detach() for name, tensor in data.items()}


def _explained(path: Path, detail: str) -> DougongError:
    """torch's own advice, to load the file without the restriction, is not passed on."""
    if found := re.search(r"GLOBAL (\S+)", detail):
        return DougongError(
            f"{path} is refused: loading it would call {found[1]}, which no weights need; do not load it otherwise "
            "unless you trust its source, and convert it to safetensors there"
        )
    if ".tar" in detail:
        return DougongError(f"{path} is of a format older than torch 0.4, which is not read; convert it to safetensors")
    lines = (detail.partition("WeightsUnpickler error:")[2] or detail).split("\n")
    return describe_damage(path, next((line.strip() for line in lines if line.strip()), "it ends too early"))
