"""A model as data: frozen, typed, told whole in JSON, and asked about its costs before anything is built."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from dougong.base import DougongError, record_from, record_to
from dougong.parts.attention import Attention
from dougong.parts.embedding import Embedding, Head
from dougong.parts.feedforward import MLP, GatedMLP
from dougong.parts.norm import Norm
from dougong.parts.position import Rope
from dougong.parts.state import Slots

Mixer = Attention
FeedForward = MLP | GatedMLP
Wiring = Literal["pre", "post", "sandwich", "parallel"]


@dataclass(frozen=True)
class LayerSpec:
    """One layer: a mixer that moves information between tokens, and a feed-forward that works on each alone.

    wiring: where the norm stands on the residual path (`model.block.residual` has the formulas).
    """

    mixer: Mixer
    ffn: FeedForward | None
    norm: Norm
    wiring: Wiring = "pre"

    def norms(self) -> int:
        """Norms in the layer: one a sublayer, two in a sandwich, one shared by both in parallel."""
        sublayers = 1 + (self.ffn is not None)
        return {"pre": sublayers, "post": sublayers, "sandwich": 2 * sublayers, "parallel": 1}[self.wiring]

    def parameters(self, width: int) -> int:
        ffn = self.ffn.parameters(width) if self.ffn else 0
        return self.mixer.parameters(width) + ffn + self.norms() * self.norm.parameters(width)

    def slots(self) -> tuple[Slots, Slots]:
        """State of the mixer and of the feed-forward."""
        return self.mixer.slots(), self.ffn.slots() if self.ffn else {}


@dataclass(frozen=True)
class ModelSpec:
    """vocab tokens in, `layers` of `width`, logits out. `context` is the longest text it was made for, in tokens."""

    vocab: int
    width: int
    context: int
    layers: tuple[LayerSpec, ...]
    embedding: Embedding = field(default_factory=Embedding)
    norm: Norm | None = field(default_factory=Norm)
    head: Head = field(default_factory=Head)

    def __post_init__(self) -> None:
        for name in ("vocab", "width", "context"):
            if getattr(self, name) < 1:
                raise DougongError(f"{name} is {getattr(self, name)}; expected at least 1")
        for index, layer in enumerate(self.layers):
            _check_attention(index, layer.mixer)

    @staticmethod
    def from_json(data: Any) -> ModelSpec:
        """Read what `to_json` gave. Raises DougongError at an unknown key (naming the nearest) or a wrong one."""
        return record_from(ModelSpec, data)

    def to_json(self) -> dict[str, Any]:
        return record_to(self)

    def parameters(self) -> int:
        """Trained numbers; tied ones count once."""
        count = self.embedding.parameters(self.vocab, self.width) + self.head.parameters(self.vocab, self.width)
        count += sum(layer.parameters(self.width) for layer in self.layers)
        return count + (self.norm.parameters(self.width) if self.norm else 0)

    def active_parameters(self) -> int:
        """Parameters that one token touches: all of them, until layers choose among experts."""
        return self.parameters()

    def flops(self, tokens: int, context: int | None = None) -> float:
        """Forward operations (two a multiply-add) for `tokens` tokens, the last of a text of `context` (default:
        they are the whole text). Training takes three times as many: the backward pass has two products for each.
        """
        context = tokens if context is None else context
        seen = context - (tokens - 1) / 2  # each token sees itself and what came before: the mean over the tokens
        each = 2 * self.vocab * self.width
        for layer in self.layers:
            each += layer.mixer.flops(self.width, seen) + (layer.ffn.flops(self.width, seen) if layer.ffn else 0)
        return tokens * each

    def state_slots(self) -> Iterator[Slots]:
        """State of every sublayer in the order in which the model runs them."""
        for layer in self.layers:
            yield from layer.slots()

    def state_bytes(self, context: int, dtype: torch.dtype = torch.float32) -> int:
        """Bytes that one sequence of `context` tokens keeps between steps (the key-value cache)."""
        slots = [slot for each in self.state_slots() for slot in each.values()]
        return sum(slot.elements(context) * (slot.dtype or dtype).itemsize for slot in slots)


def _check_attention(index: int, mixer: Mixer) -> None:
    where = f"layers[{index}].mixer"
    if mixer.heads < 1 or mixer.kv_heads < 1 or mixer.heads % mixer.kv_heads:
        raise DougongError(
            f"{where} has {mixer.heads} heads over {mixer.kv_heads} kv_heads; heads must be a multiple of kv_heads"
        )
    if mixer.position and (mixer.position.size % 2 or not 0 < mixer.position.size <= mixer.head_size):
        raise DougongError(
            f"{where}.position.size is {mixer.position.size}; expected an even number up to head_size {mixer.head_size}"
        )


def decoder_spec(
    vocab: int,
    width: int,
    depth: int,
    heads: int,
    context: int,
    kv_heads: int | None = None,
    ffn: int | None = None,
    theta: float = 10000.0,
    qk_norm: bool = False,
    tied: bool = True,
) -> ModelSpec:
    """The usual modern decoder: pre-RMSNorm, RoPE, SwiGLU. `ffn` defaults to 8/3 of the width, rounded up to 32."""
    if width % heads or (width // heads) % 2:
        raise DougongError(f"width {width} over {heads} heads gives no even head size; choose a width of 2 x heads x n")
    norm, size = Norm("rms", 1e-6), width // heads
    mixer = Attention(heads, kv_heads or heads, size, position=Rope(size, theta), qk_norm=norm if qk_norm else None)
    hidden = ffn or 32 * math.ceil(width * 8 / 3 / 32)
    layer = LayerSpec(mixer, GatedMLP(hidden), norm)
    return ModelSpec(vocab, width, context, (layer,) * depth, norm=norm, head=Head(tied=tied))
