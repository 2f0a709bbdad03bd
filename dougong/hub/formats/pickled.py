"""pytorch_model.bin, the pickled format of old checkpoints: tensors only, no code is run."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.hub.formats.source import Weights, describe_damage


class PickledWeights(Weights):
    """The tensors of `folder`: of its single file, or of the files that `places` (name -> file) lists."""

    single: ClassVar[str] = "pytorch_model.bin"
    index: ClassVar[str] = "pytorch_model.bin.index.json"

    def __init__(self, folder: Path, places: dict[str, str]):
        files = sorted(set(places.values())) or [self.single]
        self.where = str(folder / files[0]) if len(files) == 1 else str(folder)
        self._tensors: dict[str, Tensor] = {}
        for file in files:
            self._tensors |= _open(folder / file)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

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
        raise describe_damage(path, str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    if not isinstance(data, dict) or not all(isinstance(tensor, Tensor) for tensor in data.values()):
        raise DougongError(f"{path} is not a plain dictionary of tensors; convert it to safetensors first")
    return data
