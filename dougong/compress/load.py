"""`dougong.load`: a model from disk, quantised as it is read where that is asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from dougong.base.allocator import keep_memory, return_memory
from dougong.compress.fuse import fuse
from dougong.compress.quantize import SKIP, Make, Slot, maker, put, wanted
from dougong.hub import LanguageModel
from dougong.hub import load as read
from dougong.model import Model


def load(
    path: str | os.PathLike[str],
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    quantize: str | None = None,
    group: int = 32,
    skip: Sequence[str] = SKIP,
) -> LanguageModel:
    """Open a model: a folder in Hugging Face layout, a run folder, a GGUF file, a llama2.c or rwkv.cpp checkpoint, or a
    hub id (`hub.load` says more about each, and about errors).

    dtype     of the weights, or with `quantize` of the activations; None keeps what the file has
    device    where they go; None is the CPU
    quantize  "int8", "int4" (in groups of `group` columns) or "packed" (floats in oneDNN's order): for running, not for
              training or saving. Each matrix is quantised when it has been read, so memory never holds more than the
              quantised model and one matrix; then what reads the same input is fused. See `compress.quantize`
    """
    if quantize is None:
        return read(path, dtype, device)
    settling = _Settling(quantize, maker(quantize, group), skip)
    return_memory()
    try:
        lm = read(path, dtype, device, settling)
        fuse(lm)
    finally:
        keep_memory()  # for the steps to come, whatever they are; the floats' own memory has gone back
    return lm


class _Settling:
    """Quantises each matrix of a model when its floats have come."""

    def __init__(self, method: str, make: Make, skip: Sequence[str]):
        self.method, self.make, self.skip = method, make, skip
        self.slots: dict[int, list[Slot]] | None = None

    def __call__(self, model: Model, path: str) -> None:
        if self.slots is None:
            self.slots = {id(getattr(*slots[0])): slots for _, slots in wanted(model, self.skip)}
        slots = self.slots.get(id(model.get_submodule(path)))
        if slots is not None:
            put(slots, self.make, self.method)
