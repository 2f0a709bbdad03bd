"""A model as data: frozen, typed, told whole in JSON, and asked about its costs before anything is built."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from dougong.base import DougongError, record_from, record_to
from dougong.parts.attention import Attention
from dougong.parts.delta import DeltaNet
from dougong.parts.dual_chunk import DualChunkAttention
from dougong.parts.embedding import Embedding, Head
from dougong.parts.experts import MoE
from dougong.parts.feedforward import MLP, GatedMLP
from dougong.parts.heads import Task
from dougong.parts.latent import LatentAttention
from dougong.parts.linear_attention import LinearAttention
from dougong.parts.native_sparse import NativeSparseAttention
from dougong.parts.norm import Norm
from dougong.parts.position import Relative
from dougong.parts.recurrent import GRU, LSTM
from dougong.parts.rope import Rope
from dougong.parts.sparse import SparseAttention
from dougong.parts.ssd import Mamba2
from dougong.parts.ssm import Mamba
from dougong.parts.state import Slots
from dougong.parts.wkv import WKV4, ChannelMix
from dougong.parts.wkv6 import WKV5, WKV6
from dougong.parts.wkv7 import WKV7

Mixer = (
    Attention
    | LinearAttention
    | DeltaNet
    | Mamba
    | Mamba2
    | WKV4
    | WKV5
    | WKV6
    | WKV7
    | LSTM
    | GRU
    | LatentAttention
    | SparseAttention
    | NativeSparseAttention
    | DualChunkAttention
)
FeedForward = MLP | GatedMLP | MoE | ChannelMix
Wiring = Literal["pre", "post", "sandwich", "output", "through", "parallel", "parallel_norms"]


@dataclass(frozen=True)
class LayerSpec:
    """One layer: a mixer that moves information between tokens, and a feed-forward that works on each alone.

    wiring       where the norm stands on the residual path (`model.block.Block` has the formulas)
    cross        attention to the encoder's output, between the two
    mixer_scale  (a, b): how much of x is kept, and of the mixer added; ffn_scale: the same of the feed-forward
    dropout      share of what is added to the residual path that is dropped in training: each sublayer's output, in a
                 parallel wiring their sum
    ffn_dropout  the same of the feed-forward's output, where it has a share of its own (in parallel: each output apart)
    first_norm   False: the mixer has no norm before it (the first layer of ModernBERT)
    """

    mixer: Mixer
    ffn: FeedForward | None
    norm: Norm
    wiring: Wiring = "pre"
    cross: Attention | None = None
    mixer_scale: tuple[float, float] = (1.0, 1.0)
    ffn_scale: tuple[float, float] = (1.0, 1.0)
    dropout: float = 0.0
    first_norm: bool = True
    ffn_dropout: float | None = None

    def norms(self) -> int:
        """Norms in the layer: one a sublayer, two in a sandwich, one shared by both in parallel."""
        sublayers = 1 + (self.ffn is not None)
        count = {"sandwich": 2 * sublayers, "parallel": 1}.get(self.wiring, sublayers)
        return count + (self.cross is not None) - (not self.first_norm)

    def parameters(self, width: int, source: int | None = None) -> int:
        ffn = self.ffn.parameters(width) if self.ffn else 0
        cross = self.cross.parameters(width, source) if self.cross else 0
        return self.mixer.parameters(width) + cross + ffn + self.norms() * self.norm.parameters(width)

    def active_parameters(self, width: int, source: int | None = None) -> int:
        """Parameters that one token touches: all, but of experts only the chosen ones."""
        unused = 0
        for part in (self.mixer, self.ffn):
            if (active := getattr(part, "active_parameters", None)) is not None:
                unused += part.parameters(width) - active(width)  # pyright: ignore[reportOptionalMemberAccess]
        return self.parameters(width, source) - unused

    def slots(self) -> tuple[Slots, Slots, Slots]:
        """State of the mixer, of cross-attention, and of the feed-forward."""
        cross = self.cross.source_slots() if self.cross else {}
        return self.mixer.slots(), cross, self.ffn.slots() if self.ffn else {}


@dataclass(frozen=True)
class MTP:
    """Multi-token prediction: `depth` tokens after the next one, each predicted by one more layer (`model.mtp`)."""

    depth: int
    layer: LayerSpec
    norm: Norm

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise DougongError(f"depth is {self.depth}; expected at least 1")

    def parameters(self, width: int) -> int:
        return self.depth * (self.layer.parameters(width) + 3 * self.norm.parameters(width) + 2 * width * width)


@dataclass(frozen=True)
class ModelSpec:
    """vocab tokens in, `layers` of `width`, logits out. `context` is the longest text it was made for, in tokens.

    head            scores over the vocabulary; None: the model gives hidden states
    task            a head for a task (classes, spans, embeddings), instead of the other or beside it
    encoder         what reads the source; its output is what `cross` attends to
    causal          False: every token sees the whole text
    shared_embedding  encoder and decoder have one table of tokens
    mtp             predicts further tokens, in training only
    dropout         share of the last hidden states, after the norm, that is dropped in training
    """

    vocab: int
    width: int
    context: int
    layers: tuple[LayerSpec, ...]
    embedding: Embedding = field(default_factory=Embedding)
    norm: Norm | None = field(default_factory=Norm)
    head: Head | None = field(default_factory=Head)
    encoder: ModelSpec | None = None
    causal: bool = True
    shared_embedding: bool = True
    task: Task | None = None
    mtp: MTP | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("vocab", "width", "context"):
            if getattr(self, name) < 1:
                raise DougongError(f"{name} is {getattr(self, name)}; expected at least 1")
        for index, layer in enumerate(self.layers):
            if isinstance(layer.mixer, Attention):
                _check_attention(index, layer.mixer)
            if not self.causal:
                _check_both_ways(index, layer)
            if layer.cross is not None and self.encoder is None:
                raise DougongError(f"layers[{index}].cross attends to a source, but the model has no encoder")
        if self.head is not None and self.head.tied and self.head.normalised:
            raise DougongError("head.normalised needs a weight of its own; set head.tied to false")

    @staticmethod
    def from_json(data: Any) -> ModelSpec:
        """Read what `to_json` gave. Raises DougongError at an unknown key (naming the nearest) or a wrong one."""
        return record_from(ModelSpec, data)

    def to_json(self) -> dict[str, Any]:
        return record_to(self)

    def parameters(self) -> int:
        """Trained numbers; tied ones count once."""
        count = self.embedding.parameters(self.vocab, self.width) + self.relative_parameters()
        count += self.head.parameters(self.vocab, self.width) if self.head else 0
        count += self.task.parameters(self.width) if self.task else 0
        count += sum(layer.parameters(self.width, self.source_width) for layer in self.layers)
        count += self.mtp.parameters(self.width) if self.mtp else 0
        if self.encoder is not None:
            count += self.encoder.parameters() - (self.vocab * self.width if self.shared_embedding else 0)
        return count + (self.norm.parameters(self.width) if self.norm else 0)

    def active_parameters(self) -> int:
        """Parameters that one token touches: all of them, but of experts only the chosen ones."""
        each = (
            layer.parameters(self.width, self.source_width) - layer.active_parameters(self.width, self.source_width)
            for layer in self.layers
        )
        unused = sum(each) + (self.mtp.parameters(self.width) if self.mtp else 0)
        if self.encoder is not None:
            unused += self.encoder.parameters() - self.encoder.active_parameters()
        return self.parameters() - unused

    @property
    def depth(self) -> int:
        """Layers of the deeper of encoder and decoder."""
        return max(len(self.layers), self.encoder.depth if self.encoder else 0)

    @property
    def source_width(self) -> int | None:
        return self.encoder.width if self.encoder else None

    def relative(self) -> tuple[Relative, int] | None:
        """The relative position that layers share, and their number of heads."""
        for layer in self.layers:
            if isinstance(layer.mixer, Attention) and isinstance(layer.mixer.position, Relative):
                return layer.mixer.position, layer.mixer.heads
        return None

    def by_length(self) -> list[Rope]:
        """The rotations whose angles depend on the length of the text, each once."""
        found = [getattr(layer.mixer, "position", None) for layer in self.layers]
        return list(dict.fromkeys(each for each in found if isinstance(each, Rope) and each.by_length))

    def relative_parameters(self) -> int:
        found = self.relative()
        return found[0].buckets * found[1] if found else 0

    def flops(self, tokens: int, context: int | None = None, source: int | None = None) -> float:
        """Forward operations (two a multiply-add) for `tokens` tokens, the last of a text of `context` (default:
        they are the whole text). Training takes three times as many: the backward pass has two products for each.

        source: tokens that an encoder reads (default: as many as the text has); it runs once, with the first tokens.
        """
        context = tokens if context is None else context
        source = context if source is None else source
        encoded = self.encoder.flops(source) if self.encoder is not None and tokens == context else 0
        # Each token sees itself and what came before: the mean over the tokens. Or the whole text, where not causal.
        seen = context - (tokens - 1) / 2 if self.causal else context
        each: float = self.head.flops(self.vocab, self.width) if self.head else 0
        for layer in self.layers:
            if layer.cross is not None and self.source_width is not None:
                # Its keys and values are made once, of the source.
                keys = 4 * layer.cross.kv_heads * layer.cross.head_size
                each += layer.cross.flops(self.width, source) - keys * self.width
                encoded += source * keys * self.source_width if tokens == context else 0
            each += layer.mixer.flops(self.width, seen) + (layer.ffn.flops(self.width, seen) if layer.ffn else 0)
        return tokens * each + encoded

    def state_slots(self) -> Iterator[Slots]:
        """State of every sublayer in the order in which the model runs them."""
        for layer in self.layers:
            yield from layer.slots()

    def state_bytes(self, context: int, dtype: torch.dtype = torch.float32) -> int:
        """Bytes that one sequence of `context` tokens keeps between steps (the key-value cache)."""
        slots = [slot for each in self.state_slots() for slot in each.values()]
        return sum(slot.elements(context) * (slot.dtype or dtype).itemsize for slot in slots)


def _check_both_ways(index: int, layer: LayerSpec) -> None:
    """Of a model whose tokens see the whole text: a state that is carried along the row has no later tokens in it."""
    carried = any(not slot.per_token for slot in layer.mixer.slots().values())
    for name, part, wrong in (("mixer", layer.mixer, carried), ("ffn", layer.ffn, isinstance(layer.ffn, ChannelMix))):
        if wrong:
            raise DougongError(
                f"layers[{index}].{name} is a {type(part).__name__}, which reads a text from left to right, but causal "
                "is false: every token sees the whole text; set causal to true or choose attention"
            )


def _check_attention(index: int, mixer: Attention) -> None:
    where = f"layers[{index}].mixer"
    if mixer.heads < 1 or mixer.kv_heads < 1 or mixer.heads % mixer.kv_heads:
        raise DougongError(
            f"{where} has {mixer.heads} heads over {mixer.kv_heads} kv_heads; heads must be a multiple of kv_heads"
        )
    if isinstance(mixer.position, Rope) and (mixer.position.size % 2 or not 0 < mixer.position.size <= mixer.head_size):
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
