"""Decoding by tape: a step of one token a row, for all layers in one call to our own kernels (parts.native.tape).

What runs between a token's matrix products is small, and asking PyTorch for it piece by piece takes longer than doing
it: 24 layers of a 0.5B model cost 8 ms of calls beside 11 ms of products in 8 bits. So the step is written down once:
each kind of part has a function here that writes what its `forward` does for one token. A model with a part that has
none, or a step that is more than single tokens of the model as it is, goes the usual way.

Between the embedding and the last norm numbers are float32, whatever the model's type; keys and values are kept in that
type.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dougong.engine.lanes import Lanes
from dougong.engine.sequence import Sequence
from dougong.engine.store import Layout
from dougong.model import Model
from dougong.model.block import Block
from dougong.parts import native
from dougong.parts.attention import Attention, AttentionLayer
from dougong.parts.context import Context
from dougong.parts.feedforward import MLP, GatedMLP, GatedMLPLayer, MLPLayer
from dougong.parts.fused import Part
from dougong.parts.int4 import Int4
from dougong.parts.int8 import Int8
from dougong.parts.linear import Dense, Linear, Storage
from dougong.parts.matmul import FEW
from dougong.parts.native.tape import Tape
from dougong.parts.norm import LayerNorm, RMSNorm
from dougong.parts.rope import Rope
from dougong.parts.shapes import Float, Int

_FLOATS = (torch.float32, torch.bfloat16)
_WIRINGS = ("pre", "post", "sandwich", "output", "parallel", "parallel_norms")


def can_tape(model: Model, layout: Layout) -> bool:
    """Whether every part of the model has a way onto a tape, and its state is keys and values in floats."""
    spec = model.spec
    plain = spec.encoder is None and not spec.relative() and spec.norm is not None and not layout.fixed
    floats = all(group.kv is None and group.dtype in _FLOATS for group in layout.groups)
    kernels = native.serving(next(model.parameters()))
    return plain and floats and kernels is not None and all(_known(layer) for layer in spec.layers)


def _known(layer: Any) -> bool:
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
    """The tape of a model that `can_tape`, written at the first step and anew when rows, lanes or matrices change."""

    def __init__(self, model: Model, layout: Layout):
        self._model, self._layout = model, layout
        self._tape: _Written | None = None
        self._lanes: list[Any] = []
        self.forget()

    def forget(self) -> None:
        """The weights have moved, or what is attached to them."""
        self._tape = None
        self._dense = _floats(self._model)
        # Looked at once, and not at every step that goes the usual way: a walk over a model takes milliseconds.
        self._readable: bool | None = None
        self._additions: list[Any] | None = None

    def run(
        self, ids: Int[Tensor, "B 1"], ctx: Context, lanes: Lanes, batch: Many[Sequence]
    ) -> Float[Tensor, "B 1 D"] | None:
        """What `Model.run` gives as hidden states, with the state of `batch` in the first lanes in order. None where
        the model is not as the tape knows it, such as with an adapter on."""
        tape = self._tape
        if len(batch) > FEW and self._dense:
            return None  # float products of many rows are faster elsewhere
        if tape is None or tape.rows < len(batch) or not tape.holds():
            if not self._plain():
                return None
            rows = 1 << (len(batch) - 1).bit_length()
            self._tape = tape = _Written.of(self._model, rows)
            self._lanes = []
            if tape is None:
                return None
        if self._lanes != (now := [(buffer.data.data_ptr(), buffer.data.shape) for buffer in lanes.buffers]):
            self._lanes = now
            tape.tape.place(self._places(lanes))
        held = np.array([seq.length for seq in batch], np.int64)
        start = np.arange(len(batch), dtype=np.int64) * lanes.capacity
        x = self._model.embedding(ids, ctx)
        return tape.run(x[:, 0], ctx, held, start)[:, None].to(x.dtype)

    def _plain(self) -> bool:
        """Whether every Linear is a matrix and a bias of a form that a tape reads, with nothing on or beside it."""
        if self._readable is None:
            linears = _linears(self._model)
            self._readable = all(each.placement is None and _readable(each.storage) for each in linears)
        if self._additions is None:
            self._additions = _additions(self._model)
        return self._readable and not self._model.training and not any(self._additions)

    def _places(self, lanes: Lanes) -> dict[Any, Tensor]:
        """Of each layer the keys and values in the lanes."""
        found: dict[Any, Tensor] = {}
        sublayers = len(self._layout.where) // len(self._model.layers)
        for number in range(len(self._model.layers)):
            for name, (group, channel) in self._layout.where[number * sublayers].items():
                found[number, name] = lanes.buffers[group].data[channel]
        return found


def _additions(model: Model) -> list[Any]:
    """Where the layers' modules and the last norm keep what is done besides their own work: adapters, and hooks, which
    some adapters are too. All empty in a plain model."""
    modules = [model, *model.layers.modules(), *(model.norm.modules() if model.norm is not None else ())]
    hooks = [each for module in modules for each in (module._forward_hooks, module._forward_pre_hooks)]
    return hooks + [linear.adapters._modules for linear in _linears(model)]


def _linears(model: Model) -> list[Linear]:
    """Those of the layers: the head stands behind the tape."""
    return [linear for name, linear in model.linears() if name.startswith("layers.")]


def _floats(model: Model) -> bool:
    """Whether some matrix of a layer is kept in floats."""
    return any(isinstance(_whole(linear.storage), Dense) for linear in _linears(model))


def _whole(storage: Storage) -> Storage:
    return storage.whole.storage if isinstance(storage, Part) else storage


def _readable(storage: Storage) -> bool:
    if isinstance(storage, Part):
        whole = storage.whole
        return whole.serves([linear for linear, _, _ in whole.members]) and _readable(whole.storage)
    if isinstance(storage, Dense):
        return storage.weight.dtype in _FLOATS and storage.weight.is_contiguous()
    return isinstance(storage, Int4) or (isinstance(storage, Int8) and storage.in_tiles)


class _Written:
    """A tape, and what goes into it and comes out of it."""

    def __init__(self, tape: Tape, model: Model):
        self.tape, self.rows = tape, tape.rows
        width = model.spec.width
        self._rooms: dict[tuple[str, int], Tensor] = {}
        self.x, self.hidden = self.room("x", width), self.room("last", width)
        self.angles: dict[Rope, tuple[Tensor, Tensor]] = {}
        # What a tape of this model was written from, looked at where modules keep it: it costs 10 us a step so.
        linears = _linears(model)
        self._additions = _additions(model)
        self._places = [linear._modules for linear in linears]
        self._storages = [linear.storage for linear in linears]

    @staticmethod
    def of(model: Model, rows: int) -> _Written | None:
        kernels = native.serving(next(model.parameters()))
        if kernels is None:
            return None
        made = _Written(Tape(kernels, rows), model)
        for number, block in enumerate(model.layers):
            assert isinstance(block, Block)
            _block(made, block, number)
        _norm(made.tape, model.norm, made.x, made.hidden)
        return made

    def holds(self) -> bool:
        """Whether the model's matrices are still those that were written down, and alone."""
        return not any(self._additions) and [have["storage"] for have in self._places] == self._storages

    def run(self, x: Float[Tensor, "B D"], ctx: Context, held: np.ndarray, start: np.ndarray) -> Float[Tensor, "B D"]:
        count = len(x)
        self.x[:count] = x
        for rope, (cos, sin) in self.angles.items():
            for table, angles in zip((cos, sin), rope.angles(ctx, torch.float32), strict=True):
                table[:count] = angles[:, 0]
        self.tape.run(held, start)
        return self.hidden[:count].clone()  # results are kept beyond the step

    def room(self, name: str, width: int) -> Float[Tensor, "rows width"]:
        """A buffer of that name and width. Layers share it: one after the other they find it in the cache."""
        return self._rooms.setdefault((name, width), self.tape.buffer(width))

    def turning(self, rope: Rope) -> tuple[Tensor, Tensor]:
        """The table of a rotation's angles, shared by all layers that turn alike."""
        if rope not in self.angles:
            self.angles[rope] = self.tape.buffer(rope.size // 2), self.tape.buffer(rope.size // 2)
        return self.angles[rope]


def _block(made: _Written, block: Block, number: int) -> None:
    """x after one layer, in place: the wirings of `Block`, each with its norms where they stand."""
    tape, x, wiring = made.tape, made.x, block.wiring
    normal = made.room("normal", x.shape[1])

    def mixer(given: Tensor, y: Tensor, add: bool) -> None:
        assert isinstance(block.mixer, AttentionLayer)
        _linear(tape, block.mixer.o, _attention(made, block.mixer, given, number), y, add)

    def ffn(given: Tensor, y: Tensor, add: bool) -> None:
        _linear(tape, block.ffn.down, _hidden(made, block, given), y, add)  # pyright: ignore

    if wiring in ("parallel", "parallel_norms"):
        _norm(tape, block.mixer_norm, x, normal)
        second = normal
        if block.ffn_norm is not None:
            _norm(tape, block.ffn_norm, x, second := made.room("second", x.shape[1]))
        mixer(normal, x, True)
        ffn(second, x, True)
        return
    for sublayer, norm, out_norm in (
        (mixer, block.mixer_norm, block.mixer_out_norm),
        (ffn, block.ffn_norm, block.ffn_out_norm),
    ):
        before, after = (None, norm) if wiring in ("post", "output") else (norm, out_norm)
        given = x
        if before is not None:
            _norm(tape, before, x, given := normal)
        if after is None or wiring == "post":
            sublayer(given, x, True)
            if after is not None:
                _norm(tape, after, x, x)
        else:
            y = made.room("y", x.shape[1])
            sublayer(given, y, False)
            _norm(tape, after, y, y)
            tape.add(y, x)


def _attention(made: _Written, layer: AttentionLayer, x: Tensor, number: int) -> Tensor:
    """The heads' outputs side by side."""
    spec = layer.spec
    queries, keys = spec.heads * spec.head_size, spec.kv_heads * spec.head_size
    q, k, v = _together(made, x, (layer.q, layer.k, layer.v), (queries, keys, keys))
    out = made.room("heads", queries)
    rope = spec.position if isinstance(spec.position, Rope) else None
    norms = None
    if isinstance(layer.q_norm, RMSNorm) and isinstance(layer.k_norm, RMSNorm):
        norms = _factor(layer.q_norm), _factor(layer.k_norm), layer.q_norm.eps
    made.tape.attend(
        *(q, k, v, out, number),
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        scale=spec.head_size**-0.5 if spec.scale is None else spec.scale,
        window=spec.window,
        softcap=spec.softcap,
        angles=made.turning(rope) if rope else None,
        interleaved=rope is not None and rope.interleaved,
        norms=norms,
        norm_last=spec.qk_norm_after_turn,
        sinks=None if layer.sinks is None else layer.sinks.detach().float(),
    )
    return out


def _hidden(made: _Written, block: Block, x: Tensor) -> Tensor:
    """What the feed-forward's last product reads."""
    spec, layer = block.spec.ffn, block.ffn
    up = None
    if isinstance(spec, GatedMLP) and isinstance(layer, GatedMLPLayer):
        gate, up = _together(made, x, (layer.gate, layer.up), (spec.hidden, spec.hidden))
    else:
        assert isinstance(spec, MLP) and isinstance(layer, MLPLayer)
        (gate,) = _together(made, x, (layer.up,), (spec.hidden,))
    hidden = made.room("hidden", spec.hidden)
    made.tape.activate(spec.activation, gate, up, hidden)
    return hidden


def _together(made: _Written, x: Tensor, linears: Many[Linear], sizes: Many[int]) -> Many[Tensor]:
    """The products of several Linears with x, side by side in one row; in one product where they were fused."""
    y = made.room("together", sum(sizes))
    parts = y.split(list(sizes), 1)
    first = linears[0].storage
    if isinstance(first, Part):
        _product(made.tape, first.whole.storage, first.whole.bias, x, y, False)
    else:
        for linear, part in zip(linears, parts, strict=True):
            _linear(made.tape, linear, x, part)
    return parts


def _linear(tape: Tape, linear: Linear, x: Tensor, y: Tensor, add: bool = False) -> None:
    _product(tape, linear.storage, linear.bias, x, y, add)


def _product(tape: Tape, storage: Storage, bias: Tensor | None, x: Tensor, y: Tensor, add: bool) -> None:
    offset = None if bias is None else bias.detach().float().contiguous()
    if isinstance(storage, Int8):
        tape.int8(x, y, storage.held, storage.factor, offset, add)
    elif isinstance(storage, Int4):
        tape.int4(x, y, storage.nibbles, storage.steps, storage.factor, storage.group, offset, add)
    else:
        tape.dense(x, y, storage.dense().detach(), offset, add)


def _norm(tape: Tape, norm: Any, x: Tensor, y: Tensor) -> None:
    if isinstance(norm, RMSNorm):
        tape.rms_norm(x, y, _factor(norm), norm.eps)
    else:
        assert isinstance(norm, LayerNorm)
        weight, bias = (None if each is None else each.detach().float() for each in (norm.weight, norm.bias))
        tape.layer_norm(x, y, weight, bias, norm.eps)


def _factor(norm: RMSNorm) -> Tensor | None:
    if norm.weight is None:
        return None
    weight = norm.weight.detach().float()
    return weight + norm.offset if norm.offset else weight
