"""Decoding and reading by tape: a step for all layers in one call to our own kernels (parts.native.tape).

What runs between matrix products is small, and asking PyTorch for it piece by piece takes longer than doing it: 24
layers of a 0.5B model cost a single token 8 ms of calls beside 11 ms of products in 8 bits. So the step is written down
once (`writing`), for single tokens over lanes and for many tokens of texts over pages. A model with a part that nobody
wrote down, or a step of more than the model as it is, goes the usual way.

Between the embedding and the last norm numbers are float32, whatever the model's type; keys and values are kept in that
type, or in bytes.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dougong.engine.lanes import Lanes
from dougong.engine.sequence import Sequence
from dougong.engine.store import Buffer, Layout
from dougong.engine.writing import Written, additions, layer_linears
from dougong.model import Model
from dougong.parts import native
from dougong.parts.attention import Attention
from dougong.parts.context import Context
from dougong.parts.feedforward import MLP, GatedMLP
from dougong.parts.fused import Part
from dougong.parts.int4 import Int4
from dougong.parts.int8 import Int8
from dougong.parts.linear import Dense, Storage
from dougong.parts.matmul import FEW
from dougong.parts.native.tape import Placed, Reading
from dougong.parts.rope import Rope
from dougong.parts.shapes import Float, Int

_AT_ONCE = 512  # tokens of texts: their buffers stay
_FLOATS = (torch.float32, torch.bfloat16)
_WIRINGS = ("pre", "post", "sandwich", "output", "parallel", "parallel_norms")


def can_tape(model: Model, layout: Layout) -> bool:
    """Whether every part of the model has a way onto a tape, and its state is keys and values alone."""
    spec = model.spec
    plain = spec.encoder is None and not spec.relative() and spec.norm is not None and not layout.fixed
    floats = all(group.dtype in _FLOATS for group in layout.groups)
    kernels = native.serving(model.like)
    return plain and floats and kernels is not None and all(known_layer(layer) for layer in spec.layers)


def known_layer(layer: Any) -> bool:
    """Whether somebody wrote down what such a layer does."""
    mixer, ffn = layer.mixer, layer.ffn
    return (
        isinstance(mixer, Attention)
        and isinstance(ffn, (MLP, GatedMLP))
        and ffn.activation in native.ACTIVATIONS
        and (mixer.position is None or isinstance(mixer.position, Rope))
        and not (mixer.chunk or mixer.gate or mixer.clip is not None)
        and (mixer.qk_norm is None or (mixer.qk_norm.kind == "rms" and mixer.qk_norm_over == "head"))
        and layer.cross is None
        and layer.wiring in _WIRINGS
        and layer.mixer_scale == layer.ffn_scale == (1, 1)
        and (layer.norm is None or layer.norm.kind in ("rms", "layer"))
    )


class Taped:
    """The tapes of a model that `can_tape`, written at the first step and anew when rows, lanes or matrices change."""

    def __init__(self, model: Model, layout: Layout):
        self._model, self._layout = model, layout
        mixers = [layer.mixer for layer in model.spec.layers]
        self._reads = not any(each.softcap or each.sinks for each in mixers if isinstance(each, Attention))
        self._window = min((each for each in layout.windows if each is not None), default=None)
        self._step: Written | None = None
        self._text: Written | None = None
        self.forget()

    def forget(self) -> None:
        """The weights have moved, or what is attached to them."""
        self._step = self._text = None
        self._dense = keeps_floats(self._model)
        # Looked at once, and not at every step that goes the usual way: a walk over a model takes milliseconds.
        self._readable: bool | None = None
        self._additions: list[Any] | None = None

    def run(
        self, ids: Int[Tensor, "B 1"], ctx: Context, lanes: Lanes, batch: Many[Sequence]
    ) -> Float[Tensor, "B 1 D"] | None:
        """What `Model.run` gives as hidden states, with the state of `batch` in the first lanes in order. None where
        the model is not as the tape knows it, such as with an adapter on."""
        if len(batch) > FEW and self._dense:
            return None  # float products of many rows are faster elsewhere
        made = self._step = self._written(self._step, len(batch))
        if made is None:
            return None
        self._place(made, lanes.buffers, tables=False)
        held = np.array([seq.length for seq in batch], np.int64)
        start = np.arange(len(batch), dtype=np.int64) * lanes.capacity
        x = self._model.embedding(ids, ctx)
        made.take(x[:, 0], [(cos[:, 0], sin[:, 0]) for cos, sin in self._angles(made, ctx)])
        made.tape.run(held, start)
        return made.hidden[: len(batch), None].to(x.dtype, copy=True)  # results are kept beyond the step

    def read(
        self,
        ids: Int[Tensor, "B T"],
        ctx: Context,
        pools: Many[Buffer],
        batch: Many[Sequence],
        counts: Many[int],
        wanted: Many[int],
    ) -> Float[Tensor, "N D"] | None:
        """The hidden states after the last `wanted` of each text's `counts` new tokens (the first of its row of ids),
        text after text. Keys and values go to the pages, which have room for them. None as `run`'s, and where attention
        is not plain."""
        longest = max(seq.length + count for seq, count in zip(batch, counts, strict=True))
        if self._dense or not self._reads or (self._window is not None and longest > self._window):
            return None
        made = self._text = self._written(self._text, min(sum(counts), _AT_ONCE))
        if made is None:
            return None
        self._place(made, pools, tables=True)
        real = torch.arange(ids.shape[1]) < torch.tensor(counts)[:, None]
        x = self._model.embedding(ids, ctx)[real]
        angles = [tuple(table.expand(*ids.shape, -1)[real] for table in each) for each in self._angles(made, ctx)]
        found, start = [], 0
        for piece in _pieces(counts, made.rows):
            reading = self._reading(piece, batch, counts, wanted)
            stop = start + int(reading.size.sum())
            made.take(x[start:stop], [(cos[start:stop], sin[start:stop]) for cos, sin in angles])
            found.append(made.hidden[: made.tape.read(reading)].to(x.dtype, copy=True))
            start = stop
        return torch.cat(found)

    def _reading(
        self, piece: list[tuple[int, int, int]], batch: Many[Sequence], counts: Many[int], wanted: Many[int]
    ) -> Reading:
        """Tokens from to before `stop` of the rows that `piece` names, as the tape wants them."""
        size = np.array([stop - begin for _, begin, stop in piece], np.int64)
        first = np.cumsum(size) - size
        held = np.array([batch[row].length + begin for row, begin, _ in piece], np.int64)
        tables = range(len(self._layout.windows))
        places = [batch[row].places(table, 0, batch[row].length + stop) for table in tables for row, _, stop in piece]
        lengths = np.array([len(each) for each in places], np.int64)
        pick = [
            np.arange(max(begin, counts[row] - wanted[row]), stop, dtype=np.int64) - begin + at
            for (row, begin, stop), at in zip(piece, first, strict=True)
        ]
        where = np.cumsum(lengths) - lengths
        return Reading(first, size, held, where, np.concatenate(places), np.concatenate(pick))

    def _written(self, made: Written | None, rows: int) -> Written | None:
        """A tape for so many rows; the one that is there, if it still holds."""
        if made is not None and made.rows >= rows and made.holds():
            return made
        if not self._plain():
            return None
        return Written.of(self._model, 1 << (rows - 1).bit_length())

    def _angles(self, made: Written, ctx: Context) -> list[tuple[Tensor, Tensor]]:
        return [rope.angles(ctx, torch.float32) for rope in made.angles]

    def _plain(self) -> bool:
        """Whether every Linear is a matrix and a bias of a form that a tape reads, with nothing on or beside it."""
        if self._readable is None:
            linears = layer_linears(self._model)
            self._readable = all(each.placement is None and readable(each.storage) for each in linears)
        if self._additions is None:
            self._additions = additions(self._model)
        return self._readable and not self._model.training and not any(self._additions)

    def _place(self, made: Written, buffers: Many[Buffer], tables: bool) -> None:
        """Tell the tape where each layer's keys and values lie, if they do not lie there already."""
        now = [(buffer.data.data_ptr(), buffer.data.shape) for buffer in buffers]
        if made.placed == now:
            return
        made.placed = now
        found: dict[Any, Placed] = {}
        sublayers = len(self._layout.where) // len(self._model.layers)
        for number in range(len(self._model.layers)):
            where = self._layout.where[number * sublayers]
            kept = [(buffers[where[name][0]], where[name][1]) for name in ("k", "v")]
            keys, values = (buffer.data[channel] for buffer, channel in kept)
            factors = [buffer.scale[channel] for buffer, channel in kept if buffer.scale is not None]
            group = kept[0][0].group
            both = (factors[0], factors[1]) if factors else None
            found[number] = Placed(keys, values, group.table if tables else 0, both, group.kv)
        made.tape.place(found)


