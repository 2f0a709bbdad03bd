"""What a text stands in besides its own tokens: the source that its decoder reads, and the adapter that serves it."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from dougong.engine.adapters import adapted
from dougong.engine.runner import Runner
from dougong.engine.sequence import Sequence as Stored
from dougong.model import Model
from dougong.parts.shapes import Float


class Setting:
    """tokens: of the source, None where the model has no encoder. adapter: see `Engine.generate`.

    root: where the keys of texts in this setting begin, so that they are told apart in the prefix cache.
    """

    def __init__(self, model: Model, tokens: Sequence[int] | None = None, adapter: str | None = None):
        self.adapter = adapter
        self._model = model
        self._tokens = None if tokens is None else list(tokens)
        self._hidden: Tensor | None = None
        self.root = b""
        if tokens is not None or adapter is not None:
            said = repr(adapter).encode() + array("q", self._tokens or []).tobytes()
            self.root = hashlib.blake2b(said, digest_size=16).digest()

    @torch.inference_mode()
    def hidden(self) -> Float[Tensor, "S D"] | None:
        """The encoder's output, computed at the first call; None without a source."""
        if self._tokens is None:
            return None
        if self._hidden is None:
            device = self._model.like.device
            with adapted(self._model, [self.adapter]):
                self._hidden = self._model.encode(torch.tensor([self._tokens], device=device))[0]
        return self._hidden

    def open(self, runner: Runner, text: Sequence[int], expect: int, root: bytes | None = None) -> Stored:
        """A sequence of `runner` for a text in this setting. root: another one than the setting's own. Raises
        OutOfPages."""
        return runner.open(text, expect, self.hidden(), self.root if root is None else root, self.adapter)
