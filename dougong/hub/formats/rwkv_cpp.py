"""rwkv.cpp checkpoints (https://github.com/RWKV/rwkv.cpp, docs/FILE_FORMAT.md): RWKV 4 to 7, float32 or float16.

Six ints (magic, version, vocabulary, width, layers, type), then each tensor as its number of dimensions, the length of
its name, its type, its dimensions from the last to the first, its name and its numbers. The names are those of the RWKV
checkpoints; some tensors are kept as the kernels want them, and are brought back to the trained numbers here.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.hub.formats.source import Weights
from dougong.model.spec import LayerSpec, ModelSpec
from dougong.parts.carry import ENDLESS
from dougong.parts.embedding import Embedding, Head
from dougong.parts.norm import Norm
from dougong.parts.wkv import WKV4, ChannelMix
from dougong.parts.wkv6 import WKV5, WKV6
from dougong.parts.wkv7 import WKV7

MAGIC = b"fmgg"
TYPES = {0: (torch.float32, 4), 1: (torch.float16, 2)}
QUANTISED = {2: "Q4_0", 3: "Q4_1", 7: "Q5_0", 8: "Q5_1", 9: "Q8_0"}


@dataclass(frozen=True)
class Entry:
    """A tensor in the file; `start` is its place in bytes."""

    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype


def read_entries(path: Path) -> tuple[dict[str, Entry], int]:
    """The tensors of the file by name, and how many layers it says it has.

    Raises DougongError when the file is no rwkv.cpp checkpoint, is cut short, or holds quantised tensors.
    """
    size, entries = path.stat().st_size, {}
    broken = DougongError(f"{path} is cut short or damaged; download it again")
    with path.open("rb") as stream:

        def take(count: int) -> bytes:
            raw = stream.read(count) if 0 <= count <= size else b""
            if len(raw) != count:
                raise broken
            return raw

        if take(4) != MAGIC:
            raise DougongError(f"{path} is not an rwkv.cpp checkpoint")
        version, _, _, depth, _ = struct.unpack("<5i", take(20))
        if version not in (100, 101):
            raise DougongError(f"{path} is an rwkv.cpp checkpoint of version {version}; versions 100 and 101 are read")
        while stream.tell() < size:
            dimensions, length, kind = struct.unpack("<3i", take(12))
            shape = struct.unpack(f"<{dimensions}i", take(4 * dimensions))[::-1] if 0 <= dimensions <= 4 else ()
            name = take(length).decode("utf-8", "replace")
            if kind not in TYPES:
                told = QUANTISED.get(kind, f"of type {kind}")
                raise DougongError(f"{path}: {name} is {told}; rwkv.cpp files of FP32 and FP16 are read")
            dtype, width = TYPES[kind]
            start, count = stream.tell(), width * math.prod(shape)
            if not 0 < count <= size - start:
                raise broken
            entries[name] = Entry(start, shape, dtype)
            stream.seek(count, 1)
    return entries, depth


def read_spec(path: Path, entries: dict[str, Entry], depth: int) -> ModelSpec:
    """The model, from the names and shapes of the tensors alone."""
    if "blocks.0.att.key.weight" not in entries or "emb.weight" not in entries:
        raise DougongError(f"{path} holds no RWKV of a known version (no tensors emb.weight, blocks.0.att.key.weight)")
    norm = Norm("layer", 1e-5, bias=True)
    vocab, width = entries["emb.weight"].shape
    layers = []
    for i in range(depth):
        block = _Block(path, entries, f"blocks.{i}.")
        gated = "ffn.receptance.weight" in block
        ffn = ChannelMix(width, block.shape("ffn.key.weight", 2)[0], gated)
        layers.append(LayerSpec(block.mixer(width, i == 0), ffn, norm))
    return ModelSpec(vocab, width, ENDLESS, tuple(layers), Embedding(norm=norm), norm, Head(tied=False))


@dataclass(frozen=True)
class _Block:
    """The tensors of one layer."""

    path: Path
    entries: dict[str, Entry]
    prefix: str

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.entries

    def shape(self, name: str, least: int) -> tuple[int, ...]:
        entry = self.entries.get(self.prefix + name)
        if entry is None or len(entry.shape) < least:
            raise DougongError(f"{self.path} lacks {self.prefix}{name}, or has it in a wrong shape")
        return entry.shape

    def mixer(self, width: int, first: bool) -> WKV4 | WKV5 | WKV6 | WKV7:
        """The time mix of the version that the names give away."""
        inner = self.shape("att.key.weight", 2)[0]
        if "att.k_k" in self:
            heads, size = self.shape("att.r_k", 2)
            ranks = [0 if each == "v" and first else self.shape(f"att.{each}1", 2)[0] for each in "wavg"]
            return WKV7(width, heads, size, first, *ranks)
        if "att.time_maa_x" in self:
            heads, size = self.shape("att.time_faaaa", 2)[:2]
            ranks = self.shape("att.time_maa_w1", 2)[0] // 5, self.shape("att.time_decay_w1", 2)[0]
            return WKV6(width, heads, size, *ranks)
        if "att.ln_x.weight" in self:
            heads = self.shape("att.time_decay", 2)[0]
            return WKV5(width, heads, inner // heads, "att.gate.weight" in self)
        return WKV4(width, inner)


Make = Callable[..., Tensor]
Rule = tuple[str, tuple[str, ...], Make]  # own name, names in the file, own tensor from theirs


def _rules(layer: LayerSpec) -> list[Rule]:
    """How the tensors of a layer come from those of the file."""
    mixer, ffn = layer.mixer, layer.ffn
    assert isinstance(ffn, ChannelMix)
    rules = [_same(f"mixer_norm.{each}", f"ln1.{each}") for each in ("weight", "bias")]
    rules += [_same(f"ffn_norm.{each}", f"ln2.{each}") for each in ("weight", "bias")]
    rules += [_same("ffn.up.weight", "ffn.key.weight"), _same("ffn.down.weight", "ffn.value.weight")]
    rules += [_same("ffn.gate.weight", "ffn.receptance.weight")] if ffn.gated else []
    names = {"r": "receptance", "k": "key", "v": "value", "o": "output"}
    rules += [_same(f"mixer.{own}.weight", f"att.{name}.weight") for own, name in names.items()]
    if not isinstance(mixer, WKV4):
        rules += [_same(f"mixer.norm.{each}", f"att.ln_x.{each}") for each in ("weight", "bias")]
    if isinstance(mixer, (WKV4, WKV5)):
        rules += [(f"ffn.mix_{each}", (f"ffn.time_mix_{each}",), torch.flatten) for each in "kr"[: 1 + ffn.gated]]
        rules += [(f"mixer.mix_{each}", (f"att.time_mix_{each}",), torch.flatten) for each in "rkv"]
    if isinstance(mixer, WKV4):
        return [
            *rules,
            ("mixer.decay", ("att.time_decay",), lambda x: x.neg().log()),  # kept as -exp(decay)
            _same("mixer.first", "att.time_first"),
        ]
    if isinstance(mixer, WKV5):
        size = mixer.head_size

        def spread(x: Tensor) -> Tensor:
            """A number for each channel, or (version 5.1) for each head."""
            return x.reshape(len(x), -1).expand(-1, size)

        first = "time_faaaa" if mixer.gate else "time_first"
        return [
            *rules,
            *([_same("mixer.gate.weight", "att.gate.weight")] if mixer.gate else []),
            *([("mixer.mix_gate", ("att.time_mix_g",), torch.flatten)] if mixer.gate else []),
            ("mixer.decay", ("att.time_decay",), lambda x: spread(x).log().neg().log()),  # kept as exp(-exp(decay))
            ("mixer.first", (f"att.{first}",), spread),
        ]
    if isinstance(mixer, WKV6):
        return [
            *rules,
            *((f"ffn.mix_{each}", (f"ffn.time_maa_{each}",), lambda x: 1 - x.flatten()) for each in "kr"),
            _same("mixer.gate.weight", "att.gate.weight"),
            ("mixer.mix_x", ("att.time_maa_x",), torch.flatten),
            ("mixer.mix", tuple(f"att.time_maa_{each}" for each in "wkvrg"), _rows),
            _same("mixer.mix_down.weight", "att.time_maa_w1"),
            *((f"mixer.mix_up.{i}.weight", ("att.time_maa_w2",), lambda x, i=i: x[i]) for i in range(5)),
            ("mixer.decay", ("att.time_decay",), lambda x: x.squeeze(-1)),
            _same("mixer.decay_down.weight", "att.time_decay_w1"),
            _same("mixer.decay_up.weight", "att.time_decay_w2"),
            ("mixer.first", ("att.time_faaaa",), lambda x: x.squeeze(-1)),
        ]
    assert isinstance(mixer, WKV7)
    low = {"decay": "w", "rate": "a", "gate": "g", **({} if mixer.first else {"value": "v"})}
    single = {"decay": "w0", "rate": "a0", "key_scale": "k_k", "key_rate": "k_a"}
    single |= {} if mixer.first else {"value": "v0"}
    return [
        *rules,
        ("ffn.mix_k", ("ffn.x_k",), lambda x: 1 - x.flatten()),
        ("mixer.mix", ("att.x_rwkvag",), lambda x: x.squeeze(1)),
        *(_same(f"mixer.{own}_down.weight", f"att.{name}1") for own, name in low.items()),
        *(_same(f"mixer.{own}_up.weight", f"att.{name}2") for own, name in low.items()),
        *((f"mixer.{own}", (f"att.{name}",), torch.flatten) for own, name in single.items()),
        _same("mixer.bonus", "att.r_k"),
    ]


def _same(own: str, name: str) -> Rule:
    return own, (name,), lambda x: x


def _rows(*vectors: Tensor) -> Tensor:
    return torch.stack([each.flatten() for each in vectors])


class RwkvCppWeights(Weights):
    """The tensors of a checkpoint under our own names.

    Raises DougongError for tensors that are missing, and for those that nothing asks for.
    """

    def __init__(self, path: Path, spec: ModelSpec, entries: dict[str, Entry]):
        self.where = str(path)
        self._entries = entries
        rules = [_same("embedding.weight", "emb.weight"), _same("head.weight", "head.weight")]
        for each in ("weight", "bias"):
            rules.append(_same(f"embedding.norm.{each}", f"blocks.0.ln0.{each}"))
            rules.append(_same(f"norm.{each}", f"ln_out.{each}"))
        for i, layer in enumerate(spec.layers):
            for own, names, make in _rules(layer):
                rules.append((f"layers.{i}.{own}", tuple(f"blocks.{i}.{name}" for name in names), make))
        asked = {name for _, names, _ in rules for name in names}
        if missing := sorted(asked - set(entries)):
            raise DougongError(f"{path} lacks {missing[0]}{f' and {len(missing) - 1} more' if missing[1:] else ''}")
        if extra := sorted(set(entries) - asked):
            raise DougongError(f"{path} holds {extra[0]}, which this RWKV does not call for; {len(extra)} in all")
        self._rules = {own: (names, make) for own, names, make in rules}
        self.shapes = {}
        for own, (names, make) in self._rules.items():
            try:
                made = make(*(torch.empty(entries[name].shape, device="meta") for name in names))
            except (RuntimeError, IndexError) as error:
                raise DougongError(f"{path}: {names[0]} is {entries[names[0]].shape}, a wrong shape") from error
            self.shapes[own] = tuple(made.shape)
        self._raw = np.memmap(path, dtype=np.uint8, mode="r")

    def read(self, name: str) -> Tensor:
        names, make = self._rules[name]
        return make(*(self._tensor(self._entries[each]) for each in names))

    def _tensor(self, entry: Entry) -> Tensor:
        # Copied, for the numbers stand wherever the name before them ends.
        count = entry.dtype.itemsize * math.prod(entry.shape)
        raw = np.array(self._raw[entry.start : entry.start + count])
        return torch.from_numpy(raw).view(entry.dtype).view(entry.shape)

    def close(self) -> None:
        del self._raw


def open_rwkv_cpp(path: Path) -> tuple[ModelSpec, RwkvCppWeights]:
    """The spec and the weights of a checkpoint."""
    entries, depth = read_entries(path)
    spec = read_spec(path, entries, depth)
    return spec, RwkvCppWeights(path, spec, entries)
