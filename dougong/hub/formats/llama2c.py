"""llama2.c checkpoints (https://github.com/karpathy/llama2.c, export.py): versions 0 and 1, float32.

Version 0 is seven ints and the tensors; a negative vocabulary says that the head has weights of its own. Version 1
begins with the magic "ak42" and fills its header up to 256 bytes. Both keep all layers of one kind together.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.hub.formats.source import Weights
from dougong.parts.shapes import Float

MAGIC = 0x616B3432
V1_HEADER = 256


@dataclass(frozen=True)
class Header:
    """What the file says about the model; `start` is where its tensors begin, in bytes."""

    version: int
    width: int
    hidden: int
    depth: int
    heads: int
    kv_heads: int
    vocab: int
    context: int
    tied: bool
    start: int

    @property
    def head_size(self) -> int:
        return self.width // self.heads


def read_header(path: Path) -> Header:
    """Raises DougongError when the file is no llama2.c checkpoint, or one of a version that is not read."""
    with path.open("rb") as stream:
        raw = stream.read(37)
    if len(raw) < 28:
        raise DougongError(f"{path} has only {len(raw)} bytes; a llama2.c checkpoint begins with a header of 28")
    magic, version = struct.unpack_from("<Ii", raw)
    if magic != MAGIC:
        width, hidden, depth, heads, kv_heads, vocab, context = struct.unpack_from("<7i", raw)
        header = Header(0, width, hidden, depth, heads, kv_heads, abs(vocab), context, vocab > 0, 28)
    elif version == 1 and len(raw) == 37:
        header = Header(1, *struct.unpack_from("<7i", raw, 8), bool(raw[36]), V1_HEADER)
    else:
        raise DougongError(f"{path} is a llama2.c checkpoint of version {version}; versions 0 and 1 (float32) are read")
    sane = all(0 < n < 1 << 24 for n in (header.width, header.hidden, header.depth, header.vocab, header.context))
    if not sane or not 0 < header.kv_heads <= header.heads or header.width % header.heads:
        raise DougongError(f"{path} is not a llama2.c checkpoint: its header makes no sense ({header})")
    return header


def _layout(header: Header) -> list[tuple[str, tuple[int, ...]]]:
    """Own names of the tensors in the order of the file; those of layers are stacked. "" is a table nobody needs."""
    h = header
    kv = h.kv_heads * h.head_size
    embedding = [("embedding.weight", (h.vocab, h.width))]
    mixer_norm = [("layers.{i}.mixer_norm.weight", (h.depth, h.width))]
    ffn_norm = [("layers.{i}.ffn_norm.weight", (h.depth, h.width))]
    norm = [("norm.weight", (h.width,))]
    mixer = [
        ("layers.{i}.mixer.q.weight", (h.depth, h.width, h.width)),
        ("layers.{i}.mixer.k.weight", (h.depth, kv, h.width)),
        ("layers.{i}.mixer.v.weight", (h.depth, kv, h.width)),
        ("layers.{i}.mixer.o.weight", (h.depth, h.width, h.width)),
    ]
    ffn = [
        ("layers.{i}.ffn.gate.weight", (h.depth, h.hidden, h.width)),
        ("layers.{i}.ffn.down.weight", (h.depth, h.width, h.hidden)),
        ("layers.{i}.ffn.up.weight", (h.depth, h.hidden, h.width)),
    ]
    head = [] if h.tied else [("head.weight", (h.vocab, h.width))]
    if h.version:
        return [*mixer_norm, *ffn_norm, *norm, *embedding, *mixer, *ffn, *head]
    angles = [("", (2, h.context, h.head_size // 2))]
    return [*embedding, *mixer_norm, *mixer, *ffn_norm, *ffn, *norm, *angles, *head]


class Llama2cWeights(Weights):
    """The tensors of a checkpoint under our own names.

    llama2.c turns coordinates (2i, 2i + 1) of a head together; the rows of q and k come out in the order in which
    (i, i + d/2) turn together, as in every Llama in Hugging Face layout. The logits are the same.

    Raises DougongError when the file's size is not the one that its header asks for.
    """

    def __init__(self, path: Path, header: Header):
        self.where = str(path)
        self.shapes = {}
        self._header = header
        self._place: dict[str, tuple[int, str]] = {}  # offset, kind
        at = header.start
        for kind, shape in _layout(header):
            stacked = "{i}" in kind
            for index in range(header.depth if stacked else 1):
                name, one = kind.replace("{i}", str(index)), shape[1:] if stacked else shape
                if kind:
                    self.shapes[name] = one
                    self._place[name] = (at, kind)
                at += 4 * math.prod(one)
        size = path.stat().st_size
        if size != at:
            state = "cut short" if size < at else "too long"
            raise DougongError(f"{path} is {state}: {size} bytes, its header asks for {at}; download it again")
        self._raw = np.memmap(path, dtype=np.uint8, mode="r")

    def read(self, name: str) -> Tensor:
        at, kind = self._place[name]
        shape = self.shapes[name]
        values = np.frombuffer(self._raw, dtype="<f4", count=math.prod(shape), offset=at)
        tensor = torch.from_numpy(values.copy()).view(shape)
        return _unpair(tensor, self._header.head_size) if kind.endswith((".q.weight", ".k.weight")) else tensor

    def close(self) -> None:
        del self._raw


def _unpair(weight: Float[Tensor, "o i"], size: int) -> Float[Tensor, "o i"]:
    """Rows of each head of `size` reordered: the first of every pair, then the second of every pair."""
    return weight.view(-1, size // 2, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
