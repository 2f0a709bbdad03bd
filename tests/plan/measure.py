"""Memory as it really is: tensors that autograd saved, and the peak of every allocation of a step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.profiler import ProfilerActivity, profile

from dougong.model import Model
from dougong.train.objectives import causal_lm


def saved_bytes(model: Model, tokens: torch.Tensor, autocast: AbstractContextManager | None = None, **inputs) -> int:
    """Bytes of the distinct storages that a forward pass leaves for the backward pass, parameters not counted."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, torch.Tensor] = {}  # holding the tensors keeps their addresses from being used again

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in parameters:
            saved[address] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast or nullcontext():
        hidden = model(tokens, **inputs).hidden
    saved[hidden.untyped_storage().data_ptr()] = hidden
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def peak_bytes(step: Callable[[], object]) -> int:
    """The largest sum of bytes allocated at once while `step` runs, beyond what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        step()
    now = peak = 0
    events = (event for event in trace.profiler.kineto_results.events() if event.name() == "[memory]")
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def training_step(model: Model, tokens: torch.Tensor, targets: torch.Tensor, low: bool = False) -> None:
    """Forward and backward through the chunked loss, as the trainer runs them; `low`: products in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16) if low else nullcontext():
        loss = causal_lm(model(tokens).hidden, model.head, targets)
    loss.sum.backward()
