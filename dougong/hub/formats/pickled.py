"""pytorch_model.bin, the pickled format of old checkpoints, through torch's restricted unpickler.

A pickle is a program. Here it may name tensors and plain containers, nothing else: one that names any other function is
refused before that function runs.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterator
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
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError, OSError) as error:
        raise _explained(path, str(error)) from error
    if not isinstance(data, dict) or not all(isinstance(tensor, Tensor) for tensor in data.values()):
        raise DougongError(f"{path} is not a plain dictionary of tensors; convert it to safetensors first")
    if odd := [name for name in data if not isinstance(name, str)]:
        raise DougongError(f"{path} names a tensor {odd[0]!r}; names are text")
    for name, tensor in data.items():
        if tensor.layout != torch.strided or tensor.is_meta:
            odd = "has no values" if tensor.is_meta else f"is {tensor.layout}"
            raise DougongError(f"{path}: {name} {odd}; plain tensors are read, convert it to safetensors first")
    return {name: tensor.detach() for name, tensor in data.items()}


def _explained(path: Path, detail: str) -> DougongError:
    """torch's own advice, to load the file without the restriction, is not passed on."""
    # torch's reader stops at the first operation of a newer protocol, whatever follows.
    newer = re.search(r"Unsupported operand (14\d|15\d)", detail)
    called = found[1] if (found := re.search(r"GLOBAL (\S+)", detail)) else _foreign(path) if newer else None
    if called:
        return DougongError(
            f"{path} is refused: loading it would call {called}, which no weights need; do not load it otherwise "
            "unless you trust its source, and convert it to safetensors there"
        )
    if newer:
        return DougongError(f"{path} is pickled with protocol 4 or later, which is not read; convert it to safetensors")
    if ".tar" in detail:
        return DougongError(f"{path} is of a format older than torch 0.4, which is not read; convert it to safetensors")
    lines = (detail.partition("WeightsUnpickler error:")[2] or detail).split("\n")
    return describe_damage(path, next((line.strip() for line in lines if line.strip()), "it ends too early"))


def _foreign(path: Path) -> str | None:
    """The first thing that a pickle names and that is neither torch's nor a plain container."""
    names = (name for name in _named(path) if not name.startswith(("torch.", "collections.OrderedDict")))
    return next(names, None)


def _named(path: Path) -> Iterator[str]:
    """What a pickle would import, told from its operations alone, as far as they can be followed."""
    zipped = zipfile.is_zipfile(path)
    archive = zipfile.ZipFile(path) if zipped else None
    inside = next((name for name in archive.namelist() if name.endswith("data.pkl")), None) if archive else None
    with archive.open(inside) if archive and inside else path.open("rb") as stream:
        texts: list[str] = []
        try:
            while True:  # the format before torch 1.6 is one pickle after the other
                for operation, argument, _ in pickletools.genops(stream):
                    if operation.name in ("GLOBAL", "INST"):
                        yield str(argument).replace(" ", ".")
                    elif operation.name == "STACK_GLOBAL":
                        yield ".".join(texts[-2:])
                    elif isinstance(argument, str):
                        texts.append(argument)
        except ValueError:  # the end, or no pickle any more
            return
