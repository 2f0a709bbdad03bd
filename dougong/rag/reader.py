"""A language model that reads retrieved passages inside the network (RETRO, Borgeaud et al. 2022), small.

A text is cut into chunks of m tokens. Chunk i asks for passages; an encoder reads them, and cross-attention of the
decoder brings them to the tokens that come when chunk i is known whole:

    position p reads the passages of chunk (p + 1) // m - 1

So the last token of chunk i, which predicts the first of chunk i + 1, is the first to read them, and no prediction
rests on passages that were found by what it predicts. Beside its passages every position sees one reading of an empty
passage: where nothing was found, or nothing that is found helps, there is something to attend to.

Unlike RETRO's, the encoder does not see the chunk that asked, and cross-attention has no positions: order is in the
encoder's states. Its first layer sees each token with the one before it, and no more: so a state can be asked for as
"what came after x", which is what copying takes. (A first layer that sees all learns this too, but some five times
later; docs/log.md has the numbers.)

Unlike RETRO's again, the reader may copy outright: what it predicts is one softmax over the vocabulary and over the
tokens that it reads (`log_probs`). Through cross-attention alone, copying has to be learnt as a detour over hidden
states, for which a small model and a few hundred updates on real text are not enough (docs/log.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dougong.base import DougongError
from dougong.data.batch import Batch
from dougong.model import LayerSpec, Model, ModelSpec
from dougong.model.decoder import Output
from dougong.parts.attention import Attention
from dougong.parts.context import Context
from dougong.parts.cross_entropy import IGNORED
from dougong.parts.embedding import Embedding, Head
from dougong.parts.feedforward import GatedMLP
from dougong.parts.norm import Norm
from dougong.parts.rope import Rope
from dougong.parts.shapes import Bool, Float, Int
from dougong.train.loop import Objective
from dougong.train.objectives import Loss

NONE = -1
"""Fills passages that are shorter than others; a passage of it alone is none."""


def reader_spec(
    vocab: int,
    width: int = 96,
    depth: int = 3,
    *,
    heads: int = 4,
    context: int = 256,
    reading: Iterable[int] = (1, 2),
    encoder: int = 1,
) -> ModelSpec:
    """A decoder whose layers of the numbers `reading` attend to passages, and an encoder of as many layers as said.

    encoder 0: no encoder and no cross-attention, a plain decoder of the same kind. Raises DougongError for a `reading`
    layer that is not there, and a width that its heads do not divide.
    """
    if heads < 1 or width % heads:
        raise DougongError(f"width is {width} for {heads} heads; expected a multiple of them")
    if encoder and (wrong := sorted(set(reading) - set(range(depth)))):
        raise DougongError(f"reading names the layers {wrong}, but there are layers 0 to {depth - 1}")
    norm, size = Norm("rms", 1e-6), width // heads
    mixer = Attention(heads, heads, size, position=Rope(size))
    layer = LayerSpec(mixer, GatedMLP(2 * width), norm)
    across = LayerSpec(mixer, GatedMLP(2 * width), norm, cross=Attention(heads, heads, size))
    layers = tuple(across if encoder and place in set(reading) else layer for place in range(depth))
    head = Head(tied=False)
    pairs = replace(layer, mixer=replace(mixer, window=2))
    read = ModelSpec(vocab, width, context, (pairs, *(layer,) * (encoder - 1))[:encoder], Embedding(), norm, None)
    return ModelSpec(vocab, width, context, layers, Embedding(), norm, head, encoder=read if encoder else None)


def reads(tokens: int, chunks: int, chunk: int, each: int) -> Bool[Tensor, "T S"]:
    """Which of the S = 1 + chunks * each source tokens each of `tokens` positions sees: the empty passage, first, and
    the `each` tokens that the chunk ending last at or before the next position asked for."""
    known = (torch.arange(tokens) + 1) // chunk - 1
    asked = torch.arange(chunks).repeat_interleave(each)
    return F.pad(known[:, None] == asked[None], (1, 0), value=True)


@dataclass(frozen=True)
class Read:
    """What a run over rows and their passages gives. states (B, S, D): of the S = C k r tokens of passages, by the
    encoder; seen (T, S): which of them each position reads."""

    output: Output
    states: Float[Tensor, "B S D"]
    seen: Bool[Tensor, "T S"]


def read(model: Model, tokens: Int[Tensor, "B T"], passages: Int[Tensor, "B C k r"], chunk: int) -> Read:
    """Run rows of tokens whose C = T // chunk whole chunks each have k passages of up to r tokens (filled with NONE).

    Cross-attention compares each token with all C k r and hides the others' passages: simple, and dear for long rows.
    Raises DougongError for a model without an encoder, for passages that do not fit the chunks, and for ids in them
    that are neither of the vocabulary nor NONE.
    """
    if model.encoder is None:
        raise DougongError("this model has no encoder to read passages with; make it by reader_spec(...)")
    batch, length = tokens.shape
    if chunk < 1 or passages.ndim != 4 or passages.shape[:2] != (batch, length // max(1, chunk)):
        raise DougongError(
            f"passages are {tuple(passages.shape)} for {batch} rows of {length} tokens in chunks of {chunk}; expected "
            f"({batch}, {length // max(1, chunk)}, passages, tokens)"
        )
    if passages.numel() and not NONE <= int(passages.amin()) <= int(passages.amax()) < model.spec.vocab:
        raise DougongError(
            f"passages hold ids from {int(passages.amin())} to {int(passages.amax())}; expected {NONE} (none) to "
            f"{model.spec.vocab - 1}"
        )
    each = passages.shape[2] * passages.shape[3]
    flat = passages.flatten(0, 2)
    empty = model.encode(tokens.new_zeros(1, 1)).expand(batch, 1, -1)
    states = _encoded(model, flat).view(batch, passages.shape[1] * each, empty.shape[-1])
    seen = reads(length, passages.shape[1], chunk, each).to(tokens.device)
    ctx = Context.of(tokens, causal=model.spec.causal)
    ctx.source = torch.cat((empty, states), 1)
    ctx.source_padding = F.pad((passages == NONE).flatten(1), (1, 0), value=False)
    ctx.source_seen = seen[None]
    return Read(model.run(tokens, ctx), states, seen[:, 1:])


def _encoded(model: Model, passages: Int[Tensor, "N r"]) -> Float[Tensor, "N r D"]:
    """The encoder's states; zeros for passages that are none, which are not run."""
    padding = passages == NONE
    there = ~padding.all(1)
    width = model.spec.source_width or model.spec.width
    if not bool(there.any()):
        return torch.zeros(*passages.shape, width, device=passages.device)
    states = model.encode(passages[there].clamp(min=0), padding[there])
    return states.new_zeros(*passages.shape, width).masked_scatter(there[:, None, None], states)


