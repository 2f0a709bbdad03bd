"""`dougong upcycle`: a dense model becomes a mixture of experts that computes the same."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from dougong.base import DougongError
from dougong.cli.options import Dtype, ModelPath, open_model, parse


@dataclass(frozen=True)
class Upcycle:
    """Make a mixture of experts of a dense model, to be trained on (sparse upcycling).

    Each feed-forward becomes several copies of itself behind a router that is drawn at random; the new model computes
    what the old one does. It is written as the first family that has such layers (Llama's become Mixtral).

    examples:
      dougong upcycle runs/demo --out models/sparse
      dougong upcycle models/llama --experts 16 --top-k 4 --out models/sparse
    """

    path: ModelPath
    """a model folder, a run folder, a llama2.c .bin file, or a hub id"""
    out: Path | None = None
    """where the new model goes"""
    experts: int = 8
    """copies of each feed-forward"""
    top_k: int = 2
    """of them that a token uses"""
    layers: tuple[int, ...] = ()
    """of which layers, from 0; none: of all"""
    seed: int = 0
    """of the routers"""
    dtype: Dtype = None
    """of the weights"""


def run(args: list[str]) -> int:
    options = parse(Upcycle, args, "upcycle")
    if options.out is None:
        raise DougongError("say with --out where the model goes")

    from dougong.hub import save
    from dougong.hub.families import family_for
    from dougong.model.upcycle import upcycle, upcycled

    lm = open_model(options.path, options.dtype, None)
    layers = options.layers or None
    family = family_for(upcycled(lm.spec, options.experts, options.top_k, layers=layers))  # before any work
    model = upcycle(lm.model, options.experts, options.top_k, layers=layers, seed=options.seed)
    save(replace(lm, model=model, family=family, config={}, unread={}), options.out)
    total, active = model.spec.parameters(), model.spec.active_parameters()
    print(f"{family}: {total:,} parameters, {active:,} of them used by a token ({lm.spec.parameters():,} before)")
    print(f"the model is {options.out}")
    return 0
