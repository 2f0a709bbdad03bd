"""Memory of training and of serving, in bytes, from the spec alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from dougong.base import DougongError, nearest
from dougong.model.spec import ModelSpec
from dougong.parts.cross_entropy import chunk_rows
from dougong.parts.experts import MoE
from dougong.plan.activations import FLOAT, Step, layer_bytes, model_bytes

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one training step. `peak_bytes` is what must fit; it is less than the sum of the others where gradients
    take the place of activations as the backward pass frees them."""

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    workspace_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class ServingMemory:
    """Bytes to serve `batch` sequences of `context` tokens: the weights and the state (key-value cache) of them all."""

    weights_bytes: int
    state_bytes_per_token: float
    state_bytes: int
    total_bytes: int


def _itemsize(dtype: str) -> int:
    if dtype not in TYPES:
        raise DougongError(f"dtype {dtype!r} is unknown{nearest(dtype, TYPES)}")
    return TYPES[dtype].itemsize


def optimizer_bytes(spec: ModelSpec, optimizer: str) -> int:
    """adamw keeps two moments a parameter; muon one momentum for the matrices inside the layers and adamw's two for the
    rest; sgd (without momentum) nothing."""
    if optimizer == "sgd":
        return 0
    if optimizer == "adamw":
        return 2 * FLOAT * spec.parameters()
    if optimizer == "muon":
        return FLOAT * (2 * spec.parameters() - layer_matrices(spec))
    raise DougongError(f"optimizer {optimizer!r} is unknown{nearest(optimizer, ('adamw', 'muon', 'sgd'))}")


def layer_matrices(spec: ModelSpec) -> int:
    """Parameters that stand in matrices inside the layers: a layer's operations that do not depend on the context are
    two for each of them, but of experts only the chosen ones work."""
    count = float(layer_matrices(spec.encoder)) if spec.encoder is not None else 0.0
    for layer in spec.layers:
        count += layer.mixer.flops(spec.width, 0.0) / 2 + (
            layer.cross.flops(spec.width, 0.0) / 2 if layer.cross else 0.0
        )
        if isinstance(layer.ffn, MoE):  # a token's operations touch a few of them
            count += layer.ffn.parameters(spec.width)
        elif layer.ffn is not None:
            count += layer.ffn.flops(spec.width, 0.0) / 2
    return int(count)


def training_memory(
    spec: ModelSpec,
    batch: int,
    tokens: int,
    optimizer: str = "adamw",
    dtype: str = "float32",
    accumulate: int = 1,
    packed: bool = False,
    recompute: bool = False,
    on: Literal["cpu", "gpu"] = "cpu",
) -> TrainingMemory:
    """Memory of a step over `accumulate` micro-batches of `batch` sequences of `tokens` tokens.

    dtype: what matrix products are computed in; below float32 by autocast, with float32 weights. packed: several
    documents a row, so that attention needs a mask. recompute: each layer keeps its input alone and runs
    again in the backward pass (Chen et al. 2016). on: a CPU keeps the attention weights of short texts, a GPU's kernels
    do not. Not counted: the process itself (PyTorch loaded, some 250 MB of
    ordinary memory; a CUDA context, some 500 MB) and what an allocator loses to fragments.
    """
    if min(batch, tokens, accumulate) < 1:
        raise DougongError(f"batch {batch}, tokens {tokens}, accumulate {accumulate}; expected at least 1 each")
    weights = gradients = FLOAT * spec.parameters()
    states = optimizer_bytes(spec, optimizer)
    rows = batch * tokens
    step = Step(batch, tokens, _itemsize(dtype), on, spec.causal)
    activations = int(rows * model_bytes(spec, step, recompute))
    if packed and not all(step.keeps_weights(layer.mixer) for layer in spec.layers):
        activations += rows * tokens * step.itemsize  # the mask, (B, T, T), shared by all layers
    low = step.itemsize if step.low else 0
    activations += low * layer_matrices(spec)  # autocast's copies of the weights are kept like activations
    head = spec.vocab * spec.width
    # In the loss: the gradients of the hidden states and of the head (below float32 also the head's copy and what one
    # chunk adds to its gradient), and a chunk of logits (below float32 also as the product gives them and as the next
    # takes their gradient) beside the one before it.
    chunk = min(rows, chunk_rows(spec.vocab))
    logits = spec.vocab * (FLOAT * (chunk + min(chunk, rows - chunk)) + 2 * low * chunk)
    loss = FLOAT * rows * spec.width + (FLOAT + 2 * low) * head + logits
    # At the end of the backward pass: the embedding's gradient arrives whole before it is added to the head's, or the
    # first layer stands there again in full.
    last = FLOAT * head if spec.head and spec.head.tied else 0
    if recompute:
        last = max(last, *(int(rows * layer_bytes(layer, spec.width, step)) for layer in spec.layers[:1]))
    held = gradients if accumulate > 1 else 0  # all through the step, where they are added to
    peak = weights + states + max(activations + loss + held, gradients + last)
    return TrainingMemory(weights, gradients, states, activations, max(loss, last), peak)


def serving_memory(spec: ModelSpec, batch: int, context: int, dtype: str = "bfloat16") -> ServingMemory:
    """Memory to hold the model and the state of `batch` sequences of `context` tokens, both in `dtype`."""
    if min(batch, context) < 1:
        raise DougongError(f"batch {batch}, context {context}; expected at least 1 each")
    weights = _itemsize(dtype) * spec.parameters()
    each = spec.state_bytes(context, TYPES[dtype])
    return ServingMemory(weights, each / context, batch * each, weights + batch * each)
