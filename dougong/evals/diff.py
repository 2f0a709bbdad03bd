"""Where two models part: the same tokens through both, what every sublayer made of them side by side.

A difference in one block shows in all that follow, so the first row above the tolerance is the one to look at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dougong.base import DougongError
from dougong.hub import LanguageModel
from dougong.model import Model, ModelSpec
from dougong.model.difference import compare_specs as compare_specs
from dougong.parts.shapes import Int

# What is looked at, where a model has it: the parts named by `model.decoder` and `model.block`.
_LOOKED_AT = re.compile(r"(encoder\.)?(embedding|norm|layers\.\d+(\.(mixer|cross|ffn))?)")
LOGITS, TASK = "logits", "task"


@dataclass(frozen=True)
class Row:
    """What one part of both models gave.

    difference  largest |a - b| over the largest |a| (or |b|, if larger)
    cosine      of all numbers of a and b as two long vectors; 1 where both are nothing but zeros
    """

    part: str
    difference: float
    cosine: float


@dataclass(frozen=True)
class WeightRow:
    """The largest |a - b| of one weight over the largest |a| or |b|; None where one model lacks it: `told` says why."""

    name: str
    difference: float | None
    told: str = ""


def compare(a: LanguageModel, b: LanguageModel, tokens: Int[Tensor, "B T"]) -> list[Row]:
    """One row for each part that both models have, in the order in which the first runs them.

    An encoder reads the tokens too. Models of different depths are compared up to the last layer of the shallower one;
    of different vocabularies by the logits that both have; heads for tasks with other labels are left out. Raises
    DougongError for tokens or widths that do not fit.
    """
    if a.spec.width != b.spec.width:
        raise DougongError(f"the models are {a.spec.width} and {b.spec.width} wide; no activation can be compared")
    vocab = min(a.spec.vocab, b.spec.vocab)
    if tokens.numel() and int(tokens.max()) >= vocab:
        raise DougongError(f"token {int(tokens.max())} is outside the vocabulary that both models have, {vocab}")
    first, second = activations(a.model, tokens), activations(b.model, tokens)
    last = _last_common(a.spec, b.spec)
    for found in (first, second):
        if LOGITS in found:
            found[LOGITS] = found[LOGITS][..., :vocab]
    if TASK in first and TASK in second and first[TASK].shape != second[TASK].shape:
        del second[TASK]  # of other labels
    return [_row(part, first[part], second[part]) for part in first if part in second and last(part)]


def first_apart(rows: Sequence[Row], tolerance: float) -> Row | None:
    """The first row whose difference is not within the tolerance (what is not a number never is)."""
    return next((row for row in rows if not row.difference <= tolerance), None)


def activations(model: Model, tokens: Int[Tensor, "B T"]) -> dict[str, Tensor]:
    """What each part of a model gives for these tokens, on the CPU, in the order in which they run; and the logits, and
    what the head for a task gives."""
    found: dict[str, Tensor] = {}
    device = model.like.device
    was, tokens = model.training, tokens.to(device)
    model.eval()
    try:
        with torch.no_grad(), _watched(model, lambda name, value: found.setdefault(name, value.detach().cpu())):
            out = model(tokens, tokens) if model.spec.encoder is not None else model(tokens)
            if model.spec.head is not None:
                found[LOGITS] = out.logits.cpu()
            if model.spec.task is not None:
                found[TASK] = out.task.cpu()
    finally:
        model.train(was)
    return found


@contextmanager
def _watched(model: Model, see: Callable[[str, Tensor], object]) -> Iterator[None]:
    """`see(name, output)` at every part that is looked at."""

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def told(_module: nn.Module, _inputs: Any, output: Any) -> None:
            see(name, output[0] if isinstance(output, tuple) else output)

        return told

    handles = [
        module.register_forward_hook(hook(name)) for name, module in model.named_modules() if _LOOKED_AT.fullmatch(name)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _last_common(a: ModelSpec, b: ModelSpec) -> Callable[[str], bool]:
    """Whether a part stands before the models' depths part: what follows the layers has then read different things."""
    decoders = len(a.layers) == len(b.layers)
    encoders = len(a.encoder.layers if a.encoder else ()) == len(b.encoder.layers if b.encoder else ())

    def common(part: str) -> bool:
        if part.startswith("encoder."):
            return encoders or part != "encoder.norm"
        return decoders or part not in ("norm", LOGITS, TASK)

    return common


def _row(part: str, a: Tensor, b: Tensor) -> Row:
    x, y = a.double().flatten(), b.double().flatten()
    if x.shape != y.shape:
        raise DougongError(f"{part} gives {tuple(a.shape)} in one model and {tuple(b.shape)} in the other")
    lengths = float(x.norm() * y.norm())
    # Of equal vectors it is 1, whatever the roundings of its parts.
    cosine = float(x @ y) / lengths if lengths and not torch.equal(x, y) else float(torch.equal(x, y))
    return Row(part, _relative(x, y), min(1.0, max(-1.0, cosine)))


def _relative(x: Tensor, y: Tensor) -> float:
    """Largest |x - y| over the largest |x| or |y|; 0 where all are 0."""
    if not x.numel():
        return 0.0
    scale = float(torch.maximum(x.abs().max(), y.abs().max()))
    return float((x - y).abs().max()) / scale if scale else 0.0


def compare_weights(a: Model, b: Model) -> list[WeightRow]:
    """One row for each weight of either model, in the order of the first; weights only of the second at the end."""
    mine, other = a.weights(), b.weights()
    rows = []
    for name in (*mine, *(name for name in other if name not in mine)):
        if name not in mine or name not in other:
            rows.append(WeightRow(name, None, f"only in {'A' if name in mine else 'B'}"))
            continue
        x, y = mine[name].detach().cpu(), other[name].detach().cpu()
        if x.shape != y.shape:
            rows.append(WeightRow(name, None, f"{tuple(x.shape)} in A, {tuple(y.shape)} in B"))
        else:
            rows.append(WeightRow(name, _relative(x.double(), y.double())))
    return rows