def copies(read: Read, passages: Int[Tensor, "B C k r"]) -> tuple[Float[Tensor, "B T S"], Int[Tensor, "B S"]]:
    """Logits of copying what follows each token of a passage, h_t . e_j / sqrt(D) (-inf where position t does not read
    j, or nothing follows), and what that is (0 there)."""
    follows = F.pad(passages[..., 1:], (0, 1), value=NONE).flatten(1)
    scores = read.output.hidden @ read.states.transpose(1, 2) / math.sqrt(read.states.shape[-1])
    there = (follows != NONE) & (passages.flatten(1) != NONE)
    return scores.float().masked_fill(~(read.seen[None] & there[:, None]), -torch.inf), follows.clamp(min=0)


def log_probs(
    model: Model, tokens: Int[Tensor, "B T"], passages: Int[Tensor, "B C k r"], chunk: int
) -> Float[Tensor, "B T V"]:
    """Natural log-probabilities of the token after each place, as a reader that copies gives them:

    p(y) ~ exp(l_y) + sum over the tokens j of the passages at hand, with y after j, of exp(h . e_j / sqrt(D))

    l are the logits of the vocabulary. One softmax over both decides whether to copy (TRIME, Zhong et al. 2022).
    """
    run = read(model, tokens, passages, chunk)
    scores, follows = copies(run, passages)
    logits = run.output.logits.float()
    highest = torch.cat((logits, scores), -1).amax(-1, keepdim=True).detach()
    index = follows[:, None].expand_as(scores)
    total = (logits - highest).exp().scatter_add(-1, index, (scores - highest).exp())
    return total.log() - total.sum(-1, keepdim=True).log()


def reading(chunk: int) -> Objective:
    """The objective of training: the causal loss of rows with their passages, `batch.further["passages"]`."""

    def loss(model: Model, batch: Batch) -> Loss:
        scores = log_probs(model, batch.tokens, batch.further["passages"], chunk)
        kept = batch.targets != IGNORED
        chosen = scores.gather(-1, batch.targets.clamp(min=0)[..., None])[..., 0]
        return Loss(-torch.where(kept, chosen, 0.0).sum(), kept.sum().to(chosen.dtype))

    return loss
