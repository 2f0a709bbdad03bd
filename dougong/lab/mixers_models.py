"""The models of `dougong lab mixers`: one shape, as many parameters, and states of the same size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from dougong.lab.sizes import filled
from dougong.model import LayerSpec, ModelSpec
from dougong.model.spec import Mixer
from dougong.parts.attention import Attention
from dougong.parts.decay import SoftplusDecay
from dougong.parts.delta import DeltaNet
from dougong.parts.embedding import Head
from dougong.parts.norm import Norm
from dougong.parts.rope import Rope
from dougong.parts.ssd import Mamba2
from dougong.parts.wkv import ChannelMix
from dougong.parts.wkv7 import WKV7

WIDTH, DEPTH, STATES = 64, 2, 2
SIZES = (16,)  # of the states: STATES matrices of SIZE x SIZE numbers a layer
HEADS, RANK = 4, 16  # of attention; of RWKV-7's small projections
PARAMETERS = 90_000
ATTENTION = "attention"
RECURRENCES = ("Mamba-2", "RWKV-7", "gated DeltaNet")
NORM = Norm("rms", 1e-6)


def named(kind: str, size: int) -> str:
    """The variant of a mixer with states of size x size; attention has no such size."""
    return kind if kind == ATTENTION else f"{kind} {size}x{size}"


def kind_of(name: str) -> str:
    """The mixer of a variant's name."""
    return name.rsplit(" ", 1)[0]


def mixer(kind: str, size: int, layer: int) -> Mixer:
    match kind:
        case "attention":
            head = WIDTH // HEADS
            return Attention(HEADS, HEADS, head, position=Rope(head))
        case "Mamba-2":
            return Mamba2(STATES, size, size)
        case "RWKV-7":
            return WKV7(WIDTH, STATES, size, layer == 0, RANK, RANK, RANK, RANK)
        case _:
            return DeltaNet(STATES, STATES, size, size, decay=SoftplusDecay(), norm=NORM, gate="silu")


def _spec(vocab: int, context: int, kind: str, size: int, hidden: int) -> ModelSpec:
    """Every feed-forward is RWKV's, which sees the token before as well: recall needs that step (a value must learn
    which key stood before it), and of the mixers only the recurrences bring it along."""
    ffn = ChannelMix(WIDTH, hidden, gated=False)
    layers = tuple(LayerSpec(mixer(kind, size, layer), ffn, NORM) for layer in range(DEPTH))
    return ModelSpec(vocab, WIDTH, context, layers, norm=NORM, head=Head(tied=False))


def specs(vocab: int, context: int) -> dict[str, ModelSpec]:
    """By name: attention, and each recurrence with each size of state."""
    made: dict[str, Callable[[int], ModelSpec]] = {ATTENTION: partial(_spec, vocab, context, ATTENTION, 0)}
    for size in SIZES:
        for kind in RECURRENCES:
            made[named(kind, size)] = partial(_spec, vocab, context, kind, size)
    return filled(made, PARAMETERS)
