"""How many bytes a training step must remember, for each token, between its forward and its backward pass.

Counted from what this package's modules save (parts/*.py), each kind of layer by its own formula. In float32, with D
width, q = heads * head size, k = kv_heads * head size, F feed-forward width, in numbers a token:

- a norm keeps its input, D, and its statistics (RMSNorm none with weights in float32, else 1; LayerNorm 2); its
  output, D, is kept by the Linears that read it, once for all of them
- a Linear keeps its input; its output only if what follows keeps it
- attention keeps queries, keys, values and its output (q + k + k + q) and a normaliser a head. Fewer key heads than
  query heads are spread out first: keys and values then take q each. Rotated queries make the kernel lay its output out
  head by head, and `o` keeps a copy of it, token by token: q more. A qk_norm keeps its inputs, q + k, and statistics
- scores are not kept: the kernel makes them again (FlashAttention, Dao et al. 2022). Except on a CPU, where for short
  texts `attend` keeps them, because that is faster: then each block of queries keeps its weights for the keys up to its
  end, heads times about (T + 128) / 2 a token, but neither the normaliser nor a second copy of the output
- a GatedMLP keeps gate, up and their product, and act(gate) unless act is SiLU: 3 F or 4 F. An MLP keeps up and
  act(up): 2 F. ReLU's output says all that its gradient needs: F less
- a mixture of experts keeps, for each of the k experts of a token, its input, 4 F or 2 F, and its output, and the
  router's scores
- any other mixer or feed-forward is asked: it runs once over tensors without memory, and what it saves is added up

Under autocast to a 2-byte type the residual path and the norms stay in float32, products are kept in 2 bytes, and every
Linear that reads a norm keeps a 2-byte copy of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dougong.model.spec import FeedForward, LayerSpec, Mixer, ModelSpec
from dougong.parts import attend as kernels
from dougong.parts.attention import Attention
from dougong.parts.context import Context
from dougong.parts.experts import MoE
from dougong.parts.feedforward import MLP, GatedMLP
from dougong.parts.linear import Linear
from dougong.parts.norm import Norm
from dougong.parts.position import Alibi, Relative

FLOAT = 4  # bytes of a float32


def _statistics(norm: Norm) -> int:
    return FLOAT * (2 if norm.kind == "layer" else 1)


@dataclass(frozen=True)
class Step:
    """A pass over `batch` rows of `tokens` tokens, products in `itemsize` bytes, on a "cpu" or a "gpu". causal: tokens
    see those before them alone."""

    batch: int
    tokens: int
    itemsize: int = FLOAT
    on: Literal["cpu", "gpu"] = "cpu"
    causal: bool = True

    @property
    def low(self) -> bool:
        return self.itemsize < FLOAT

    def keeps_weights(self, mixer: Mixer) -> bool:
        """Whether `attend` keeps the attention weights (`attend._blocks_pay`, asked of the spec)."""
        return (
            self.on == "cpu"
            and self.causal
            and isinstance(mixer, Attention)
            and not isinstance(mixer.position, (Alibi, Relative))  # which add to the scores
            and mixer.head_size >= 48
            and self.tokens >= 64
            and FLOAT * self.batch * mixer.heads * self.tokens**2 <= kernels._WEIGHT_BYTES
        )


def known(mixer: Mixer) -> bool:
    """Whether `attention_bytes` tells what a mixer keeps."""
    plain = {"softcap": None, "sinks": False, "gate": None, "clip": None, "dropout": 0.0}
    usual = {**plain, "qk_norm_over": "head", "qk_norm_after_turn": False}
    if not isinstance(mixer, Attention) or isinstance(mixer.position, Relative):
        return False
    return mixer == replace(mixer, **usual)


def mixer_bytes(mixer: Mixer, width: int, step: Step) -> float:
    """Bytes that a mixer keeps for a token, its input and what layers share not counted."""
    if isinstance(mixer, Attention) and known(mixer):
        return attention_bytes(mixer, step)
    return asked(mixer, width, step)[0]


@lru_cache(maxsize=64)
def asked(part: Mixer | FeedForward, width: int, step: Step) -> tuple[float, float]:
    """Bytes that a sublayer saves for a token, its input and its weights not counted; and those of what it shares with
    others like it, such as a mask and a bias by distance.

    Found by two passes over tensors that have shapes but no memory. Beyond 1,024 tokens, which take a recurrence long,
    it goes on along the line through 512 and 1,024: what a token keeps is constant, or grows with the text where
    scores are kept.
    """
    if step.tokens > 1024:
        half, whole = (asked(part, width, replace(step, tokens=tokens)) for tokens in (512, 1024))
        far = (step.tokens - 1024) / 512
        own, shared = (end + (end - start) * far for start, end in zip(half, whole, strict=True))
        return own, shared
    tokens = step.tokens
    # As the trainer runs it: weights in float32, products in bfloat16 where `low`.
    # Within the mode the module and its input are made and no more: what parts remember of a pass, such as a table of
    # angles, has memory.
    with FakeTensorMode(allow_non_fake_inputs=True):
        module = part.build(width)
        kind = torch.bfloat16 if step.low else torch.float32  # a norm gives what products take
        x = torch.zeros(step.batch, tokens, width, dtype=kind, requires_grad=True) * 1
        biases = torch.zeros(1, tokens, tokens, getattr(part, "heads", 1), requires_grad=True) * 1
    ctx = Context(torch.arange(tokens)[None], causal=step.causal, relative=lambda buckets: biases)
    with torch.autocast("cpu", torch.bfloat16, enabled=step.low):
        first, again = _saved(module, x, ctx), _saved(module, x, ctx)
    shared = sum(again[each].nbytes() for each in again.keys() & first.keys())
    own = sum(storage.nbytes() for storage in again.values()) - shared
    if step.low:  # copies of weights are counted with the weights
        own -= 2 * sum(each.weight.numel() for each in module.modules() if isinstance(each, Linear))
    return own / (step.batch * tokens), shared / (step.batch * tokens)


def _saved(module: nn.Module, x: Tensor, ctx: Context) -> dict[int, torch.UntypedStorage]:
    """What a forward pass leaves for the backward pass, but for the input and the weights."""
    own = {each.untyped_storage()._cdata for each in (x, *module.parameters())}
    saved: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        module(x, ctx)
    return saved


def experts_bytes(ffn: MoE, width: int, step: Step) -> float:
    """Bytes that a mixture of experts keeps for a token, its input not counted."""
    more = 0 if ffn.gated or not isinstance(ffn.activation, str) else _MORE.get(ffn.activation, 0)
    each = 2 * width + ffn.hidden * ((4 if ffn.gated else 2) + more)
    shared = feedforward_bytes(ffn.shared, width, step) if ffn.shared else 0
    return step.itemsize * ffn.top_k * each + FLOAT * 2 * ffn.experts + shared


def attention_bytes(mixer: Attention, step: Step) -> int:
    """Bytes that attention keeps for a token, its input not counted."""
    queries, keys = mixer.heads * mixer.head_size, mixer.kv_heads * mixer.head_size
    spread = queries if mixer.kv_heads < mixer.heads else keys
    if step.keeps_weights(mixer):
        starts = range(0, step.tokens, kernels._BLOCK)
        ends = [min(start + kernels._BLOCK, step.tokens) for start in starts]
        weights = sum((end - start) * end for start, end in zip(starts, ends, strict=True)) // step.tokens
        count = step.itemsize * (2 * queries + 2 * spread + mixer.heads * weights)
    else:
        copied = queries if mixer.position is not None else 0
        count = step.itemsize * (2 * queries + 2 * spread + copied) + FLOAT * mixer.heads
    if mixer.qk_norm is not None:
        count += FLOAT * (queries + keys) + (mixer.heads + mixer.kv_heads) * _statistics(mixer.qk_norm)
        if step.low:
            count += step.itemsize * (queries + keys)  # the normalised ones, before their weight
    return count


# Most activations keep their input. Some keep their output, which the next product keeps anyhow; one keeps more.
_MORE = {"relu": -1, "sigmoid": -1, "tanh": -1, "quick_gelu": 1}


def feedforward_bytes(ffn: FeedForward, width: int, step: Step) -> float:
    """Bytes that a feed-forward keeps for a token, its input not counted."""
    if isinstance(ffn, MoE):
        return experts_bytes(ffn, width, step)
    if not isinstance(ffn, (MLP, GatedMLP)):
        return asked(ffn, width, step)[0]
    kept = 4 if isinstance(ffn, GatedMLP) else 2
    less = ffn.activation == "silu" and isinstance(ffn, GatedMLP)
    return step.itemsize * ffn.hidden * (kept + _MORE.get(ffn.activation, 0) - less)


def layer_bytes(layer: LayerSpec, width: int, step: Step) -> float:
    """Bytes that a layer keeps for a token: its sublayers', their inputs, and the norms'."""
    count = mixer_bytes(layer.mixer, width, step) + layer.norms() * (FLOAT * width + _statistics(layer.norm))
    inputs = 1  # one cast for all that read it
    if layer.cross is not None:
        count += mixer_bytes(layer.cross, width, replace(step, causal=False))
        inputs += 1 + step.low  # of the source
    if layer.ffn is not None:
        count += feedforward_bytes(layer.ffn, width, step)
        inputs += layer.wiring != "parallel"
    if step.low and layer.wiring == "sandwich":  # norms of what products give keep it beside its copy in floats
        inputs += 2
    return count + step.itemsize * width * inputs


def model_bytes(spec: ModelSpec, step: Step, recompute: bool = False) -> float:
    """Bytes that the whole model keeps for a token, from its id (8) to the hidden states that the head reads; with an
    encoder, that of a source of as many tokens.

    recompute: the layers keep their inputs alone, and the backward pass holds the rest of one layer at a time.
    """
    layers = [layer_bytes(layer, spec.width, step) for layer in spec.layers]
    held = FLOAT * spec.width * len(layers) + max(layers, default=0) if recompute else sum(layers)
    final = FLOAT * spec.width + _statistics(spec.norm) if spec.norm is not None else 0
    first = FLOAT * spec.width + _statistics(spec.embedding.norm) if spec.embedding.norm is not None else 0
    first += 8 * step.tokens / step.batch if spec.relative() else 0  # the bucket of each pair of tokens
    odd = {layer.mixer for layer in spec.layers if not known(layer.mixer)}
    first += sum(asked(mixer, spec.width, step)[1] for mixer in odd)
    source = model_bytes(spec.encoder, replace(step, causal=False), recompute) if spec.encoder is not None else 0
    return 8 + first + held + final + FLOAT * spec.width + source
