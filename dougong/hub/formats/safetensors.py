"""safetensors, in one file or in shards with an index, read tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import safetensors
from safetensors.torch import save_file
from torch import Tensor

from dougong.base import DougongError, write_json
from dougong.hub.formats.source import Weights, describe_damage, misplaced


class SafetensorsWeights(Weights):
    """The tensors of `folder`: of its single file, or of the files that `places` (name -> file) lists."""

    single: ClassVar[str] = "model.safetensors"
    index: ClassVar[str] = "model.safetensors.index.json"

    def __init__(self, folder: Path, places: dict[str, str]):
        files = sorted(set(places.values())) or [self.single]
        self.where = str(folder / files[0]) if len(files) == 1 else str(folder)
        self._place: dict[str, Path] = {}
        self.shapes = {}
        for file in files:
            handle = _open(folder / file)
            for name in handle.keys():  # noqa: SIM118 - a handle is no mapping
                if places.get(name, file) == file:
                    self._place[name] = folder / file
                    piece = handle.get_slice(name)
                    self.shapes[name] = tuple(piece.get_shape())
                    self.float8 |= piece.get_dtype().startswith("F8_")
        if absent := [name for name in places if name not in self._place]:
            raise misplaced(folder, self.index, places, absent)

    def read(self, name: str) -> Tensor:
        # Opened anew each time, which costs little: pages of a mapped file count as memory in use until it is closed.
        return _open(self._place[name]).get_tensor(name)

    def close(self) -> None:
        self._place.clear()


def _open(path: Path) -> Any:
    try:
        return safetensors.safe_open(path, framework="pt").__enter__()
    except safetensors.SafetensorError as error:
        raise describe_damage(path, error) from error
    except OSError as error:
        raise DougongError(f"{path} cannot be read: {error.strerror or error}") from error


def write_safetensors(folder: Path, parts: Iterable[tuple[str, int, Callable[[], Tensor]]], shard_bytes: int) -> None:
    """Write tensors, each given as (name, bytes, how to make it), into `folder`: one file, or shards with an index.

    Only the tensors of one shard are made at a time. A tensor larger than `shard_bytes` gets a file of its own.
    """
    shards: list[list[tuple[str, int, Callable[[], Tensor]]]] = [[]]
    filled = total = 0
    for part in parts:
        if shards[-1] and filled + part[1] > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(part)
        filled += part[1]
        total += part[1]
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        many = len(shards) > 1
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if many else SafetensorsWeights.single
        try:
            # transformers refuses files whose metadata does not say which framework they come from.
            save_file({name: make() for name, _, make in shard}, folder / file, metadata={"format": "pt"})
        except safetensors.SafetensorError as error:
            raise DougongError(f"{folder / file} cannot be written: {error}; is the disk full?") from error
        weight_map |= {name: file for name, _, _ in shard}
    if len(shards) > 1:
        write_json(folder / SafetensorsWeights.index, {"metadata": {"total_size": total}, "weight_map": weight_map})
