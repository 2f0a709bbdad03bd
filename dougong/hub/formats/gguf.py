"""GGUF files (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), versions 2 and 3, read only.

A file is a header (counts), metadata (named values), the list of its tensors, and after padding their bytes. Nothing
here knows what the metadata mean, except those of the format itself.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.hub.formats.ggml import KINDS, Kind, kind_name, unpack
from dougong.hub.formats.source import Weights, describe_damage

MAGIC = b"GGUF"
# Numbers of the types of values, each with struct's letter for it; 7 is a truth value, 8 text, 9 an array.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: `start` is where its bytes begin. Our shapes put first what GGUF puts last."""

    path: Path
    shape: tuple[int, ...]
    kind: Kind
    start: int

    @property
    def size(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) // self.kind.values * self.kind.size


class _Cursor:
    """Values one after another in mapped bytes. Raises DougongError where the file ends too early."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path = path
        self.at = 0
        self._data = data

    def number(self, letter: str) -> Any:
        size = struct.calcsize(f"<{letter}")
        return struct.unpack_from(f"<{letter}", self._data, self._step(size))[0]

    def text(self) -> str:
        size = self.number("Q")
        start = self._step(size)
        # A token of a vocabulary may be a part of a character.
        return self._data[start : start + size].decode("utf-8", errors="replace")

    def value(self) -> Any:
        kind = self.number("I")
        if kind != _ARRAY:
            return self._one(kind)
        inner, count = self.number("I"), self.number("Q")
        if inner in _NUMBERS:
            size = struct.calcsize(f"<{_NUMBERS[inner]}")
            start = self._step(count * size)
            return np.frombuffer(self._data, f"<{_NUMBERS[inner]}", count, start).tolist()
        return [self._one(inner) for _ in range(count)]

    def _one(self, kind: int) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind not in _NUMBERS:
            self.damaged(f"a value at byte {self.at} is of type {kind}")
        return self.number(_NUMBERS[kind])

    def _step(self, size: int) -> int:
        """Pass over `size` bytes; where they began."""
        start, self.at = self.at, self.at + size
        if self.at > len(self._data):
            self.damaged(f"it ends at byte {len(self._data)}, within a value of {size} bytes")
        return start

    def damaged(self, detail: str) -> NoReturn:
        raise describe_damage(self.path, detail)


@dataclass(frozen=True)
class GgufFile:
    """Metadata and tensors of a file, or of all files of a model in parts. Nothing is held open."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Stored]

    def read(self, name: str) -> Tensor:
        """A copy of one tensor; quantised ones as float32."""
        stored = self.tensors[name]
        if not stored.size:
            return torch.empty(stored.shape, dtype=stored.kind.dtype)
        # Mapped anew each time: pages of a mapped file count as memory in use until it is closed.
        raw = np.memmap(stored.path, np.uint8, "r", stored.start, (stored.size,))
        return unpack(stored.kind, raw, stored.shape)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the matrices, where they are all of one; float32 otherwise, which holds every type exactly."""
        kinds = {stored.kind.dtype for stored in self.tensors.values() if len(stored.shape) > 1}
        return kinds.pop() if len(kinds) == 1 else torch.float32


def open_gguf(path: Path) -> GgufFile:
    """Read all but the tensors. Of a model in parts (`-00001-of-00003.gguf`), every part must be there.

    Raises DougongError for a damaged file, a version or a type of tensors that is not read, and a missing part.
    """
    file = _open_one(path)
    parts = file.metadata.get("split.count", 1)
    if parts <= 1:
        return file
    named = _PART.fullmatch(path.name)
    if named is None or int(named[3]) != parts:
        raise DougongError(
            f"{path} is part of a model in {parts}; it must keep its name, ...-00001-of-{parts:05d}.gguf"
        )
    paths = [path.with_name(f"{named[1]}-{part:05d}-of-{parts:05d}.gguf") for part in range(1, parts + 1)]
    if absent := [each.name for each in paths if not each.is_file()]:
        raise DougongError(f"{path} is part of a model in {parts}; the folder lacks {', '.join(absent[:4])}")
    tensors: dict[str, Stored] = {}
    files = [_open_one(each) for each in paths]
    for each in files:
        if twice := tensors.keys() & each.tensors.keys():
            raise DougongError(f"{each.path} holds {sorted(twice)[0]}, which another part holds too")
        tensors |= each.tensors
    return GgufFile(path, files[0].metadata, tensors)


def _open_one(path: Path) -> GgufFile:
    with path.open("rb") as stream:
        if stream.read(4) != MAGIC:
            raise DougongError(f"{path} is no GGUF file: it does not begin with GGUF")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(path, _Cursor(path, data), len(data))


def _parse(path: Path, cursor: _Cursor, length: int) -> GgufFile:
    cursor.at = len(MAGIC)
    version = cursor.number("I")
    if version not in (2, 3):
        known = "a big-endian one" if version >= 1 << 16 else f"of version {version}"
        raise DougongError(f"{path} is a GGUF file, but {known}; versions 2 and 3, little-endian, are read")
    count, pairs = cursor.number("Q"), cursor.number("Q")
    metadata = {}
    for _ in range(pairs):
        key = cursor.text()
        metadata[key] = cursor.value()
    listed = []
    for _ in range(count):
        name, rank = cursor.text(), cursor.number("I")
        if rank > 8:
            cursor.damaged(f"{name!r} would have {rank} dimensions")
        shape = tuple(cursor.number("Q") for _ in range(rank))[::-1]
        listed.append((name, shape, cursor.number("I"), cursor.number("Q")))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise DougongError(f"{path}: general.alignment is {alignment!r}; expected a number of bytes")
    start = -(-cursor.at // alignment) * alignment
    tensors: dict[str, Stored] = {}
    for name, shape, number, offset in listed:
        if number not in KINDS:
            known = ", ".join(kind.name for kind in KINDS.values())
            raise DougongError(f"{path}: {name} is of type {kind_name(number)}, which is not read; read are {known}")
        stored = Stored(path, shape, KINDS[number], start + offset)
        if shape and shape[-1] % stored.kind.values:
            each = f"whole blocks of {stored.kind.values}"
            raise DougongError(f"{path}: {name} is {shape}; rows of {stored.kind.name} are {each}")
        if name in tensors:
            raise DougongError(f"{path} holds {name} twice; it is damaged, download it again")
        if stored.start + stored.size > length:
            cursor.damaged(f"{name} would end at byte {stored.start + stored.size}")
        tensors[name] = stored
    return GgufFile(path, metadata, tensors)


class GgufWeights(Weights):
    """The tensors of a file under its own names; quantised ones as float32."""

    def __init__(self, file: GgufFile):
        self.where = str(file.path)
        self.shapes = {name: stored.shape for name, stored in file.tensors.items()}
        self._file = file

    def read(self, name: str) -> Tensor:
        return self._file.read(name)

    def close(self) -> None:
        pass
