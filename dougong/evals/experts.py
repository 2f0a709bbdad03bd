"""How evenly a text falls to the experts of each layer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.data.batch import IGNORED, Batch
from dougong.model import Model
from dougong.parts.balance import LOADS
from dougong.parts.context import Context
from dougong.parts.experts import MoELayer

_BARS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Load:
    """counts[e]: the pairs (token, expert) that fell to expert e of `layer`."""

    layer: int
    counts: tuple[int, ...]

    @property
    def entropy(self) -> float:
        """Entropy of the experts' shares over its highest value, ln E: 1 is even, 0 is one expert for all."""
        total = sum(self.counts)
        shares = [count / total for count in self.counts if count]
        return -sum(share * math.log(share) for share in shares) / math.log(max(2, len(self.counts))) if total else 0.0

    @property
    def peak(self) -> float:
        """Load of the busiest expert over the mean load."""
        return max(self.counts) * len(self.counts) / max(1, sum(self.counts))

    @property
    def idle(self) -> int:
        """Experts that nothing fell to."""
        return self.counts.count(0)


@torch.no_grad()
def expert_loads(model: Model, batches: Iterable[Tensor | Batch]) -> list[Load]:
    """The loads of every layer with experts over batches of token ids (B, T), or of packed rows, of which the places
    behind the last text do not count. Raises DougongError for a model without experts, or with an encoder."""
    routers = {layer.ffn.router: index for index, layer in enumerate(model.layers) if isinstance(layer.ffn, MoELayer)}
    if model.spec.encoder is not None:
        raise DougongError("the model reads a source text beside its own; loads of encoder-decoders are not reported")
    if not routers:
        raise DougongError("the model has no layer with experts; there are no loads to report")
    totals: dict[int, Tensor] = {}
    training = model.training
    model.eval()
    try:
        for rows in batches:
            tokens, documents, positions = (rows, None, None) if isinstance(rows, Tensor) else _packed(rows)
            ctx = Context.of(tokens, None, documents, positions, model.spec.causal)
            ctx.memo["tokens"] = tokens
            ctx.memo[LOADS] = []
            model.run(tokens, ctx)
            for router, counts in ctx.memo[LOADS]:
                index = routers[router]
                totals[index] = totals.get(index, torch.zeros_like(counts)) + counts
    finally:
        model.train(training)
    return [Load(index, tuple(counts.tolist())) for index, counts in sorted(totals.items())]


def _packed(rows: Batch) -> tuple[Tensor, Tensor | None, Tensor]:
    """Tokens, documents (-1 behind the last text) and positions."""
    if rows.documents is None:
        return rows.tokens, None, rows.positions
    places = torch.arange(rows.tokens.shape[1], device=rows.tokens.device)
    last = torch.where(rows.targets != IGNORED, places, -1).amax(1, keepdim=True)
    return rows.tokens, rows.documents.masked_fill(places > last, -1), rows.positions


def load_table(loads: Iterable[Load]) -> str:
    """A line a layer: entropy, the busiest expert's load over the mean, idle experts, and a bar an expert."""
    lines = ["layer  entropy  busiest  idle  load by expert"]
    for load in loads:
        top = max(*load.counts, 1)
        bars = "".join(_BARS[math.ceil(count * (len(_BARS) - 1) / top)] for count in load.counts)
        lines.append(f"{load.layer:>5}  {load.entropy:>7.3f}  {load.peak:>6.2f}x  {load.idle:>4}  {bars}")
    return "\n".join(lines)