def _pieces(counts: Many[int], most: int) -> list[list[tuple[int, int, int]]]:
    """Tokens in portions of at most `most`: each a list of (row, from, to). Attention reads what came before from where
    it is kept, so a text may fall into several."""
    pieces: list[list[tuple[int, int, int]]] = [[]]
    room = most
    for row, count in enumerate(counts):
        begin = 0
        while begin < count:
            if not room:
                pieces.append([])
                room = most
            stop = min(count, begin + room)
            pieces[-1].append((row, begin, stop))
            room -= stop - begin
            begin = stop
    return pieces


def keeps_floats(model: Model) -> bool:
    """Whether some matrix of a layer is kept in floats."""
    return any(isinstance(_whole(linear.storage), Dense) for linear in layer_linears(model))


def _whole(storage: Storage) -> Storage:
    return storage.whole.storage if isinstance(storage, Part) else storage


def readable(storage: Storage) -> bool:
    """Whether a tape reads a matrix that is kept so."""
    if isinstance(storage, Part):
        whole = storage.whole
        return whole.serves([linear for linear, _, _ in whole.members]) and readable(whole.storage)
    if isinstance(storage, Dense):
        return storage.weight.dtype in _FLOATS and storage.weight.is_contiguous()
    return isinstance(storage, Int4) or (isinstance(storage, Int8) and storage.in_tiles)
