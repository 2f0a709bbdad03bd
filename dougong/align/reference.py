"""What the reference model says of the answers: computed once and kept in the run, or by a frozen copy as needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from dougong.align.heads import frozen_copy
from dougong.align.logprobs import by_document, logprobs
from dougong.align.segments import Segment, UnitRows, arrange
from dougong.base import DougongError, read_json, write_json
from dougong.model import Model
from dougong.parts.shapes import Float
from dougong.train.monitor import Progress
from dougong.train.ranks import Ranks
from dougong.tune import disabled
from dougong.tune.tuning import Tuning


def reference_of(model: Model, tuning: Tuning | None) -> Model:
    """The policy as it is now: the model itself where its adapter can be switched off (`as_reference`), else a copy."""
    return frozen_copy(model) if tuning is None or tuning.method.whole else model


@contextmanager
def as_reference(reference: Model, policy: Model) -> Iterator[None]:
    """Within, `reference` gives what the policy gave before training."""
    if reference is not policy:
        yield
        return
    with disabled(policy):
        yield


@torch.no_grad()
def segment_logprobs(
    model: Model, segments: Sequence[Segment], length: int, rows: int = 8, low: bool = False, label: str = ""
) -> Float[Tensor, " N"]:
    """log p of each segment's targets, summed. `rows` rows of `length` at a time; `low`: products in bfloat16."""
    device = model.like.device
    training = model.training
    model.eval()
    packed: UnitRows = arrange([(segment,) for segment in segments], length)
    found = torch.zeros(len(segments))
    with Progress(label, packed.count, quiet=not label) as bar:
        for start in range(0, packed.count, rows):
            batch = packed.build([(0, row) for row in range(start, min(start + rows, packed.count))]).to(device)
            assert batch.documents is not None
            with torch.autocast(device.type, torch.bfloat16, enabled=low):
                values, _, _ = logprobs(model, batch)
            unit = batch.further["unit"]
            sums = by_document(values, batch.documents, unit.shape[1])
            found[unit[unit >= 0].cpu()] = sums[unit >= 0].cpu()
            bar.update(min(start + rows, packed.count))
    model.train(training)
    return found


def kept_logprobs(
    path: Path, identity: str, model: Model, segments: Sequence[Segment], length: int, ranks: Ranks, low: bool = False
) -> Float[Tensor, " N"]:
    """`segment_logprobs`, computed by the first rank once a run and kept in the file `path`.

    Raises DougongError when the file was made of other data.
    """
    if ranks.first and not path.is_file():
        found = segment_logprobs(model, segments, length, low=low, label="reference")
        write_json(path, {"of": identity, "logprobs": found.tolist()})
    ranks.wait()
    kept = read_json(path)
    if kept["of"] != identity or len(kept["logprobs"]) != len(segments):
        raise DougongError(f"{path} was made of {kept['of']!r}, but the data now are {identity!r}; restore them")
    return torch.tensor(kept["logprobs"])
