"""A decoder or an encoder written on a tape (parts.native.tape): of each kind of part, what its `forward` does."""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Any, final

from torch import Tensor

from dougong.model import Model
from dougong.model.block import Block
from dougong.parts import native
from dougong.parts.attention import AttentionLayer
from dougong.parts.feedforward import MLP, GatedMLP, GatedMLPLayer, MLPLayer
from dougong.parts.fused import Part
from dougong.parts.int4 import Int4
from dougong.parts.int8 import Int8
from dougong.parts.linear import Linear, Storage
from dougong.parts.native.tape import Tape
from dougong.parts.norm import LayerNorm, RMSNorm
from dougong.parts.rope import Rope
from dougong.parts.shapes import Float


@final
class Written:
    """A tape, and what goes into it and comes out of it."""

    def __init__(self, tape: Tape, model: Model):
        self.tape, self.rows = tape, tape.rows
        width = model.spec.width
        self._rooms: dict[tuple[str, int], Tensor] = {}
        self.x = self.room("x", width)
        self.hidden = self.x if model.norm is None else self.room("last", width)
        self.both_ways = not model.spec.causal
        self.placed: Any = None  # where keys and values are
        self.angles: dict[Rope, tuple[Tensor, Tensor]] = {}
        # What a tape of this model was written from, looked at where modules keep it: it costs 10 us a step so.
        linears = layer_linears(model)
        self._additions = additions(model)
        self._places = [linear._modules for linear in linears]
        self._storages = [linear.storage for linear in linears]

    @staticmethod
    def of(model: Model, rows: int) -> Written | None:
        """None without kernels."""
        kernels = native.serving(model.like)
        if kernels is None:
            return None
        made = Written(Tape(kernels, rows), model)
        for number, block in enumerate(model.layers):
            assert isinstance(block, Block)
            _block(made, block, number, last=number + 1 == len(model.layers))
        if model.norm is not None:
            _norm(made.tape, model.norm, made.x, made.hidden)
        return made

    def take(self, x: Float[Tensor, "N D"], angles: Many[tuple[Tensor, Tensor]]) -> None:
        """What goes in: embedded tokens, and for each of `angles` its tables of cos and sin (N, h)."""
        self.x[: len(x)] = x
        for tables, given in zip(self.angles.values(), angles, strict=True):
            for table, values in zip(tables, given, strict=True):
                table[: len(x)] = values

    def holds(self) -> bool:
        """Whether the model's matrices are still those that were written down, and alone."""
        return not any(self._additions) and [have["storage"] for have in self._places] == self._storages

    def room(self, name: str, width: int) -> Float[Tensor, "rows width"]:
        """A buffer of that name and width. Layers share it: one after the other they find it in the cache."""
        return self._rooms.setdefault((name, width), self.tape.buffer(width))

    def turning(self, rope: Rope) -> tuple[Tensor, Tensor]:
        """The table of a rotation's angles, shared by all layers that turn alike."""
        if rope not in self.angles:
            self.angles[rope] = self.tape.buffer(rope.size // 2), self.tape.buffer(rope.size // 2)
        return self.angles[rope]


def _block(made: Written, block: Block, number: int, last: bool) -> None:
    """x after one layer, in place: the wirings of `Block`, each with its norms where they stand. After the last layer's
    attention nobody reads a row that is not wanted."""
    tape, x, wiring = made.tape, made.x, block.wiring
    normal = made.room("normal", x.shape[1])

    def mixer(given: Tensor, y: Tensor, add: bool) -> None:
        assert isinstance(block.mixer, AttentionLayer)
        heads = _attention(made, block.mixer, given, number)
        if last:
            tape.pick(x, normal, made.room("second", x.shape[1]), heads)
        _linear(tape, block.mixer.o, heads, y, add)

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


def _attention(made: Written, layer: AttentionLayer, x: Tensor, number: int) -> Tensor:
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
        both_ways=made.both_ways,
    )
    return out


def _hidden(made: Written, block: Block, x: Tensor) -> Tensor:
    """What the feed-forward's last product reads."""
    spec, layer = block.spec.ffn, block.ffn
    hidden, up = made.room("hidden", spec.hidden), None  # pyright: ignore
    if isinstance(spec, GatedMLP) and isinstance(layer, GatedMLPLayer):
        if (whole := _gated(layer, spec.hidden)) is not None:
            held, group, bias = whole
            made.tape.gated(spec.activation, x, hidden, held, group or x.shape[1], bias)
            return hidden
        gate, up = _together(made, x, (layer.gate, layer.up), (spec.hidden, spec.hidden))
    else:
        assert isinstance(spec, MLP) and isinstance(layer, MLPLayer)
        (gate,) = _together(made, x, (layer.up,), (spec.hidden,))
    made.tape.activate(spec.activation, gate, up, hidden)
    return hidden


def _gated(layer: GatedMLPLayer, hidden: int) -> tuple[Any, int, Tensor | None] | None:
    """What holds gate and up in one matrix of integers, each in tiles of its own; its group, or 0; its bias."""
    gate, up = layer.gate.storage, layer.up.storage
    if not (isinstance(gate, Part) and isinstance(up, Part) and gate.whole is up.whole) or hidden % 64:
        return None
    whole, storage = gate.whole, gate.whole.storage
    if list(whole.sizes) != [hidden, hidden] or gate.start:
        return None
    if isinstance(storage, Int8):
        return (storage.held, storage.factor), 0, _offset(whole.bias)
    if isinstance(storage, Int4):
        return (storage.nibbles, storage.steps, storage.factor), storage.group, _offset(whole.bias)
    return None


def _offset(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach().float().contiguous()


def _together(made: Written, x: Tensor, linears: Many[Linear], sizes: Many[int]) -> Many[Tensor]:
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
    offset = _offset(bias)
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


def additions(model: Model) -> list[Any]:
    """Where the layers' modules and the last norm keep what is done besides their own work: adapters, and hooks, which
    some adapters are too. All empty in a plain model."""
    modules = [model, *model.layers.modules(), *(model.norm.modules() if model.norm is not None else ())]
    hooks = [each for module in modules for each in (module._forward_hooks, module._forward_pre_hooks)]
    return hooks + [linear.adapters._modules for linear in layer_linears(model)]


def layer_linears(model: Model) -> list[Linear]:
    """Those of the layers: the head stands behind the tape."""
    return [linear for name, linear in model.linears() if name.startswith("layers.")]
