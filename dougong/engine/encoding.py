"""Reading whole texts by tape: all layers of an encoder in one call to our own kernels (engine.taped, for texts).

A question of ten tokens costs MiniLM in 8 bits more calls than work. Texts stand one behind the other, so none is
padded, and each token's numbers are its own: a vector does not depend on what else is read. Keys and values are
nobody's state: all layers write theirs to the same room.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, final
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from dougong.engine.taped import keeps_floats, known_layer, readable
from dougong.engine.writing import Written, additions, layer_linears
from dougong.model import Model
from dougong.parts import native
from dougong.parts.attention import Attention
from dougong.parts.context import Context
from dougong.parts.native.tape import Placed, Reading
from dougong.parts.rope import Rope
from dougong.parts.shapes import Float

ROWS = 512
"""Tokens at once, of texts that are no longer."""
FEW = 16
"""Tokens up to which matrices in floats are read by tape too; of more rows their products are faster elsewhere."""


@final
class Encoding:
    """The tape of one model, written at the first text and anew when its matrices change. Threads take turns."""

    def __init__(self, model: Model):
        spec = model.spec
        self._knows = (
            spec.encoder is None
            and not spec.relative()
            and native.serving(model.like) is not None
            and all(known_layer(layer) and _whole(layer.mixer) for layer in spec.layers)
        )
        self._made: Written | None = None
        self._floats = False
        self._weights: list[Tensor] = []
        self._state: list[tuple[int, int]] = []
        self._lock = threading.Lock()

    def read(self, model: Model, texts: Sequence[list[int]]) -> list[Float[Tensor, "T D"]] | None:
        """What `Model.run` gives as hidden states, for each text by itself. None where a tape does not know the model
        as it is, its matrices are kept in floats and the tokens are not FEW, or a text is too long or empty."""
        if not self._knows or not texts or not all(0 < len(text) <= ROWS for text in texts):
            return None
        with self._lock:
            found: list[Tensor] = []
            for portion in _portions(texts):
                made = self._written(model, sum(map(len, portion)))
                if made is None:
                    return None
                found += _run(made, model, portion)
            return found

    def _written(self, model: Model, rows: int) -> Written | None:
        if model.training:
            return None
        few = rows <= FEW
        if self._made is not None and self._made.rows >= rows and self._holds() and (few or not self._floats):
            return self._made
        linears = layer_linears(model)
        plain = all(each.placement is None and readable(each.storage) for each in linears)
        self._floats = keeps_floats(model)
        if not plain or (self._floats and not few) or any(additions(model)):
            return None
        self._made = made = Written.of(model, FEW if few else 1 << (rows - 1).bit_length())
        if made is not None:
            _place(made, model)
            parts = [model.layers, *([] if model.norm is None else [model.norm])]
            self._weights = [each for part in parts for each in chain(part.parameters(), part.buffers())]
            self._state = _state(self._weights)
        return made

    def _holds(self) -> bool:
        """Whether what was written down is where it was and as it was: of some weights a tape has copies."""
        return self._made is not None and self._made.holds() and _state(self._weights) == self._state


def _state(weights: Sequence[Tensor]) -> list[tuple[int, int]]:
    return [(each.data_ptr(), 0 if each.is_inference() else each._version) for each in weights]


def _whole(mixer: Any) -> bool:
    """Whether tokens see all others, turned as their places alone say."""
    by_length = isinstance(mixer.position, Rope) and mixer.position.by_length
    return not (mixer.window or mixer.softcap or mixer.sinks or by_length)


def _place(made: Written, model: Model) -> None:
    rooms: dict[tuple[int, int], Placed] = {}
    where = {}
    for number, layer in enumerate(model.spec.layers):
        assert isinstance(layer.mixer, Attention)
        shape = layer.mixer.kv_heads, layer.mixer.head_size
        if shape not in rooms:
            keys = torch.zeros(made.rows, *shape, dtype=torch.float32, device="cpu")
            rooms[shape] = Placed(keys, torch.zeros_like(keys))
        where[number] = rooms[shape]
    made.placed = where  # the tape has only their addresses
    made.tape.place(where)


def _run(made: Written, model: Model, texts: Sequence[list[int]]) -> list[Tensor]:
    size = np.array([len(text) for text in texts], np.int64)
    first, rows = np.cumsum(size) - size, np.arange(int(size.sum()), dtype=np.int64)
    tokens = torch.tensor([[token for text in texts for token in text]])
    positions = torch.from_numpy(rows - np.repeat(first, size))[None]
    ctx = Context.of(tokens, None, None, positions, model.spec.causal)
    x = model.embedding(tokens, ctx)
    angles = (rope.angles(ctx, torch.float32) for rope in made.angles)
    made.take(x[0], [(cos[0], sin[0]) for cos, sin in angles])
    made.tape.read(Reading(first, size, np.zeros_like(size), first, rows, rows))
    hidden = made.hidden[: len(rows)].to(x.dtype, copy=True)
    return list(hidden.split(size.tolist()))


def _portions(texts: Sequence[list[int]]) -> Iterator[list[list[int]]]:
    """The texts in order, as many together as there is room for."""
    portion: list[list[int]] = []
    for text in texts:
        if portion and sum(map(len, portion)) + len(text) > ROWS:
            yield portion
            portion = []
        portion.append(text)
    yield portion


_held: WeakKeyDictionary[Model, Encoding] = WeakKeyDictionary()


def encoding(model: Model) -> Encoding:
    """The one of this model."""
    if model not in _held:
        _held[model] = Encoding(model)
    return _held[model]
